"""SmoothGrad, its square and VarGrad."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.models.relu_rules import ReluRule
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
    output,
)

from .gradients import warn_of_zeros
from .passes import passes, variant_gradients

_ZERO = (
    "the map is zero everywhere: the method gives zero (or, for the variance, always the same) "
    "around this input, which says nothing about what matters"
)


class Method(StrEnum):
    """What is taken at every noisy input; signed in every case."""

    SALIENCY = "saliency"
    INPUT_X_GRADIENT = "input_x_gradient"
    GUIDED_BACKPROP = "guided_backprop"
    DECONVNET = "deconvnet"


class Form(StrEnum):
    """What is made of a method's values at the noisy inputs."""

    MEAN = "mean"
    SQUARED = "squared"  # mean of the squares
    VARIANCE = "variance"  # mean of the squares less the square of the mean


_RULES = {Method.GUIDED_BACKPROP: ReluRule.GUIDED, Method.DECONVNET: ReluRule.DECONVNET}


class SmoothGradParams(Params):
    method: Method = Field(
        Method.SALIENCY,
        description="Taken at every noisy input, with its sign: saliency, input_x_gradient, "
        "guided_backprop or deconvnet.",
    )
    kind: Form = Field(
        Form.MEAN,
        description="mean: SmoothGrad; squared: the mean of the squares; variance: VarGrad, the "
        "variance over the noisy inputs.",
    )
    samples: int = Field(50, ge=1, le=10_000, description="Noisy inputs.")
    noise: float = Field(
        0.15,
        ge=0,
        le=10,
        description="Standard deviation of the noise as a share of the bounds' width; in the "
        "input's own units where the model states no bounds.",
    )
    clip: bool = Field(
        False,
        description="Move noisy inputs into the model's bounds; the published method does not.",
    )


@dataclass(frozen=True)
class SmoothGradResult:
    attributions: Tensor = output(
        "Mean, mean square or variance of the method over the noisy inputs, `(N, *input_shape)`; "
        "signed for the mean."
    )
    logits: Tensor | None = logits_before()


class SmoothGrad(Plugin[SmoothGradParams, SmoothGradResult]):
    """A gradient method averaged over noisy copies of the input; also its square and variance.

    With `M_k` the method's values at `x + noise_k`, noise being normal with standard deviation
    `noise` times the width of the bounds: `mean(M_k)`, `mean(M_k^2)` or
    `mean(M_k^2) - mean(M_k)^2`. The values keep their sign before they are averaged; the published
    pictures show the magnitude of the mean. Noise comes from each row's seed. Sums are kept in
    float64.

    Source: Smilkov, Thorat, Kim, Viegas & Wattenberg 2017, "SmoothGrad: removing noise by adding
    noise", section 3; the squared form is from Hooker et al. 2019, "A Benchmark for
    Interpretability Methods in Deep Neural Networks", and the variance from Adebayo, Gilmer,
    Goodfellow & Kim 2018, "Local Explanation Methods for Deep Neural Networks Lack Sensitivity to
    Parameter Values".
    """

    name = "smoothgrad"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT})

    def check(self, model: Classifier, params: SmoothGradParams) -> None:
        if params.method in _RULES and Capability.RECTIFIERS not in model.capabilities:
            raise InvalidRequest.field(
                "params.method",
                f"{params.method} does not suit {model.name}: "
                f"{model.lacking[Capability.RECTIFIERS]}",
            )
        if params.clip and Capability.BOUNDS not in model.capabilities:
            raise InvalidRequest.field("params.clip", model.lacking[Capability.BOUNDS])

    def run(
        self, model: Classifier, batch: Batch, params: SmoothGradParams, job: Job
    ) -> SmoothGradResult:
        inputs, targets = batch.inputs, batch.targets
        parts = passes(job, len(batch), params.samples)
        mean = torch.zeros_like(inputs, dtype=torch.float64)
        spread = torch.zeros_like(mean)  # sum of squared distances from the mean so far
        logits, done = None, 0

        def attributions() -> Tensor:
            match params.kind:
                case Form.MEAN:
                    values = mean
                case Form.SQUARED:
                    values = spread / done + mean.square()
                case Form.VARIANCE:
                    values = spread / done
            return values.to(inputs.dtype)

        for step in job.track(len(parts)):
            noisy = torch.stack([_noisy(model, batch, params, sample) for sample in parts[step]])
            values = variant_gradients(
                model, noisy, targets, _RULES.get(params.method, ReluRule.PLAIN)
            )
            if params.method is Method.INPUT_X_GRADIENT:
                values *= noisy
            for sample, value in zip(parts[step], values, strict=True):
                done = sample + 1
                away = value - mean
                mean += away / done
                spread += away * (value - mean)
            job.preview(attributions=attributions)
            if step == len(parts) - 1 and targets.layer is None:
                with torch.no_grad():
                    logits = model(inputs)
        found = attributions()
        warn_of_zeros(job, found, _ZERO)
        return SmoothGradResult(found, logits)


def _noisy(model: Classifier, batch: Batch, params: SmoothGradParams, sample: int) -> Tensor:
    values = batch.inputs + params.noise * model.scale * batch.normal(sample)
    if params.clip:
        values = values.clamp(*model.bounds)
    return model.carry(values, batch.inputs)
