"""Real inputs that a model's owner gives for its verification."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidRequest
from .inputs import ResolvedInput
from .original import InputSet

_BYTES = 256 << 20
_MOST = 32  # rows that are used
_AT_ONCE = 8


def read_samples(path: Path, inputs: InputSet, limits: Sequence[int]) -> list[Tensor]:
    """Batches of callers' rows from a `samples.npy` or `samples.npz`; at most 32 rows are used.

    Args:
        path: one array `(N, ...)` for a sole input, or an array for each input by its name, in the
            units that callers send.
        inputs: that callers send.
        limits: integers of each of them lie in [0, limit); 0 where unknown.

    Raises:
        InvalidRequest: naming `samples`, of another shape, type or range than the inputs'.
    """
    arrays = _arrays(path)
    names = [item.name for item in inputs.given]
    if None in arrays and len(names) == 1:
        arrays = {names[0]: arrays[None]}
    if arrays.keys() != {*names}:
        raise _wrong(
            f"give a samples.npz with an array for each of {', '.join(names)}"
            if len(names) > 1
            else f"give a samples.npy, or a samples.npz with one array called {names[0]}"
        )
    limits = limits or (0,) * len(names)
    values = [
        _checked(item, arrays[item.name], limit)
        for item, limit in zip(inputs.given, limits, strict=True)
    ]
    counts = {len(value) for value in values}
    if len(counts) > 1 or 0 in counts:
        raise _wrong(f"every input needs the same number of rows, at least one, not {counts}")
    try:
        rows = inputs.pack([value[:_MOST] for value in values])
        inputs.unpack(rows)
    except InvalidRequest as error:
        raise _wrong(error.message.removeprefix("inputs: ")) from None
    return list(torch.split(rows, _AT_ONCE))


def _wrong(description: str) -> InvalidRequest:
    return InvalidRequest.field("samples", description)


def _arrays(path: Path) -> Mapping[str | None, Any]:
    """The arrays of a file by name; that of a `.npy` under None."""
    import numpy as np

    try:
        if path.stat().st_size > _BYTES or _unpacked(path) > _BYTES:
            raise _wrong(f"{path.name} holds over {_BYTES >> 20} MiB; a few rows are enough")
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {None: found}
        with found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise _wrong(f"{path.name} is no NumPy file of numbers") from None


def _unpacked(path: Path) -> int:
    if path.suffix != ".npz":
        return 0
    with zipfile.ZipFile(path) as archive:
        return sum(item.file_size for item in archive.infolist())


def _checked(item: ResolvedInput, array: Any, limit: int) -> Tensor:
    sizes = item.sizes or item.shape
    shape = tuple(array.shape[1:])
    fits = len(shape) == len(sizes) and all(
        known in (None, size) and size for known, size in zip(sizes, shape, strict=True)
    )
    if not array.ndim or not fits:
        wanted = ["rows", *("free" if size is None else str(size) for size in sizes)]
        raise _wrong(
            f"{item.name} has the shape {list(array.shape)}, where [{', '.join(wanted)}] is needed"
        )
    if array.dtype.kind not in "fiub":
        raise _wrong(f"{item.name} holds {array.dtype}, which are no numbers")
    integers = not item.dtype.is_floating_point
    if integers and array.dtype.kind == "f":
        raise _wrong(f"{item.name} holds {array.dtype}, where integers are needed")
    value = torch.from_numpy(array[:_MOST].astype("float64")).to(item.dtype)
    if not value.isfinite().all():
        raise _wrong(f"{item.name} holds NaN or infinity")
    least, most = item.bounds or (0 if integers else None, limit - 1 if limit else None)
    for bound, beyond, side in ((least, torch.lt, "below"), (most, torch.gt, "above")):
        # compared in the model's own type: a bound such as 0.1 is rounded as the input is
        if bound is not None and bool(beyond(value, torch.tensor(bound, dtype=value.dtype)).any()):
            raise _wrong(f"{item.name} has values {side} {bound:g}")
    return value
