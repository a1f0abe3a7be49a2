"""Side-by-side measurements; each module is one benchmark with a `main() -> dict`."""
