"""`python -m interpret_client` is the `interpret` command."""

from .cli import main

main(prog_name="interpret")
