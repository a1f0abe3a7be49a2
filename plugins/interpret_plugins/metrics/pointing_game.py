"""The pointing game: whether the largest attribution lies on the object."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_plugins.attribution.perturbation import channel_axis
from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Plugin,
    metric,
    output,
)

from .judged import USES, Positions, judged
from .masks import MASK, MaskParams, evidence, inside


class PointingGameParams(MaskParams):
    tolerance: float = Field(
        0.0,
        ge=0,
        le=1e5,
        description="Distance from the object, in values of an axis, that still counts as a hit.",
    )


@dataclass(frozen=True)
class PointingGameResult:
    hit: Tensor = metric(
        "1 where the largest attribution lies on the object, else 0.", better="high"
    )
    chance: Tensor = metric("The object's share of all positions: hits of a random attribution.")
    attributions: Tensor = output("What was judged, as its method gave it.")


class PointingGame(Plugin[PointingGameParams, PointingGameResult]):
    """Whether the position of the largest attribution lies on the object that `mask` shows.

    The share of hits over many inputs is the pointing game's accuracy. Channels are summed. Of
    several equal largest positions the first counts; a row without any attribution misses.

    Source: Zhang et al. 2016, "Top-down Neural Attention by Excitation Backprop", which counts a
    hit within 15 pixels: `tolerance` 15.
    """

    name = "pointing_game"
    kind = Kind.METRIC
    uses: ClassVar[Mapping[str, Kind]] = USES
    tensors: ClassVar[Mapping[str, AuxTensor]] = MASK

    def check(self, model: Classifier, params: PointingGameParams) -> None:
        if params.tolerance and (
            model.packing is not None or channel_axis(model, model.input_shape) is None
        ):
            raise InvalidRequest.field(
                "params.tolerance", f"the input of {model.name} has no spatial axes that are known"
            )

    def run(
        self, model: Classifier, batch: Batch, params: PointingGameParams, job: Job
    ) -> PointingGameResult:
        positions = Positions.of(model, tuple(batch.inputs.shape[1:]))
        mask = inside(model, batch, positions)
        for _ in job.track(1):
            attributions = judged(model, batch, params, job)
        found = evidence(model, batch, attributions, positions, params)
        peak = found.argmax(1)
        distance = _distances(model, batch, positions, peak) if params.tolerance else None
        near = mask.gather(1, peak[:, None])[:, 0]
        if distance is not None:
            near = distance.masked_fill(~mask, torch.inf).amin(1) <= params.tolerance
        hit = near & found.any(1)
        share = mask.double().mean(1)
        dtype = batch.inputs.dtype
        return PointingGameResult(hit.to(dtype), share.to(dtype), attributions)


def _distances(model: Classifier, batch: Batch, positions: Positions, peak: Tensor) -> Tensor:
    """From every position to each row's peak, `(N, count)`, in values of an axis."""
    row = tuple(batch.inputs.shape[1:])
    channel = channel_axis(model, row)
    sizes = [size for axis, size in enumerate(row) if axis != channel]
    grid = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
    places = torch.stack([axis.flatten() for axis in grid], 1).to(batch.inputs.device).double()
    distances: Tensor = (places[None] - places[peak][:, None]).norm(dim=2)
    return distances
