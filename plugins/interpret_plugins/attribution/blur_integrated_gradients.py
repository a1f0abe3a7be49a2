"""Blur integrated gradients."""

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from pydantic import Field
from torch import Tensor

from interpret_plugins.synthesis.spatial import Axes
from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Params,
    Plugin,
    logits_before,
    metric,
    output,
)

from .convergence import convergence_delta
from .gradients import warn_of_zeros
from .passes import passes, variant_gradients
from .scale_space import ScaleSpace

_FINEST = 0.5  # values of an axis, below which a geometric schedule is linear
_ZERO = (
    "every attribution is zero: the target has no gradient while this input is blurred, or blur "
    "does not change it"
)


class Schedule(StrEnum):
    """How the blur's standard deviation grows with the step."""

    LINEAR = "linear"
    VARIANCE = "variance"  # its square grows evenly
    GEOMETRIC = "geometric"  # by the same factor each step, once above half a value


class BlurIntegratedGradientsParams(Params):
    steps: int = Field(50, ge=1, le=1000, description="Gradients along the path.")
    max_sigma: float | None = Field(
        None,
        gt=0,
        le=10_000,
        description="Standard deviation of the blur where the path begins, in values of an axis "
        "(pixels). By default a sixth of the longest spatial axis.",
    )
    schedule: Schedule = Field(
        Schedule.LINEAR,
        description="How the standard deviation grows from step to step: linear, variance (its "
        "square grows evenly) or geometric (by the same factor, once above half a pixel).",
    )


@dataclass(frozen=True)
class BlurIntegratedGradientsResult:
    attributions: Tensor = output(
        "Share of each input value in the target's difference from the blurred input, "
        "`(N, *input_shape)`, signed."
    )
    blurred: Tensor = output("The blurred input where the path begins, `(N, *input_shape)`.")
    convergence_delta: Tensor = metric(
        "Sum of the attributions, less the target's value at the input and plus that at the "
        "blurred input; 0 for the exact integral."
    )
    logits: Tensor | None = logits_before()


class BlurIntegratedGradients(Plugin[BlurIntegratedGradientsParams, BlurIntegratedGradientsResult]):
    """Integrated gradients along the path on which the input comes out of a Gaussian blur.

    `- integral over s from 0 to max_sigma of dS(L(s)) / dL * dL(s) / ds`, with `L(s)` the input
    blurred with standard deviation s over its spatial axes, channel by channel, and edges mirrored.
    No baseline has to be chosen, and no detail appears that the input does not have. The integral
    is the sum over steps of the gradient in the middle of a step times how the input changes over
    it. Values are in target units and sum to `S(x) - S(L(max_sigma))`; `convergence_delta` is what
    the sum misses, and rows where that is more than 5% of the difference are warned about. Inputs
    need spatial axes: images, signals, volumes, spectrograms.

    Source: Xu, Venugopalan & Sundararajan 2020, "Attribution in Scale and Space".
    """

    name = "blur_integrated_gradients"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT})

    def check(self, model: Classifier, params: BlurIntegratedGradientsParams) -> None:
        if model.packing is not None or model.encoded or not Axes.of(model).spatial:
            raise InvalidRequest.field(
                "model",
                f"inputs of {model.name} have no spatial axes that could be blurred; take "
                "integrated_gradients",
            )

    def run(
        self, model: Classifier, batch: Batch, params: BlurIntegratedGradientsParams, job: Job
    ) -> BlurIntegratedGradientsResult:
        inputs, targets = batch.inputs, batch.targets
        axes = Axes.of(model).spatial
        space = ScaleSpace(inputs, axes)
        largest = params.max_sigma or max(inputs.shape[axis] for axis in axes) / 6
        sigmas = [_sigma(params, largest, step) for step in range(params.steps + 1)]
        parts = passes(job, len(batch), params.steps)
        total = torch.zeros_like(inputs, dtype=torch.float64)
        finer = inputs
        for number in job.track(len(parts) + 1):
            if number < len(parts):
                part = parts[number]
                middles = torch.stack([space.at(sum(sigmas[i : i + 2]) / 2) for i in part])
                for step, gradient in zip(
                    part, variant_gradients(model, middles, targets), strict=True
                ):
                    coarser = space.at(sigmas[step + 1])
                    total += (finer - coarser).double() * gradient
                    finer = coarser
                job.preview(attributions=total)
            else:
                with torch.no_grad():
                    end, logits = model.objective(inputs, targets)
                    start, _ = model.objective(finer, targets)
        attributions = total.to(inputs.dtype)
        warn_of_zeros(job, attributions, _ZERO)
        delta = convergence_delta(job, attributions, end, start)
        return BlurIntegratedGradientsResult(attributions, finer, delta, logits)


def _sigma(params: BlurIntegratedGradientsParams, largest: float, step: int) -> float:
    """The standard deviation after a step; `largest` after the last one."""
    share = step / params.steps
    match params.schedule:
        case Schedule.LINEAR:
            return largest * share
        case Schedule.VARIANCE:
            return largest * math.sqrt(share)
        case Schedule.GEOMETRIC:
            return _FINEST * math.expm1(share * math.log1p(largest / _FINEST))
