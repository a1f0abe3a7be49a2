"""`interpret run`."""

import json
from pathlib import Path
from typing import Any, TextIO

import click
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from interpret_pictures.options import Style

from .._sync import EventStream
from ..results import DataSet, Result
from ._arguments import (
    parse_rows,
    parse_targets,
    parse_value,
    read_array,
    read_inputs,
    row_names,
    split_pairs,
)
from ._options import Settings, connection_options
from ._output import class_text, console, print_json, table
from ._strongest import strongest


@click.command()
@click.argument("plugin")
@click.argument("model")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="3, 3,5,7 (one per row), layer:NAME, layer:NAME/channel:17, layer:NAME/neuron:1,2,3 or "
    "layer:NAME/direction:FILE.npy; repeat it for one per row. Default: the predicted class.",
)
@click.option(
    "--param",
    "params",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter: a JSON value, a fraction such as 8/255, or text.",
)
@click.option(
    "--params", "params_file", type=click.File(), help="JSON file of parameters; - for stdin."
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Row i gets this seed + i.")
@click.option(
    "--tensor", "tensors", multiple=True, metavar="NAME=FILE", help="An auxiliary tensor."
)
@click.option(
    "--dataset", metavar="NAME", help="In place of INPUT: a data set below the server's data root."
)
@click.option(
    "--rows", metavar="ROWS", help="Of the data set: 0:1000, 20: or 3,5,8. [default: all]"
)
@click.option(
    "--model-role",
    "models",
    multiple=True,
    metavar="ROLE=MODEL",
    help="A second model, in a role that the plugin declares.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for tensors.npz, result.json and the pictures.",
)
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier result there.")
@click.option(
    "--render/--no-render", default=None, help="Draw the result as PNG. [default: with --output]"
)
@click.option(
    "--style",
    "styles",
    multiple=True,
    type=click.Choice([style.value for style in Style]),
    help="How attributions are drawn; repeat it for several pictures. [default: auto]",
)
@click.option(
    "--picture",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the pictures: percentile, alpha, top, channels, colors, backdrop, "
    "foreground, background or smoothing.",
)
@click.option(
    "--priority",
    type=click.Choice(["low", "normal", "high"]),
    help="Whose work goes first where calls wait. [default: normal]",
)
@connection_options
@click.pass_obj
def run(
    settings: Settings,
    plugin: str,
    model: str,
    inputs: tuple[str, ...],
    targets: tuple[str, ...],
    params: tuple[str, ...],
    params_file: TextIO | None,
    seed: int | None,
    tensors: tuple[str, ...],
    dataset: str | None,
    rows: str | None,
    models: tuple[str, ...],
    output: Path | None,
    overwrite: bool,
    render: bool | None,
    styles: tuple[str, ...],
    options: tuple[str, ...],
    priority: str | None,
) -> None:
    """Run PLUGIN on MODEL, for images (.png, .jpg) or arrays (.npy, .npz, FILE.npz:NAME).

    A model of several inputs takes NAME=FILE for each of them. Without INPUT, plugins that make
    images from nothing start from their own initial image.
    """
    if dataset is not None and inputs:
        raise click.UsageError("give INPUT or --dataset, not both")
    if rows is not None and dataset is None:
        raise click.UsageError("--rows are those of a --dataset")
    stored = None if dataset is None else DataSet(dataset, parse_rows(rows))
    if output is not None and (output / "result.json").exists() and not overwrite:
        raise click.UsageError(f"{output} holds a result; choose another folder or --overwrite")
    parameters = _read_params(params_file)
    parameters |= {key: parse_value(text) for key, text in split_pairs(params, "--param").items()}
    arrays = {name: read_array(file) for name, file in split_pairs(tensors, "--tensor").items()}
    target, seconds = parse_targets(targets), split_pairs(models, "--model-role")
    pictures = _pictures(output is not None if render is None else render, styles, options)
    with settings.connect() as client:
        known = client.model(model) if inputs else None
        given = read_inputs(inputs, known) if known else stored
        stream = client.stream(
            plugin,
            model,
            given,
            target=target,
            params=parameters,
            seed=seed,
            tensors=arrays,
            models=seconds,
            render=pictures,
            previews=False,
            priority=priority,
        )
        with stream:
            result = _follow(stream, f"{plugin} on {model}", quiet=settings.json)
    written = result.save(output, overwrite=overwrite) if output is not None else ()
    if settings.json:
        print_json({**result.summary(), "files": [str(path) for path in written]})
    else:
        names = row_names(inputs, _rows(result))
        _print_result(result, names, written)
        for name, texts in strongest(result, known, given) if known else ():
            console().print(table(("row", f"strongest {name}"), zip(names, texts, strict=True)))


def _pictures(
    render: bool, styles: tuple[str, ...], options: tuple[str, ...]
) -> bool | dict[str, Any]:
    chosen = {key: parse_value(text) for key, text in split_pairs(options, "--picture").items()}
    if styles:
        chosen["styles"] = styles
    if chosen and not render:
        raise click.UsageError("--style and --picture need --output")
    return chosen or render


def _read_params(file: TextIO | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        params = json.load(file)
    except ValueError as error:
        raise click.BadParameter(f"the file is no JSON ({error})", param_hint="--params") from error
    if not isinstance(params, dict):
        raise click.BadParameter("the file holds no JSON object", param_hint="--params")
    return params


def _follow(stream: EventStream, title: str, *, quiet: bool) -> Result:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        disable=quiet,
        transient=True,
    )
    result: Result | None = None
    with progress:
        task = progress.add_task(title, total=None)
        for event in stream:
            if event.progress is not None:
                progress.update(task, completed=event.progress.done, total=event.progress.total)
            result = event.result or result
    if result is None:
        raise AssertionError("a stream ends in a result or an error")
    return result


def _rows(result: Result) -> int:
    per_row = (result.before, result.after, result.provenance.seeds, *result.metrics.values())
    return max(map(len, per_row))


def _number(value: float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}"


def _print_result(result: Result, names: list[str], written: tuple[Path, ...]) -> None:
    columns = {"row": names}
    per_row = {
        name: tensor for name, tensor in result.tensors.items() if tensor.shape == (len(names),)
    }
    if result.before:
        columns["before"] = [class_text(item) for item in result.before]
    if result.after:
        columns["after"] = [class_text(item) for item in result.after]
    for name, values in (per_row | dict(result.metrics)).items():
        columns[name] = [_number(value) for value in values.tolist()]
    out = console()
    out.print(table(tuple(columns), list(zip(*columns.values(), strict=True))))
    for warning in result.warnings:
        rows = ", ".join(names[row] for row in warning.rows if row < len(names))
        out.print(f"Warning ({rows}): {warning.message}", style="yellow")
    for name, tensor in result.tensors.items():
        if name in per_row:
            continue
        values = np.asarray(tensor, dtype=np.float64)
        span = f"{values.min():.4g} to {values.max():.4g}" if values.size else "empty"
        out.print(f"{name}: {tensor.dtype.name} {'x'.join(map(str, tensor.shape))}, {span}")
    where = result.provenance
    out.print(f"{where.run_seconds:.2f} s on {where.device}")
    for path in written:
        out.print(str(path))
