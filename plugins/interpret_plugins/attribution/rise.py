"""RISE: randomized input sampling for explanation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from interpret_server.noise import generator
from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    Plugin,
    logits_before,
    output,
)

from .perturbation import (
    Hiding,
    PerturbationParams,
    changeable,
    channel_axis,
    fill_value,
    joined,
    warn_unchanged,
)


class RISEParams(PerturbationParams):
    masks: int = Field(4000, ge=1, le=1_000_000, description="Random masks for each input.")
    cells: int = Field(
        7,
        ge=1,
        le=1000,
        description="Cells of a mask's grid along every axis but the channels'; never more than "
        "the axis has values.",
    )
    keep: float = Field(0.5, gt=0, lt=1, description="Probability that a cell is kept.")


@dataclass(frozen=True)
class RISEResult:
    attributions: Tensor = output(
        "Mean score of the masked inputs, weighted by how far each mask keeps the value, "
        "`(N, *input_shape)`, in units of the score; the same for all channels.",
        shared=True,
    )
    logits: Tensor | None = logits_before()


class RISE(Plugin[RISEParams, RISEResult]):
    """The mean score of randomly masked inputs, given that a value is kept.

    N masks M come from grids whose cells are 1 with probability p, else 0, upsampled linearly to
    one cell more than the input has and cut out at a random shift of less than a cell. Masked
    values fade into `fill`, and the importance of a value is `sum_i score(x * M_i) M_i / (N p)`.
    A map is read by its differences: its level is that of the score. The error falls as one over
    the square root of N. No gradient is needed.

    Source: Petsiuk, Das & Saenko 2018, "RISE: Randomized Input Sampling for Explanation of
    Black-box Models", equation 6 and section 3.2. There the score is a probability and values fade
    into the mean of the data.
    """

    name = "rise"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.SCORES})

    def check(self, model: Classifier, params: RISEParams) -> None:
        fill_value(model, params.fill)

    def run(self, model: Classifier, batch: Batch, params: RISEParams, job: Job) -> RISEResult:
        row = tuple(batch.inputs.shape[1:])
        shapes = changeable(model, row)
        channels = [channel_axis(model, shape) for shape in shapes]
        masks = Masks(
            [_spatial(shape, axis) for shape, axis in zip(shapes, channels, strict=True)],
            params.cells,
            params.keep,
        )

        def kept(rows: Tensor, numbers: Tensor) -> Tensor:
            drawn = masks.draw([batch.seeds[index] for index in rows.tolist()], numbers.tolist())
            values = [
                _with_channels(mask.to(batch.inputs), shape, axis)
                for mask, shape, axis in zip(drawn, shapes, channels, strict=True)
            ]
            return joined(model, row, values, 1)

        # All channels of a row are masked alike: one of them is summed.
        axis = channels[0] if model.packing is None else None
        total = batch.inputs.new_zeros(len(batch), *_spatial(row, axis), dtype=torch.float64)
        unchanged = torch.ones(len(batch), dtype=torch.bool, device=total.device)
        tried = total.new_zeros(len(batch))

        def attributions() -> Tensor:
            mean = total / (tried.clamp(min=1) * params.keep).reshape(-1, *(1,) * (total.dim() - 1))
            if model.packing is not None:
                parts = model.packing.unpack(mean)
                changed = [
                    value
                    for part, value in zip(model.packing.parts, parts, strict=True)
                    if not part.fixed
                ]
                mean = joined(model, row, changed, 0)
            return _with_channels(mean, row, axis).to(model.dtype, copy=True).contiguous()

        hiding = Hiding(model, batch, params)
        for done in hiding.passes(job, [params.masks] * len(batch), kept):
            mask = done.kept if axis is None else done.kept.select(axis + 1, 0)
            _add(total, done.rows, done.scores, mask)
            tried += done.rows.bincount(minlength=len(batch))
            unchanged[done.rows[done.scores != hiding.before[done.rows]]] = False
            job.preview(attributions=attributions)
        warn_unchanged(job, unchanged)
        return RISEResult(attributions(), hiding.logits)


class Masks:
    """The random masks of some shapes that are masked together.

    Args:
        shapes: each `(L_1, ..., L_d)`.
        cells: along every axis, no more than its length.
        keep: the probability of a cell to be 1.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], cells: int, keep: float) -> None:
        self._axes = [[_cuts(length, min(cells, length)) for length in shape] for shape in shapes]
        self._shapes, self._keep = shapes, keep

    def draw(self, seeds: Sequence[int], numbers: Sequence[int]) -> list[Tensor]:
        """Masks `(P, *shape)` float32 in [0, 1] for every shape.

        Args:
            seeds: of P rows; a mask depends on its row's seed and its number alone.
            numbers: of P masks.
        """
        sources = [generator(*pair) for pair in zip(seeds, numbers, strict=True)]
        return [
            self._upsampled(axes, sources).reshape(len(sources), *shape)
            for axes, shape in zip(self._axes, self._shapes, strict=True)
        ]

    def _upsampled(self, axes: Sequence[Tensor], sources: Sequence[torch.Generator]) -> Tensor:
        grid = [cuts.shape[2] for cuts in axes]
        drawn = [torch.rand(grid, generator=source) < self._keep for source in sources]
        values = torch.stack(drawn).float()
        for cuts in axes:
            shifts = [int(torch.randint(len(cuts), (), generator=source)) for source in sources]
            # The first axis becomes the last one, so that all are in order again at the end.
            values = values.reshape(len(sources), cuts.shape[2], -1).transpose(1, 2)
            values = torch.bmm(values, cuts[shifts].transpose(1, 2))
        return values


def _cuts(length: int, cells: int) -> Tensor:
    """The weights of cells at every place of an axis, for every shift: `(shifts, length, cells)`.

    Cells are as long as makes them cover the axis, and are spread over one cell more.
    """
    size = -(-length // cells)
    spread = functional.interpolate(
        torch.eye(cells).unsqueeze(0), (cells + 1) * size, mode="linear", align_corners=False
    )[0].t()
    return torch.stack([spread[shift : shift + length] for shift in range(size)])


def _add(total: Tensor, rows: Tensor, scores: Tensor, masks: Tensor) -> None:
    """Add every mask times its score to its row's total."""
    first, last = int(rows[0]), int(rows[-1])
    weights = scores.new_zeros(last - first + 1, len(rows))
    weights[rows - first, torch.arange(len(rows), device=rows.device)] = scores
    part = total[first : last + 1]
    part += (weights @ masks.flatten(1).double()).reshape(part.shape)


def _spatial(shape: Sequence[int], channel: int | None) -> tuple[int, ...]:
    return tuple(size for axis, size in enumerate(shape) if axis != channel)


def _with_channels(values: Tensor, shape: Sequence[int], channel: int | None) -> Tensor:
    """`(P, *spatial)` to `(P, *shape)`, the same for all channels."""
    expanded = values if channel is None else values.unsqueeze(channel + 1)
    return expanded.expand(len(values), *shape)
