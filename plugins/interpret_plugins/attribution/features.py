"""Which values of an input are hidden together: cells of a grid, or groups of the caller's."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from interpret_server.plugin import Batch, Classifier, InvalidRequest

from .perturbation import MAX_VARIANTS, changeable, channel_axis, joined, sizes_per_axis


def grid(model: Classifier, row: tuple[int, ...], cell: int | Sequence[int] | None) -> Tensor:
    """The number of the grid cell of each value, `row` int64; -1 for what is only carried along.

    Cells at the end of an axis may be smaller. Each packed input has a grid of its own.

    Args:
        model: that takes the input.
        row: shape of an input row.
        cell: sizes as `sizes_per_axis` takes them; None for an eighth of each axis, rounded up.

    Raises:
        InvalidRequest: naming `params.cell`.
    """
    parts, first = [], 0
    for shape in changeable(model, row):
        channel = channel_axis(model, shape)
        eighth = [-(-size // 8) for axis, size in enumerate(shape) if axis != channel]
        cells = sizes_per_axis("cell", eighth if cell is None else cell, shape, channel)
        counts = [-(-length // size) for length, size in zip(shape, cells, strict=True)]
        number = torch.zeros((), dtype=torch.float64)
        for length, size, count in zip(shape, cells, counts, strict=True):
            place = torch.arange(length, dtype=torch.float64) // size
            number = number.unsqueeze(-1) * count + place
        parts.append(first + number.unsqueeze(0))
        first += math.prod(counts)
        if first > MAX_VARIANTS:
            raise InvalidRequest.field(
                "params.cell",
                f"{first} cells; at most {MAX_VARIANTS} are tried; take larger ones",
            )
    return joined(model, row, parts, -1)[0].to(model.device, torch.int64)


def given(model: Classifier, batch: Batch) -> Tensor:
    """The caller's tensor `features` as `(N, *row)` int64; -1 for what is only carried along.

    Raises:
        InvalidRequest: naming `tensors.features`.
    """
    field, numbers = "tensors.features", batch.tensors["features"]
    row = tuple(batch.inputs.shape[1:])
    shapes = changeable(model, row)
    if len(shapes) > 1:
        raise InvalidRequest.field(
            field, f"{model.name} takes several inputs; leave `features` out and use a grid"
        )
    channel = channel_axis(model, shapes[0])
    if channel is not None and numbers.dim() == len(shapes[0]):
        numbers = numbers.unsqueeze(channel + 1)
    try:
        numbers = numbers.expand(len(batch), *shapes[0])
    except RuntimeError:
        found = list(batch.tensors["features"].shape[1:])
        raise InvalidRequest.field(
            field, f"rows of shape {found} do not fit an input of {list(shapes[0])}"
        ) from None
    if (numbers != numbers.round()).any():
        raise InvalidRequest.field(field, "the numbers of features must be whole")
    if max(len(row.unique()) for row in numbers) > MAX_VARIANTS:
        raise InvalidRequest.field(field, f"a row has more than {MAX_VARIANTS} features")
    return joined(model, row, [numbers.double()], -1).to(torch.int64).clamp(min=-1)


def renumbered(features: Tensor) -> tuple[Tensor, list[int]]:
    """Features numbered from 0 without gaps in each row, in ascending order.

    Args:
        features: `(N, *row)` int64; negative ones stay as they are.

    Returns:
        The same with new numbers, and how many features each row has.
    """
    rows, counts = [], []
    for row in features:
        known, index = row.unique(return_inverse=True)
        without = int((known < 0).sum())
        rows.append((index - without).clamp(min=-1))
        counts.append(len(known) - without)
    return torch.stack(rows), counts
