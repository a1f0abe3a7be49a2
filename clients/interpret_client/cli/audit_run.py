"""`interpret audit run` and `watch`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .._audit_run import AuditRun
from ..results import DataSet
from ._arguments import parse_rows, parse_value, split_pairs
from ._audit_data import read_samples
from ._audit_output import BELOW, followed, outcome_document, print_outcome, read_outcome
from ._options import INTERRUPTED, Settings, connection_options
from ._output import console, print_json

F = TypeVar("F", bound=Callable[..., Any])


def _following(command: F) -> F:
    for option in (
        click.option(
            "--output",
            type=click.Path(file_okay=False, path_type=Path),
            help="Folder for the report with samples, adversarial examples and the model.",
        ),
        click.option("--overwrite", is_flag=True, help="Replace an earlier report there."),
        click.option(
            "--fail-under",
            type=click.FloatRange(0, 1),
            metavar="SHARE",
            help="Exit with status 3 if the least robust accuracy is below this.",
        ),
        click.option(
            "--cancel-on-interrupt", is_flag=True, help="Ctrl-C cancels the audit as well."
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("model")
@click.argument("data", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--labels", metavar="FILE", help="Their classes: .npy, .npz or text, one a line.")
@click.option(
    "--dataset", metavar="NAME", help="In place of DATA: a data set below the server's data root."
)
@click.option("--rows", metavar="ROWS", help="Only some samples: 0:1000 or 20:.  [default: all]")
@click.option(
    "--scale", metavar="FACTOR", help="Multiplied with arrays, such as 1/255 for bytes of images."
)
@click.option(
    "--suite",
    type=click.Choice(["quick", "standard", "black_box", "corruption"]),
    default="standard",
    show_default=True,
    help="Which attacks are tried.",
)
@click.option("--norm", type=click.Choice(["linf", "l2", "l1"]), default="linf", show_default=True)
@click.option(
    "--epsilon",
    "epsilons",
    multiple=True,
    help="Radius in the units of the model's bounds, such as 0.3 or 8/255; may be repeated.",
)
@click.option(
    "--threat",
    "threats",
    multiple=True,
    metavar="NORM=EPSILON[,EPSILON]",
    help="In place of --norm and --epsilon: threat models, one for each norm.",
)
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    metavar="PLUGIN[:KEY=VALUE,...]",
    help="In place of a suite: attacks in turn, such as fgsm or pgd:steps=500,restarts=5.",
)
@click.option("--minimal/--no-minimal", default=True, help="Seek the smallest changes, too.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), help="Samples of a batch.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    help="Computing time after which no further batch begins.",
)
@click.option("--queries", type=click.IntRange(1), help="Of each black-box attack for each sample.")
@click.option("--title", default="", help="Shown at the head of the report.")
@click.option(
    "--confirm-small-epsilon",
    is_flag=True,
    help="Accept an epsilon under a thousandth of the width of the bounds.",
)
@click.option(
    "--wait/--detach", default=True, help="Wait for the end, or only start it.  [default: wait]"
)
@_following
@connection_options
@click.pass_context
def run(
    context: click.Context,
    /,
    model: str,
    data: Path | None,
    labels: str | None,
    dataset: str | None,
    rows: str | None,
    scale: str | None,
    norm: str,
    epsilons: tuple[str, ...],
    threats: tuple[str, ...],
    attacks: tuple[str, ...],
    wait: bool,
    output: Path | None,
    overwrite: bool,
    fail_under: float | None,
    cancel_on_interrupt: bool,
    **options: Any,
) -> None:
    """Audit MODEL on DATA: a .npz or .npy file, a folder of images, or of a folder for each class.

    The server goes on with the audit whoever leaves, and after it was started again.
    """
    settings = context.ensure_object(Settings)
    if (data is None) == (dataset is None):
        raise click.UsageError("give DATA or --dataset")
    if dataset is not None and (labels is not None or scale is not None):
        raise click.UsageError("--labels and --scale are for DATA, not for a --dataset")
    if not wait and (output is not None or fail_under is not None):
        raise click.UsageError("--output and --fail-under need --wait")
    radii = _radii(norm, epsilons, threats)
    if not radii and options["suite"] != "corruption":
        raise click.UsageError("give at least one --epsilon, or a --threat")
    _check_output(output, overwrite)
    chosen, inputs, classes = parse_rows(rows), None, None
    factor = None if scale is None else _number(scale, "--scale")
    with settings.connect() as client:
        if data is not None:
            inputs, classes = read_samples(data, labels, chosen, factor, client.model(model))
        with console(stderr=True).status("Sending the samples ..."):
            started = client.audit(
                model,
                inputs,
                classes,
                dataset=None if dataset is None else DataSet(dataset, chosen),
                threats=radii,
                attacks=[_attack(text) for text in attacks],
                **options,
            )
        if wait:
            if not settings.json:
                click.echo(f"Audit {started.id}: {started.audit.plan.samples} samples.", err=True)
            _finish(context, started, output, overwrite, fail_under, cancel_on_interrupt)
        elif settings.json:
            print_json(started.audit)
        else:
            console().print(f"Audit {started.id} is {started.audit.state}.")
            console().print(_how_to_go_on(started.id))


def _radii(norm: str, epsilons: tuple[str, ...], threats: tuple[str, ...]) -> dict[str, Any]:
    if epsilons and threats:
        raise click.UsageError("give --epsilon or --threat, not both")
    if epsilons:
        return {norm: [_number(text, "--epsilon") for text in epsilons]}
    found = split_pairs(threats, "--threat")
    if len(found) < len(threats):
        raise click.BadParameter("name each norm once", param_hint="--threat")
    return {
        name: [_number(text, "--threat") for text in radii.split(",")]
        for name, radii in found.items()
    }


def _number(text: str, option: str) -> float:
    value = parse_value(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise click.BadParameter(f"{text!r}: write 0.3 or 8/255", param_hint=option)
    return float(value)


def _attack(text: str) -> dict[str, Any]:
    plugin, colon, words = text.partition(":")
    pairs = split_pairs(words.split(",") if colon else (), "--attack")
    params = {key: parse_value(value) for key, value in pairs.items()}
    return {"plugin": plugin, "params": params}


def _check_output(output: Path | None, overwrite: bool) -> None:
    if output is not None and output.is_dir() and any(output.iterdir()) and not overwrite:
        raise click.UsageError(f"{output} is not empty; choose another folder or --overwrite")


def _how_to_go_on(number: str) -> str:
    return f"interpret audit watch {number} follows it; interpret audit cancel {number} stops it."


def _finish(
    context: click.Context,
    started: AuditRun,
    output: Path | None,
    overwrite: bool,
    fail_under: float | None,
    cancel_on_interrupt: bool,
) -> None:
    """Wait for an audit, tell what it came to, and judge it."""
    quiet = context.ensure_object(Settings).json
    try:
        with followed(quiet=quiet) as update:
            started.wait(update)
    except KeyboardInterrupt:
        if cancel_on_interrupt:
            started.cancel()
            click.echo(f"Audit {started.id} is cancelled.", err=True)
        else:
            click.echo(f"Audit {started.id} goes on. {_how_to_go_on(started.id)}", err=True)
        context.exit(INTERRUPTED)
    outcome = read_outcome(started, output, overwrite=overwrite)
    if quiet:
        print_json(outcome_document(outcome, fail_under))
    else:
        print_outcome(outcome)
    if fail_under is not None and outcome.robust() < fail_under:
        click.echo(f"{outcome.robust():.2%} is below {fail_under:.2%}.", err=True)
        context.exit(BELOW)


@click.command()
@click.argument("id")
@_following
@connection_options
@click.pass_context
def watch(
    context: click.Context,
    id: str,  # noqa: A002
    output: Path | None,
    overwrite: bool,
    fail_under: float | None,
    cancel_on_interrupt: bool,
) -> None:
    """Follow the audit ID to its end."""
    _check_output(output, overwrite)
    with context.ensure_object(Settings).connect() as client:
        found = client.get_audit(id)
        _finish(context, found, output, overwrite, fail_under, cancel_on_interrupt)
