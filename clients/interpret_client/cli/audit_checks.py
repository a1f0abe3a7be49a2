"""`interpret audit replay` and `compare`, which need the server's package, but no server."""

import asyncio
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from ._audit_output import BELOW, progress_bar
from ._options import Settings, connection_options
from ._output import console, print_json, printable, table

_ID = re.compile(r"[A-Za-z0-9_-]+")


@contextmanager
def _refusals() -> Iterator[None]:
    """The server's package refuses as the server does: with one sentence."""
    from interpret_server.errors import InterpretError

    try:
        yield
    except InterpretError as error:
        raise click.ClickException(error.message) from None


def _bundle(settings: Settings, name: str, fetched: ExitStack) -> Path:
    """A folder with a report, or that of an audit on the server, which is fetched."""
    if Path(name).is_dir():
        return Path(name)
    if not _ID.fullmatch(name):
        raise click.BadParameter(f"{name!r} is neither a folder nor the id of an audit")
    folder = Path(fetched.enter_context(tempfile.TemporaryDirectory())) / name
    with settings.connect() as client, console(stderr=True).status(f"Fetching audit {name} ..."):
        return client.get_audit(name).report("bundle", folder)


@click.command()
@click.argument("report")
@click.option(
    "--rerun",
    type=click.FloatRange(0, 1),
    default=0.0,
    metavar="SHARE",
    help="Also repeat the attacks on this share of the batches.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Which batches those are.")
@click.option(
    "--model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The model's file, in place of the report's.",
)
@connection_options
@click.pass_context
def replay(
    context: click.Context, report: str, rerun: float, seed: int, model: Path | None
) -> None:
    """Check every claim of REPORT, a folder or the id of an audit on the server, here.

    The model runs here in a sandbox, by onnxruntime or torch.jit itself. Exit status 1 if a claim
    does not hold.
    """
    settings = context.ensure_object(Settings)
    with ExitStack() as fetched:
        folder = _bundle(settings, report, fetched)
        with _refusals(), progress_bar(quiet=settings.json) as progress:
            from interpret_server.audits.replay import replay as replayed

            task = progress.add_task("replaying", total=None, found="")
            found = asyncio.run(
                replayed(
                    folder,
                    model=model,
                    rerun=rerun,
                    seed=seed,
                    report=lambda done, total: progress.update(task, completed=done, total=total),
                )
            )
    if settings.json:
        print_json({**vars(found), "holds": found.holds})
    else:
        console().print(
            f"{found.confirmed} of {found.examples} adversarial examples confirmed, "
            f"{found.samples} samples checked, the attacks on {found.repeated} repeated."
        )
        for complaint in found.complaints:
            console().print(printable(str(complaint)), style="red")
        for note in found.notes:
            console().print(printable(note), style="yellow")
        console().print("Every claim holds." if found.holds else "The report does not hold.")
    if not found.holds:
        context.exit(1)


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="HTML page to write."
)
@click.option(
    "--fail-under",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Exit with status 3 if the least robust accuracy of B is below this.",
)
@click.option(
    "--fail-on-regression",
    is_flag=True,
    help="Exit with status 3 if B is significantly worse than A anywhere.",
)
@connection_options
@click.pass_context
def compare(
    context: click.Context,
    first: str,
    second: str,
    output: Path | None,
    fail_under: float | None,
    fail_on_regression: bool,
) -> None:
    """Set two reports side by side: folders, or ids of audits on the server."""
    settings = context.ensure_object(Settings)
    with ExitStack() as fetched, _refusals():
        from interpret_server.audits import compare as comparing
        from interpret_server.audits.report import bundle

        reports = [bundle.read(_bundle(settings, name, fetched)) for name in (first, second)]
        compared = comparing.compare(*reports)
        gate = None if fail_under is None else comparing.gate(reports[1].document, fail_under)
        worse = comparing.regression(compared) if fail_on_regression else []
        if output is not None:
            output.write_text(comparing.render(compared, *reports), encoding="utf-8")
    if settings.json:
        print_json({**compared, "output": None if output is None else str(output)})
    else:
        _print_comparison(compared, comparing.table(compared), output)
    for sentence in _failures(gate, worse):
        click.echo(sentence, err=True)
        context.exit(BELOW)


def _print_comparison(compared: Any, lines: Sequence[tuple[str, ...]], output: Path | None) -> None:
    heading, *rows = lines
    console().print(table(heading, rows))
    console().print(printable(compared["verdict"]))
    if output is not None:
        console().print(str(output))


def _failures(gate: Any, worse: list[dict[str, Any]]) -> list[str]:
    found = [] if gate is None or gate.passed else [gate.sentence]
    if worse:
        names = ", ".join(line["words"] for line in worse)
        found.append(f"Significantly worse: {names}.")
    return [" ".join(found)] if found else []
