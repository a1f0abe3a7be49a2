"""Options that every command shares, and how failures end a command."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from .._sync import Client, connect
from ..errors import InterpretClientError, ServerError

DEFAULT_ADDRESS = "localhost:50051"
INTERRUPTED = 130

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """Where the server is, and how to answer; options after a command win over those before."""

    address: str = DEFAULT_ADDRESS
    token: str | None = None
    timeout: float | None = None
    tls: bool = False
    ca: str | None = None
    json: bool = False

    def connect(self) -> Client:
        """A client of the server."""
        return connect(
            self.address, token=self.token, timeout=self.timeout, tls=self.ca or self.tls
        )


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    settings = context.ensure_object(Settings)
    source = context.get_parameter_source(parameter.name or "")
    given = source is ParameterSource.COMMANDLINE
    # The environment fills gaps once, at the outermost command: it never wins over an option.
    if given or (source is ParameterSource.ENVIRONMENT and context.parent is None):
        setattr(settings, parameter.name or "", value)


def connection_options(command: F) -> F:
    """Add the shared options; they may stand before or after the name of a command."""
    shared: dict[str, Any] = {"expose_value": False, "callback": _keep}
    for option in (
        click.option(
            "--json", is_flag=True, help="Print one JSON document and nothing else.", **shared
        ),
        click.option(
            "--ca",
            type=click.Path(exists=True, dir_okay=False),
            help="PEM file of the authorities to trust; encrypts the connection.",
            **shared,
        ),
        click.option("--tls", is_flag=True, help="Encrypt the connection.", **shared),
        click.option(
            "--timeout",
            type=click.FloatRange(0, min_open=True),
            help="Seconds that a call may take.",
            **shared,
        ),
        click.option(
            "--token", envvar="INTERPRET_TOKEN", show_envvar=True, help="Bearer token.", **shared
        ),
        click.option(
            "--address",
            envvar="INTERPRET_ADDRESS",
            show_envvar=True,
            help=f"Where the server is.  [default: {DEFAULT_ADDRESS}]",
            **shared,
        ),
    ):
        command = option(command)
    return command


class CommandLine(click.Group):
    """A group whose commands end with one sentence on stderr, never with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; 1 for what the server refuses, 130 for Ctrl-C."""
        try:
            return super().invoke(ctx)
        except InterpretClientError as error:
            _report(error)
            ctx.exit(1)
        except OSError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("Cancelled.", err=True)
            ctx.exit(INTERRUPTED)


def _report(error: InterpretClientError) -> None:
    click.echo(f"Error: {error.message}", err=True)
    for violation in error.violations:
        line = f"{violation.field}: {violation.description}"
        if line not in error.message:
            click.echo(f"  {line}", err=True)
    if isinstance(error, ServerError) and error.request_id:
        click.echo(f"  The server's log tells more under {error.request_id}.", err=True)
