"""The samples of an audit on this machine: files of numpy, or folders of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..results import Array, ModelInfo
from ._arguments import read_array

_INPUTS, _LABELS = ("inputs", "images", "x"), ("labels", "y")  # names of arrays
_IMAGES = frozenset({".png", ".jpg", ".jpeg"})

Labels = NDArray[np.int64]
Rows = slice | list[int] | None


def read_samples(
    data: Path, labels: str | None, rows: Rows, scale: float | None, model: ModelInfo
) -> tuple[Any, Labels]:
    """Samples as the client takes them, and their classes.

    Args:
        data: a `.npz` file (the array `inputs`, `images` or `x`, or the only one; `labels` or `y`),
            a `.npy` file, or a folder of images, or of a folder for each class.
        labels: a file with them: `.npy`, `.npz`, or text with a class on each line.
        rows: only these.
        scale: multiplied with the values of arrays.
        model: to be audited.

    Raises:
        BadParameter: the files are not what they should be.
    """
    inputs: Any
    if data.is_dir():
        inputs, found = _folder(data, model)
    else:
        inputs, found = _arrays(data)
    known = found if labels is None else _read_labels(labels, model)
    if known is None:
        raise click.BadParameter(f"{data.name} tells no classes", param_hint="--labels")
    if len(known) != len(inputs):
        raise click.BadParameter(
            f"{len(known)} classes for {len(inputs)} samples", param_hint="--labels"
        )
    inputs, known = _chosen(inputs, known, rows)
    if isinstance(inputs, np.ndarray):
        return _fitted(inputs, scale, model), known
    if scale is not None:
        raise click.BadParameter("images are scaled as the model says", param_hint="--scale")
    return inputs, known


def _fitted(inputs: Array, scale: float | None, model: ModelInfo) -> Array:
    """In the model's type, scaled, and with the axes of length 1 that the model has."""
    dtype = "float64" if model.precision == "float64" else "float32"
    if scale is not None:  # in float64, so that 255 times 1/255 is 1
        scaled = np.empty(inputs.shape, dtype)
        inputs = np.multiply(inputs, scale, out=scaled, dtype=np.float64, casting="same_kind")
    elif inputs.dtype.kind == "f":
        inputs = inputs.astype(dtype, copy=False)
    if _bare(inputs.shape[1:]) == _bare(model.input_shape):
        return inputs.reshape(len(inputs), *model.input_shape)
    return inputs


def _bare(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _chosen(inputs: Any, labels: Labels, rows: Rows) -> tuple[Any, Labels]:
    if rows is None:
        return inputs, labels
    try:
        wanted = np.arange(len(labels))[rows]
    except IndexError:
        wanted = np.zeros(0, np.int64)
    if not len(wanted):
        raise click.BadParameter(f"there are {len(labels)} samples", param_hint="--rows")
    if isinstance(inputs, list):
        return [inputs[row] for row in wanted], labels[wanted]
    return inputs[rows], labels[wanted]


def _arrays(file: Path) -> tuple[Array, Labels | None]:
    labels = None
    if file.suffix == ".npz":
        names = _names(file)
        inputs = read_array(f"{file}:{_sole(names, file)}")
        found = next((name for name in _LABELS if name in names), None)
        labels = None if found is None else _whole(read_array(f"{file}:{found}"), file.name)
    elif file.suffix == ".npy":
        inputs = np.load(file, mmap_mode="r", allow_pickle=False)
    else:
        raise click.BadParameter(
            f"{file.name} is neither a .npz or .npy file nor a folder of images", param_hint="DATA"
        )
    return inputs, labels


def _names(file: Path) -> list[str]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return list(archive)
    except (ValueError, OSError, EOFError) as error:
        raise click.BadParameter(f"{file.name} holds no arrays ({error})") from error


def _sole(names: Sequence[str], file: Path) -> str:
    candidates = [name for name in _INPUTS if name in names]
    others = [name for name in names if name not in _LABELS]
    if candidates or len(others) == 1:
        return (candidates or others)[0]
    raise click.BadParameter(
        f"{file.name} holds {', '.join(names) or 'nothing'}; call the array of the samples "
        f"{', '.join(_INPUTS[:-1])} or {_INPUTS[-1]}",
        param_hint="DATA",
    )


def _folder(folder: Path, model: ModelInfo) -> tuple[list[Path], Labels | None]:
    files = _images(folder)
    if files:
        return files, None
    classes = sorted(item for item in folder.iterdir() if item.is_dir() and _visible(item))
    numbers = _class_numbers([item.name for item in classes], model)
    found = [
        (file, number)
        for item, number in zip(classes, numbers, strict=True)
        for file in _images(item)
    ]
    if not found:
        raise click.BadParameter(f"{folder.name} holds no images", param_hint="DATA")
    return [file for file, _ in found], np.array([number for _, number in found], np.int64)


def _class_numbers(names: Sequence[str], model: ModelInfo) -> Sequence[int]:
    """Folders are called as the model's classes, or by their numbers; else their order counts."""
    if all(name in model.labels for name in names):
        return [model.labels.index(name) for name in names]
    if all(name.isdecimal() for name in names):
        return [int(name) for name in names]
    return range(len(names))


def _images(folder: Path) -> list[Path]:
    return sorted(
        item
        for item in folder.iterdir()
        if _visible(item) and item.suffix.lower() in _IMAGES and item.is_file()
    )


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _read_labels(name: str, model: ModelInfo) -> Labels:
    if name.endswith((".npy", ".npz")) or ".npz:" in name:
        return _whole(read_array(name), Path(name).name)
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{name} cannot be read", param_hint="--labels") from error
    return np.array([_class(line.strip(), model) for line in lines if line.strip()], np.int64)


def _class(word: str, model: ModelInfo) -> int:
    if word in model.labels:
        return model.labels.index(word)
    try:
        return int(word)
    except ValueError:
        raise click.BadParameter(
            f"{word!r} is no class; write its number, or its name as the model has it",
            param_hint="--labels",
        ) from None


def _whole(labels: Array, name: str) -> Labels:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise click.BadParameter(
            f"the labels of {name} are not one whole number for each sample", param_hint="--labels"
        )
    return labels.astype(np.int64)
