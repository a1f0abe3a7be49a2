"""Guided integrated gradients."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Plugin,
    logits_before,
    metric,
    output,
)

from .baselines import check_baseline
from .convergence import convergence_delta
from .gradients import warn_of_zeros
from .paths import BASELINE, PathParams, baseline_of

_CLOSED = 1e-12  # of a path's length, which may be left of a step
_ZERO = (
    "every attribution is zero: the target has no gradient along the path from the baseline to "
    "this input, or the two are the same"
)


class GuidedIntegratedGradientsParams(PathParams):
    steps: int = Field(200, ge=1, le=10_000, description="Gradients along the path.")
    fraction: float = Field(
        0.25,
        ge=0.01,
        le=1,
        description="Share of the input's values, those of the smallest gradients, that move "
        "together.",
    )
    max_distance: float = Field(
        0.02,
        ge=0,
        le=1,
        description="How far ahead of and behind the straight line a value may be, as a share of "
        "its way; 0 is the straight line, 1 sets no limit.",
    )
    quadrature: Literal["trapezoid", "left"] = Field(
        "trapezoid",
        description="A step's gradient: the mean of those at its two ends, or, as published, that "
        "at its beginning, whose sum can miss the target's difference by several times of it.",
    )
    anchors: int = Field(
        0, ge=0, le=1000, description="Points of the straight line that the path is led through."
    )


@dataclass(frozen=True)
class GuidedIntegratedGradientsResult:
    attributions: Tensor = output(
        "Share of each input value in the target's difference from the baseline, "
        "`(N, *input_shape)`, signed."
    )
    convergence_delta: Tensor = metric(
        "Sum of the attributions, less the target's value at the input and plus that at the "
        "baseline; 0 for the exact integral."
    )
    logits: Tensor | None = logits_before()


class GuidedIntegratedGradients(
    Plugin[GuidedIntegratedGradientsParams, GuidedIntegratedGradientsResult]
):
    """Integrated gradients along a path that moves the values of the smallest gradients first.

    The path from the baseline to the input is cut into steps of equal L1 length. Within a step,
    the `fraction` of the values whose gradient is smallest in magnitude move towards the input,
    then the next ones, until the step has its length; no value leaves the straight line by more
    than `max_distance` of its way. A value's attribution is the sum over steps of its gradient
    times its move. So regions of large gradients that matter little to the
    input are avoided, and the map has less noise. Values are in target units and sum to
    `S(x) - S(x')` as steps grow (completeness); `convergence_delta` is what the sum misses.

    Source: Kapishnikov, Venugopalan, Avci, Wedin, Terry & Bolukbasi 2021, "Guided Integrated
    Gradients: an Adaptive Path Method for Removing Noise".
    """

    name = "guided_integrated_gradients"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT})
    tensors: ClassVar[dict[str, AuxTensor]] = {"baseline": BASELINE}

    def check(self, model: Classifier, params: GuidedIntegratedGradientsParams) -> None:
        check_baseline(model, params.baseline)
        if params.anchors >= params.steps:
            raise InvalidRequest.field(
                "params.anchors",
                f"{params.anchors} anchors take at least {params.anchors + 1} steps",
            )

    def run(
        self, model: Classifier, batch: Batch, params: GuidedIntegratedGradientsParams, job: Job
    ) -> GuidedIntegratedGradientsResult:
        inputs, targets = batch.inputs, batch.targets
        baseline = baseline_of(model, batch, params.baseline)
        way = (inputs.double() - baseline).flatten(1)
        share = torch.zeros_like(way)  # of its way that each value has gone
        moved, before, total = (torch.zeros_like(way) for _ in range(3))

        def attributions() -> Tensor:
            return (way * total).reshape(inputs.shape).to(inputs.dtype)

        for step in job.track(params.steps + 1):
            x = baseline + (share * way).reshape(inputs.shape).to(inputs.dtype)
            found = model.gradient(inputs if step == params.steps else x, targets)
            gradient = found.inputs.flatten(1).double()
            trapezoid = params.quadrature == "trapezoid"
            total += moved * ((before + gradient) / 2 if trapezoid else before)
            job.preview(attributions=attributions)
            if step == 0:
                start = found.objective
            if step < params.steps:
                after = _advanced(share, way.abs(), gradient.abs(), step, params)
                share, moved, before = after, after - share, gradient
        result = attributions()
        warn_of_zeros(job, result, _ZERO)
        delta = convergence_delta(job, result, found.objective, start)
        return GuidedIntegratedGradientsResult(result, delta, found.logits)


def _advanced(
    share: Tensor,
    length: Tensor,
    slope: Tensor,
    step: int,
    params: GuidedIntegratedGradientsParams,
) -> Tensor:
    """The shares `(N, D)` of their ways that values have gone after a step.

    Args:
        share: before it.
        length: of each value's whole way, at least 0.
        slope: the magnitude of the gradient by each value.
        step: its number, from 0.
        params: of the path.
    """
    goal = (step + 1) / params.steps
    before, after = _anchors(step, params)
    low, high = max(goal - params.max_distance, before), min(goal + params.max_distance, after)
    share = share.clamp(min=low)
    closed = _CLOSED * length.sum(1)
    rank = 1 + math.floor(params.fraction * (length.shape[1] - 1))
    while True:
        gap = (length * (goal - share)).sum(1)
        waiting = gap > closed
        if not waiting.any():
            return share
        movable = (share < high) & (length > 0) & waiting[:, None]
        slopes = torch.where(movable, slope, torch.inf)
        chosen = movable & (slopes <= slopes.kthvalue(rank, dim=1, keepdim=True).values)
        room = torch.where(chosen, length * (high - share), 0).sum(1)
        # Where the chosen values are not enough, they go as far as they may, and others follow.
        part = torch.where(waiting, gap / room, 0)[:, None]
        share = torch.where(
            chosen,
            torch.where(part < 1, torch.lerp(share, share.new_tensor(high), part), high),
            share,
        )


def _anchors(step: int, params: GuidedIntegratedGradientsParams) -> tuple[float, float]:
    """The shares of the straight line at the anchors before and after a step."""
    parts = params.anchors + 1
    edges = [round(number * params.steps / parts) for number in range(parts + 1)]
    after = next(edge for edge in edges if edge > step)
    before = max(edge for edge in edges if edge <= step)
    return before / params.steps, after / params.steps
