"""`python -m interpret_server`: the same as the command `interpret-server`."""

from .cli import main

main()
