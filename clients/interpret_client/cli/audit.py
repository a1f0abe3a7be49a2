"""`interpret audit`: how robust a model is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .._audit_run import AuditRun
from ..audits import FORMS
from ._audit_output import moment, print_audit, so_far
from ._options import Settings, connection_options
from ._output import console, print_json, table
from .audit_checks import compare, replay
from .audit_run import run, watch

_ENDINGS = {"html": ".html", "json": ".json", "csv": ".csv", "parquet": ".parquet", "bundle": ""}


@click.group()
def audit() -> None:
    """Find out how robust a model is, with evidence that can be replayed.

    Exit status: 0 success, 1 the server refused or failed, or a report does not hold, 2 wrong
    usage, 3 accuracy below --fail-under, 130 interrupted.
    """


@audit.command("list")
@connection_options
@click.pass_obj
def list_audits(settings: Settings) -> None:
    """List the audits on the server, newest first."""
    with settings.connect() as client:
        found = [item.audit for item in client.audits()]
    if settings.json:
        print_json(found)
    elif not found:
        console().print("There is no audit; see interpret audit run --help.")
    else:
        rows = [
            (
                item.id,
                item.state,
                item.spec["title"] or item.spec["model"],
                ",".join(threat["norm"] for threat in item.spec["threats"]) or item.spec["suite"],
                f"{item.done}/{item.total}",
                so_far(item),
                moment(item.created),
            )
            for item in found
        ]
        columns = ("id", "state", "of", "threats", "steps", "so far", "created")
        console().print(table(columns, rows))


@audit.command()
@click.argument("id")
@connection_options
@click.pass_obj
def show(settings: Settings, id: str) -> None:  # noqa: A002
    """Show the audit ID as it stands."""
    with settings.connect() as client:
        found = client.get_audit(id).audit
    if settings.json:
        print_json(found)
    else:
        print_audit(found)


def _changed(settings: Settings, id: str, change: Callable[[AuditRun], Any]) -> None:  # noqa: A002
    with settings.connect() as client:
        found = client.get_audit(id)
        change(found)
    if settings.json:
        print_json(found.audit)
    else:
        console().print(f"Audit {id} is {found.audit.state}.")


@audit.command()
@click.argument("id")
@connection_options
@click.pass_obj
def cancel(settings: Settings, id: str) -> None:  # noqa: A002
    """Stop the audit ID; what is finished of it stays."""
    _changed(settings, id, AuditRun.cancel)


@audit.command()
@click.argument("id")
@connection_options
@click.pass_obj
def resume(settings: Settings, id: str) -> None:  # noqa: A002
    """Go on with the audit ID after it was cancelled or has failed."""
    _changed(settings, id, AuditRun.resume)


@audit.command()
@click.argument("id")
@connection_options
@click.pass_obj
def delete(settings: Settings, id: str) -> None:  # noqa: A002
    """Delete the audit ID with everything that is stored of it."""
    with settings.connect() as client:
        client.get_audit(id).delete()
    if settings.json:
        print_json({"deleted": id})
    else:
        console().print(f"Audit {id} is deleted.")


@audit.command()
@click.argument("id")
@click.option(
    "--form",
    type=click.Choice(FORMS),
    default="bundle",
    show_default=True,
    help="html: one page; csv, parquet: a line for every sample; bundle: all of it with samples, "
    "adversarial examples and the model.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder or .zip file for a bundle, else a file.  [default: audit-ID, here]",
)
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@connection_options
@click.pass_obj
def report(
    settings: Settings,
    id: str,  # noqa: A002
    form: str,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Fetch the report of the audit ID."""
    with settings.connect() as client:
        found = client.get_audit(id)
        name = f"audit-{found.id}{_ENDINGS[form]}"
        path = Path(name) if output is None else output
        if form != "bundle" and path.is_dir():
            path /= name
        written = found.report(form, path, overwrite=overwrite)
    if settings.json:
        print_json({"output": str(written)})
    else:
        console().print(str(written))


for command in (run, watch, replay, compare):
    audit.add_command(command)
