"""Occlusion: how far a target falls when a window covers part of the input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Plugin,
    logits_before,
    output,
)

from .perturbation import (
    MAX_VARIANTS,
    Hiding,
    PerturbationParams,
    changeable,
    channel_axis,
    fill_value,
    joined,
    sizes_per_axis,
)

_Size = Annotated[int, Field(ge=1)]


class Windows:
    """All positions of a window in one shape.

    Args:
        shape: `(L_1, ..., L_d)`.
        window: its size on each axis.
        stride: from one position to the next on each axis.
        device: where masks are made.

    Attributes:
        count: of positions.
    """

    def __init__(
        self,
        shape: Sequence[int],
        window: Sequence[int],
        stride: Sequence[int],
        device: torch.device,
    ) -> None:
        self._axes = []
        for length, size, step in zip(shape, window, stride, strict=True):
            starts = torch.arange(0, -(-(length - size) // step) + 1) * step
            places = torch.arange(length)
            covers = (places >= starts.unsqueeze(1)) & (places < starts.unsqueeze(1) + size)
            self._axes.append(covers.double().to(device))  # (positions, length)
        self.grid = tuple(len(covers) for covers in self._axes)
        self.count = math.prod(self.grid)

    def covered(self, numbers: Tensor) -> Tensor:
        """`(P, *shape)` float64: 1 under the windows of these numbers; 0 for numbers out of range.

        The last axis moves fastest.
        """
        inside = (numbers >= 0) & (numbers < self.count)
        places = torch.unravel_index(numbers.clamp(0, self.count - 1), self.grid)
        mask = inside.double()
        for covers, place in zip(self._axes, places, strict=True):
            mask = mask.unsqueeze(-1) * covers[place].reshape(
                len(numbers), *(1,) * (mask.dim() - 1), -1
            )
        return mask

    def mean(self, values: Tensor) -> Tensor:
        """`(N, count)`, one value for each window, to their mean over each place, `(N, *shape)`."""
        found = values.reshape(len(values), *self.grid)
        for covers in self._axes:
            # The axis that is summed over goes, and the places follow at the end.
            found = torch.tensordot(found, covers / covers.sum(0), dims=([1], [0]))
        return found


class OcclusionParams(PerturbationParams):
    window: _Size | list[_Size] | None = Field(
        None,
        description="Size of the window, in input values: one number for every axis but the "
        "channels', or a list with one for each, with or without the axis of channels, which is "
        "else covered whole. By default an eighth of each axis, rounded up.",
    )
    stride: _Size | list[_Size] | None = Field(
        None,
        description="Steps between windows, given as `window` is and never larger than it. By "
        "default half the window, rounded up.",
    )


@dataclass(frozen=True)
class OcclusionResult:
    attributions: Tensor = output(
        "How far the target falls while a value is covered, averaged over the windows that cover "
        "it, `(N, *input_shape)`, signed.",
        shared=True,
    )
    logits: Tensor | None = logits_before()


class Occlusion(Plugin[OcclusionParams, OcclusionResult]):
    """The fall of a target's score when a window covers part of the input, averaged per value.

    A window slides over all axes but that of the channels, which it covers whole, and what is under
    it is replaced by `fill`. A value's attribution is the mean of `score(x) - score(covered x)`
    over the windows that cover it; windows that reach beyond the end are cut. Positive values speak
    for the target. No gradient is needed: one forward pass for each window.

    Source: Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks",
    section 4.2; averaged over overlapping windows.
    """

    name = "occlusion"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.SCORES})

    def check(self, model: Classifier, params: OcclusionParams) -> None:
        fill_value(model, params.fill)
        if None not in model.input_sizes:
            _windows(model, model.input_shape, params)

    def run(
        self, model: Classifier, batch: Batch, params: OcclusionParams, job: Job
    ) -> OcclusionResult:
        row = tuple(batch.inputs.shape[1:])
        windows = _windows(model, row, params)
        counts = [grid.count for grid in windows]
        starts = list(accumulate(counts, initial=0))

        def kept(rows: Tensor, numbers: Tensor) -> Tensor:
            covered = [
                grid.covered(numbers - start)
                for grid, start in zip(windows, starts[:-1], strict=True)
            ]
            return joined(model, row, [1 - mask for mask in covered], 1)

        def attributions(drops: Tensor) -> Tensor:
            means = [
                grid.mean(part)
                for grid, part in zip(windows, torch.split(drops, counts, 1), strict=True)
            ]
            return joined(model, row, means, 0).to(model.dtype)

        hiding = Hiding(model, batch, params)
        drops = hiding.drops(job, [starts[-1]] * len(batch), kept, attributions)
        return OcclusionResult(attributions(drops), hiding.logits)


def _windows(model: Classifier, row: tuple[int, ...], params: OcclusionParams) -> list[Windows]:
    """The windows of each of the inputs that a row holds.

    Raises:
        InvalidRequest: naming `params.window` or `params.stride`.
    """
    grids = []
    for shape in changeable(model, row):
        channel = channel_axis(model, shape)
        spatial = [size for axis, size in enumerate(shape) if axis != channel]
        given = [-(-size // 8) for size in spatial] if params.window is None else params.window
        window = sizes_per_axis("window", given, shape, channel)
        if any(size > length for size, length in zip(window, shape, strict=True)):
            raise InvalidRequest.field(
                "params.window", f"{list(window)} is larger than an input of {list(shape)}"
            )
        if params.stride is None:
            stride = tuple(-(-size // 2) for size in window)
        else:
            stride = sizes_per_axis("stride", params.stride, shape, channel)
        for step, size, length in zip(stride, window, shape, strict=True):
            if step > size < length:
                raise InvalidRequest.field(
                    "params.stride",
                    f"{list(stride)} leaves gaps between windows of {list(window)}",
                )
        count = math.prod(
            -(-(length - size) // step) + 1
            for length, size, step in zip(shape, window, stride, strict=True)
        )
        if count > MAX_VARIANTS:
            raise InvalidRequest.field(
                "params.stride",
                f"{count} windows; at most {MAX_VARIANTS} are tried, so take longer strides",
            )
        grids.append(Windows(shape, window, stride, model.device))
    return grids
