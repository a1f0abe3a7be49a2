"""Reports: what an audit found, as JSON, tables, one page, and a folder that can be replayed."""
