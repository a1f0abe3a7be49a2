"""Integrated gradients."""

from dataclasses import dataclass
from typing import ClassVar

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
from .passes import passes, variant_gradients
from .paths import BASELINE, PathParams, baseline_of
from .quadrature import Quadrature, nodes

_ZERO = (
    "every attribution is zero: the target has no gradient between the baseline and this input, or "
    "the two are the same"
)


class IntegratedGradientsParams(PathParams):
    steps: int = Field(50, ge=1, le=1000, description="Gradients along the path.")
    quadrature: Quadrature = Field(
        Quadrature.GAUSS_LEGENDRE,
        description="Where on the path gradients are taken: gauss_legendre, riemann_midpoint, or "
        "trapezoid with both ends (2 steps at least).",
    )


@dataclass(frozen=True)
class IntegratedGradientsResult:
    attributions: Tensor = output(
        "Share of each input value in the target's difference from the baseline, "
        "`(N, *input_shape)`, signed."
    )
    convergence_delta: Tensor = metric(
        "Sum of the attributions, less the target's value at the input and plus that at the "
        "baseline; 0 for the exact integral."
    )
    logits: Tensor | None = logits_before()


class IntegratedGradients(Plugin[IntegratedGradientsParams, IntegratedGradientsResult]):
    """The gradient of the target, averaged along the straight line from a baseline to the input.

    `(x - x') * integral over a from 0 to 1 of dS(x' + a (x - x')) / dx`, x' being the baseline.
    Values are in target units and sum to `S(x) - S(x')` (completeness); `convergence_delta` is what
    the sum misses, and rows where that is more than 5% of the difference are warned about. Tokens
    are attributed by their embeddings. Several points of the path go through the model at once;
    sums are kept in float64.

    Source: Sundararajan, Taly & Yan 2017, "Axiomatic Attribution for Deep Networks", equation 1;
    completeness is proposition 1, and the number of steps is the subject of section 5.
    """

    name = "integrated_gradients"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT})
    tensors: ClassVar[dict[str, AuxTensor]] = {"baseline": BASELINE}

    def check(self, model: Classifier, params: IntegratedGradientsParams) -> None:
        check_baseline(model, params.baseline)
        if params.quadrature is Quadrature.TRAPEZOID and params.steps < 2:
            raise InvalidRequest.field("params.steps", "the trapezoid rule takes at least 2 steps")

    def run(
        self, model: Classifier, batch: Batch, params: IntegratedGradientsParams, job: Job
    ) -> IntegratedGradientsResult:
        inputs, targets = batch.inputs, batch.targets
        baseline = baseline_of(model, batch, params.baseline)
        points, weights = nodes(params.quadrature, params.steps)
        parts = passes(job, len(batch), params.steps)
        average = torch.zeros_like(inputs, dtype=torch.float64)
        done = 0.0  # of the path

        def running() -> Tensor:
            return ((inputs.double() - baseline) * average / done).to(inputs.dtype)

        for step in job.track(len(parts) + 1):
            if step < len(parts):
                part = parts[step]
                places = inputs.new_tensor(points[part.start : part.stop])
                variants = torch.lerp(baseline, inputs, places.view(-1, *(1,) * inputs.dim()))
                gradients = variant_gradients(model, variants, targets)
                for number, gradient in zip(part, gradients, strict=True):
                    average.add_(gradient, alpha=weights[number])
                    done += weights[number]
                job.preview(attributions=running)
            else:
                with torch.no_grad():
                    end, logits = model.objective(inputs, targets)
                    start, _ = model.objective(baseline, targets)
        attributions = ((inputs.double() - baseline) * average).to(inputs.dtype)
        warn_of_zeros(job, attributions, _ZERO)
        delta = convergence_delta(job, attributions, end, start)
        return IntegratedGradientsResult(attributions, delta, logits)
