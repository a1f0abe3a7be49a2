"""Which values of an input are hidden together: cells, superpixels, or groups of the caller's."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import AuxTensor, Batch, Classifier, InvalidRequest, Job

from .perturbation import (
    MAX_VARIANTS,
    PerturbationParams,
    changeable,
    channel_axis,
    joined,
    sizes_per_axis,
)
from .superpixels import check_superpixels, superpixels

FEATURES: Mapping[str, AuxTensor] = {
    "features": AuxTensor(
        "Whole numbers, in place of the parameter `features`: values with the same number are "
        "hidden together, those with a negative number never. Its rows have the input's shape, or "
        "one that broadcasts to it; the axis of channels may be left out.",
        like_input=False,
    )
}

_WHOLE = (
    "the whole input became a single superpixel, because its values vary too much from place to "
    "place: raise `compactness` or `segments`"
)

_LARGEST_NUMBER = 2**53  # to which every whole number is exact
_Size = Annotated[int, Field(ge=1)]


class FeatureParams(PerturbationParams):
    """What every method that hides whole features can be told."""

    features: Literal["grid", "superpixels", "values"] = Field(
        "grid",
        description="What is hidden together, where the request brings no tensor `features`: the "
        "cells of a grid; superpixels of images, or contiguous segments of signals, found in each "
        "row by itself; or every value alone, as for columns of a table (tokens whole).",
    )
    cell: _Size | list[_Size] | None = Field(
        None,
        description="Size of the grid's cells, in input values: one number for every axis but the "
        "channels', or a list with one for each, with or without the axis of channels, which a "
        "cell else has whole. By default an eighth of each axis, rounded up.",
    )
    segments: int = Field(
        50, ge=1, le=10_000, description="About how many superpixels an input is cut into."
    )
    compactness: float = Field(
        10.0,
        gt=0,
        le=10_000,
        description="Superpixels are the squarer, the greater this is: the difference in colour "
        "(CIELAB; for other than three channels 100 is the width of the bounds) that counts as "
        "much as the distance between neighbouring superpixels. Noisy inputs need more of it, or "
        "few superpixels are left.",
    )


class Features(NamedTuple):
    """The features of N rows.

    Args:
        numbers: `(N, *row)` int64, the feature of each value, from 0 without gaps in each row; -1
            where a value is never hidden.
        counts: how many each row has.
    """

    numbers: Tensor
    counts: list[int]

    def spread(self, row: int, values: Tensor) -> Tensor:
        """`(M, ...)`, one for each feature of a row, to every value's, `(*row, ...)`; else 0."""
        nothing = values.new_zeros(1, *values.shape[1:])
        return torch.cat([values, nothing])[self.numbers[row]]  # -1 is the last one


def check_features(model: Classifier, params: FeatureParams) -> None:
    """Refuse what does not suit the model, as far as it can be told without an input.

    Raises:
        InvalidRequest: naming the parameter.
    """
    if params.features == "superpixels":
        check_superpixels(model, model.input_shape)
    elif params.features == "grid" and None not in model.input_sizes:
        grid(model, model.input_shape, params.cell)


def features_of(
    model: Classifier, batch: Batch, params: FeatureParams, job: Job, most: int = MAX_VARIANTS
) -> Features:
    """The features of a batch: the caller's, or what the parameters ask for.

    Args:
        model: that takes the inputs.
        batch: what is explained.
        params: which features, where the caller brings none.
        job: warns about rows that could not be cut.
        most: features that a row may have.

    Raises:
        InvalidRequest: naming the parameter, or `tensors.features`.
    """
    row = tuple(batch.inputs.shape[1:])
    if "features" in batch.tensors:
        field, found = "tensors.features", given(model, batch)
    elif params.features == "superpixels":
        field = "params.segments"
        found = superpixels(model, batch.inputs, params.segments, params.compactness)
    elif params.features == "grid":
        field = "params.cell"
        found = grid(model, row, params.cell).expand(batch.inputs.shape)
    else:
        field, found = "params.features", single(model, row).expand(batch.inputs.shape)
    features = renumbered(found)
    if max(features.counts) > most:
        raise InvalidRequest.field(
            field, f"{max(features.counts)} features in a row; at most {most} are tried together"
        )
    if field == "params.segments" and params.segments > 1:
        whole = torch.tensor(features.counts, device=found.device) == 1
        if whole.any():
            job.warn(whole, _WHOLE)
    return features


def single(model: Classifier, row: tuple[int, ...]) -> Tensor:
    """The number of each value, `row` int64, the same for all of a token; -1 for what is carried.

    Args:
        model: that takes the input.
        row: shape of an input row.
    """
    parts, first = [], 0
    for shape in changeable(model, row):
        whole = 1
        if model.encoded and (channel := channel_axis(model, shape)) is not None:
            whole = shape[channel]
        count = math.prod(shape) // whole
        number = torch.arange(first, first + count, dtype=torch.float64).repeat_interleave(whole)
        parts.append(number.reshape(1, *shape))
        first += count
    return joined(model, row, parts, -1)[0].to(model.device, torch.int64)


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
    if (numbers.double().abs() > _LARGEST_NUMBER).any():
        raise InvalidRequest.field(field, f"the numbers of features are at most {_LARGEST_NUMBER}")
    if max(len(row.unique()) for row in numbers) > MAX_VARIANTS:
        raise InvalidRequest.field(field, f"a row has more than {MAX_VARIANTS} features")
    return joined(model, row, [numbers.double()], -1).to(torch.int64).clamp(min=-1)


def renumbered(features: Tensor) -> Features:
    """Features numbered from 0 without gaps in each row, in ascending order.

    Args:
        features: `(N, *row)` int64; negative ones stay as they are.
    """
    rows, counts = [], []
    for row in features:
        known, index = row.unique(return_inverse=True)
        without = int((known < 0).sum())
        rows.append((index - without).clamp(min=-1))
        counts.append(len(known) - without)
    return Features(torch.stack(rows), counts)
