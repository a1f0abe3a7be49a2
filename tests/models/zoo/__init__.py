"""Small architectures from code, exported in every way, against the eager modules."""
