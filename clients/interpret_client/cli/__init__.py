"""The `interpret` command."""

import click

from ._options import CommandLine, connection_options
from .audit import audit
from .models import load, models, predict, unload
from .plugins import plugins
from .run import run

__all__ = ["main"]


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@connection_options
@click.version_option(package_name="interpret-server", prog_name="interpret")
def main() -> None:
    """Explain, visualise and attack the classifiers that a server holds.

    Exit status: 0 success, 1 the server refused or failed, 2 wrong usage, 130 interrupted; 3 an
    audit found less than --fail-under asks for.
    """


for command in (models, load, unload, plugins, predict, run, audit):
    main.add_command(command)
