"""What the command line's words mean: inputs, targets, parameters, numbers."""

import json
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..results import Array, ModelInfo

_TARGET = re.compile(
    r"layer:(?P<layer>.+?)(?:/(?P<unit>channel|neuron|direction):(?P<value>[^:]+))?"
)
_FRACTION = re.compile(r"(-?\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")


def parse_target(text: str) -> Any:
    """A target in words.

    `3`, `3,5,7` (one per row), `layer:NAME`, `layer:NAME/channel:17`, `layer:NAME/neuron:1,2,3`
    or `layer:NAME/direction:FILE.npy`.
    """
    if match := _TARGET.fullmatch(text):
        target: dict[str, Any] = {"layer": match["layer"]}
        match match["unit"]:
            case "channel":
                target["channel"] = _whole(match["value"])
            case "neuron":
                target["neuron"] = [_whole(item) for item in match["value"].split(",")]
            case "direction":
                target["direction"] = read_array(match["value"])
        return target
    classes = [_whole(item) for item in text.split(",")]
    return classes[0] if len(classes) == 1 else classes


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no class; write 3, 3,5,7 or layer:NAME/channel:17", param_hint="--target"
        ) from None


def parse_targets(texts: Sequence[str]) -> Any:
    """No text, one for all rows, or one per row."""
    parsed = [parse_target(text) for text in texts]
    if len(parsed) <= 1:
        return parsed[0] if parsed else None
    return [item for one in parsed for item in (one if isinstance(one, list) else [one])]


def parse_value(text: str) -> Any:
    """A JSON value, a fraction such as `8/255`, or else the text itself."""
    if match := _FRACTION.fullmatch(text):
        if float(match[2]) == 0:
            raise click.BadParameter(f"{text} divides by zero", param_hint="--param")
        return float(match[1]) / float(match[2])
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_rows(text: str | None) -> slice | list[int] | None:
    """`0:1000`, `20:`, `:5`, or numbers with commas between; None for all."""
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    try:
        if colon:
            return slice(int(start or 0), int(stop) if stop else None)
        return [int(item) for item in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r}: write 0:1000, 20: or 3,5,8", param_hint="--rows"
        ) from None


def split_pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """`KEY=VALUE` words as a mapping."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{text!r}: write KEY=VALUE", param_hint=option)
        found[key] = value
    return found


def numbers(text: str) -> list[float]:
    """`0,1` as numbers."""
    try:
        return [float(item) for item in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r}: write numbers with commas between") from None


def sizes(text: str) -> list[int | None]:
    """`1,28,28` as sizes; `?` for a free one."""
    try:
        return [None if item == "?" else int(item) for item in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r}: write sizes with commas between") from None


def read_array(name: str) -> Array:
    """A `.npy` file, a `.npz` file of one array, or `FILE.npz:NAME`."""
    path, _, key = name.partition(".npz:")
    file = Path(f"{path}.npz" if key else name)
    if not file.is_file():
        raise click.BadParameter(f"there is no file {str(file)!r}")
    try:
        loaded = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise click.BadParameter(f"{file.name} holds no numpy array ({error})") from error
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded as archive:
        names = list(archive)
        if key not in names and (key or len(names) != 1):
            raise click.BadParameter(
                f"{file.name} holds {', '.join(names) or 'no array'}; "
                f"write {file.name}:NAME for one of them"
            )
        array: Array = archive[key or names[0]]
        return array


def _is_array(name: str) -> bool:
    return name.endswith((".npy", ".npz")) or ".npz:" in name


def read_inputs(
    names: Sequence[str], model: ModelInfo
) -> Array | dict[str, Array] | list[str | PathLike[str]] | None:
    """Arrays as one array `(N, *input_shape)`, image files as their paths, None for no names.

    For a model of several inputs, `NAME=FILE` for each of them. An array without the batch axis is
    one row; floating-point arrays become the model's type.
    """
    if not names:
        return None
    if len(model.inputs) > 1:
        known = {item.name: item for item in model.inputs}
        found = split_pairs(names, "INPUT")
        for name in found:
            if name not in known:
                raise click.BadParameter(
                    f"{model.name} has no input {name!r}; write NAME=FILE for {', '.join(known)}",
                    param_hint="INPUT",
                )
        return {name: _read_part(file, known[name].shape, model) for name, file in found.items()}
    arrays = [_is_array(name) for name in names]
    if not any(arrays):
        for name in names:
            if not Path(name).is_file():
                raise click.BadParameter(f"there is no file {name!r}", param_hint="INPUT")
        return list(names)
    if not all(arrays):
        raise click.BadParameter("give image files or numpy files, not both", param_hint="INPUT")
    parts = [_read_part(name, model.input_shape, model) for name in names]
    try:
        return np.concatenate(parts)
    except ValueError as error:
        raise click.BadParameter(f"the arrays do not fit together: {error}") from error


def _read_part(name: str, shape: Sequence[int], model: ModelInfo) -> Array:
    part = read_array(name)
    if part.dtype.kind == "f":
        part = part.astype("float64" if model.precision == "float64" else "float32")
    return part[None] if part.ndim == len(shape) else part


def row_names(names: Sequence[str], rows: int) -> list[str]:
    """What to call each row in a table."""
    if len(names) == rows:
        return [Path(name).name for name in names]
    return [str(row) for row in range(rows)]


def merge_manifest(manifest: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the fields of its (first) input replaced."""
    if not manifest.get("inputs"):
        return {**manifest, **changes}
    first, *others = manifest["inputs"]
    return {**manifest, "inputs": [{**first, **changes}, *others]}
