"""Audits: how robust a model is, as durable jobs whose every claim can be replayed."""
