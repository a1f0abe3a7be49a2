"""`interpret models`, `load`, `unload` and `predict`."""

from pathlib import Path
from typing import Any

import click

from .._codec import read_manifest
from ..errors import InvalidRequest
from ..results import ModelInfo, ModelInput
from ._arguments import merge_manifest, numbers, read_inputs, row_names, sizes
from ._options import Settings, connection_options
from ._output import class_text, console, pairs, print_json, shape_text, table


@click.group(invoke_without_command=True)
@connection_options
@click.pass_context
def models(context: click.Context) -> None:
    """List the loaded models, or show one."""
    if context.invoked_subcommand is not None:
        return
    settings = context.ensure_object(Settings)
    with settings.connect() as client:
        found = client.models()
    if settings.json:
        print_json(found)
    elif not found:
        console().print("No model is loaded; see interpret load --help.")
    else:
        rows = [
            (
                model.name,
                model.version,
                model.format,
                model.form,
                shape_text(model.input_shape),
                str(model.classes),
                model.device,
                model.sha256[:12],
            )
            for model in found
        ]
        columns = ("name", "version", "format", "form", "input", "classes", "device", "sha256")
        console().print(table(columns, rows))


@models.command()
@click.argument("name")
@connection_options
@click.pass_obj
def show(settings: Settings, name: str) -> None:
    """Show the model NAME with its layers."""
    with settings.connect() as client:
        model = client.model(name)
    if settings.json:
        print_json(model)
    else:
        _print_model(model)


def _print_model(model: ModelInfo) -> None:
    checked = model.verification
    bounds = "not stated" if model.bounds is None else "{:g} to {:g}".format(*model.bounds)
    out = console()
    out.print(
        pairs(
            [
                ("name", f"{model.name} (version {model.version})"),
                ("file", f"{model.format}, {model.size} bytes, sha256 {model.sha256}"),
                ("form", " - ".join(filter(None, (model.form, model.form_reason)))),
                ("runs on", f"{model.device}, {model.precision}"),
                ("input", "\n".join(_input_text(item) for item in model.inputs)),
                (
                    "features",
                    "\n".join(_feature_text(item) for item in model.inputs if item.features),
                ),
                ("bounds", bounds),
                ("classes", str(model.classes)),
                ("labels", ", ".join(model.labels)),
                ("logits from", model.logits_from),
                ("capabilities", ", ".join(sorted(model.capabilities))),
                ("lacking", "\n".join(f"{key}: {why}" for key, why in model.lacking.items())),
                (
                    "verified",
                    f"within {checked.max_difference:.2g} of {checked.reference} on "
                    f"{checked.inputs} inputs"
                    if checked.reference
                    else "",
                ),
                ("notes", "\n".join(model.notes)),
            ]
        )
    )
    out.print()
    rows = [(layer.name, layer.kind, shape_text(layer.shape)) for layer in model.layers]
    out.print(table(("layer", "kind", "shape"), rows))


def _input_text(item: ModelInput) -> str:
    kind = "" if item.kind == "values" else item.kind
    words = (item.name, shape_text(item.shape), item.dtype, item.layout, kind)
    return " ".join(filter(None, words))


def _feature_text(item: ModelInput) -> str:
    return f"{item.name}: {', '.join(item.features)}"


@click.command()
@click.argument("name")
@click.argument(
    "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False
)
@click.option(
    "--manifest",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A .toml or .json file with what the model file does not tell.",
)
@click.option("--shape", help="Shape of one input, such as 3,224,224; ? for a free size.")
@click.option("--bounds", help="Smallest and largest input value, such as 0,1.")
@click.option("--mean", help="Subtracted first: one number, or one per channel.")
@click.option("--std", help="Divided by next: one number, or one per channel.")
@click.option("--server-path", help="Path below the server's model repository, instead of FILE.")
@click.option("--replace", is_flag=True, help="Replace a model of that name.")
@connection_options
@click.pass_obj
def load(
    settings: Settings,
    name: str,
    file: Path | None,
    manifest: Path | None,
    shape: str | None,
    bounds: str | None,
    mean: str | None,
    std: str | None,
    server_path: str | None,
    replace: bool,
) -> None:
    """Upload the model FILE and serve it as NAME.

    Without FILE, load the entry NAME of the server's own model repository.
    """
    if file is not None and server_path is not None:
        raise click.UsageError("give FILE or --server-path, not both")
    changes: dict[str, Any] = {}
    if shape is not None:
        changes["shape"] = sizes(shape)
    for key, text in (("bounds", bounds), ("mean", mean), ("std", std)):
        if text is not None:
            changes[key] = numbers(text)
    try:
        fields = read_manifest(manifest) if manifest else {}
    except InvalidRequest as error:
        raise click.BadParameter(error.message, param_hint="--manifest") from error
    described = merge_manifest(fields, changes) if fields or changes else None
    with settings.connect() as client, console(stderr=True).status(f"Loading {name} ..."):
        model = client.load_model(name, file, described, replace, server_path=server_path)
    if settings.json:
        print_json(model)
    else:
        console().print(
            f"Loaded {model.name}: {model.format}, input {shape_text(model.input_shape)}, "
            f"{model.classes} classes, {len(model.layers)} layers."
        )
        for note in model.notes:
            console().print(note)


@click.command()
@click.argument("name")
@connection_options
@click.pass_obj
def unload(settings: Settings, name: str) -> None:
    """Stop serving the model NAME."""
    with settings.connect() as client:
        client.unload_model(name)
    if settings.json:
        print_json({"unloaded": name})
    else:
        console().print(f"Unloaded {name}.")


@click.command()
@click.argument("model")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@connection_options
@click.pass_obj
def predict(settings: Settings, model: str, inputs: tuple[str, ...]) -> None:
    """Tell the classes of images (.png, .jpg) or arrays (.npy, .npz, FILE.npz:NAME)."""
    with settings.connect() as client:
        answer = client.predict(model, read_inputs(inputs, client.model(model)))
    names = row_names(inputs, len(answer.rows))
    if settings.json:
        print_json(
            [
                {"input": name, "prediction": row, "all_logits": logits}
                for name, row, logits in zip(names, answer.rows, answer.logits, strict=True)
            ]
        )
        return
    rows = []
    for name, row in zip(names, answer.rows, strict=True):
        others = row.labels[1:] or [str(item) for item in row.classes[1:]]
        chances = row.probabilities[1:]
        rest = ", ".join(f"{o} {p:.1%}" for o, p in zip(others, chances, strict=True))
        rows.append((name, class_text(row), rest))
    console().print(table(("input", "class", "then"), rows))
