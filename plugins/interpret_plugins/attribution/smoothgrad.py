"""SmoothGrad, its square and VarGrad."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from interpret_server.models.relu_rules import ReluRule
from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Method,
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


class Form(StrEnum):
    """What is made of a method's values at the noisy inputs."""

    MEAN = "mean"
    SQUARED = "squared"  # mean of the squares
    VARIANCE = "variance"  # mean of the squares less the square of the mean


# Methods that are one gradient each, of which all that fit into a pass are taken at once.
_RULES = {
    "saliency": ReluRule.PLAIN,
    "input_x_gradient": ReluRule.PLAIN,
    "guided_backprop": ReluRule.GUIDED,
    "deconvnet": ReluRule.DECONVNET,
}
_SIGNED = {"absolute": False, "channels": "keep"}  # of saliency


class SmoothGradParams(Params):
    method: Method = Field(
        Method(plugin="saliency"),
        validate_default=True,
        description="Taken at every noisy input: an attribution that needs gradients, by name or "
        "with parameters. `saliency` keeps its sign unless its parameters say otherwise.",
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

    @field_validator("method")
    @classmethod
    def _keep_the_sign(cls, method: Method) -> Method:
        if method.plugin != "saliency" or "absolute" in method.params:
            return method
        return method.model_copy(update={"params": {**method.params, "absolute": False}})


@dataclass(frozen=True)
class SmoothGradResult:
    attributions: Tensor = output(
        "Mean, mean square or variance of the method over the noisy inputs, of the method's shape: "
        "mostly `(N, *input_shape)`; signed for the mean where the method is."
    )
    logits: Tensor | None = logits_before()


class SmoothGrad(Plugin[SmoothGradParams, SmoothGradResult]):
    """A gradient method averaged over noisy copies of the input; also its square and variance.

    With `M_k` the method's values at `x + noise_k`, noise being normal with standard deviation
    `noise` times the width of the bounds: `mean(M_k)`, `mean(M_k^2)` or
    `mean(M_k^2) - mean(M_k)^2`. The gradient keeps its sign before it is averaged; the published
    pictures show the magnitude of the mean. Noise comes from each row's seed; a method's own noise
    is the same for all copies of a row. Sums are kept in float64.

    Source: Smilkov, Thorat, Kim, Viegas & Wattenberg 2017, "SmoothGrad: removing noise by adding
    noise", section 3; the squared form is from Hooker et al. 2019, "A Benchmark for
    Interpretability Methods in Deep Neural Networks", and the variance from Adebayo, Gilmer,
    Goodfellow & Kim 2018, "Local Explanation Methods for Deep Neural Networks Lack Sensitivity to
    Parameter Values".
    """

    name = "smoothgrad"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT})
    uses: ClassVar[Mapping[str, Kind]] = {"method": Kind.ATTRIBUTION}

    def check(self, model: Classifier, params: SmoothGradParams) -> None:
        if params.clip and Capability.BOUNDS not in model.capabilities:
            raise InvalidRequest.field("params.clip", model.lacking[Capability.BOUNDS])

    def run(
        self, model: Classifier, batch: Batch, params: SmoothGradParams, job: Job
    ) -> SmoothGradResult:
        inputs, targets = batch.inputs, batch.targets
        parts = passes(job, len(batch), params.samples)
        values_at = _values(model, batch, params.method, job)
        mean = torch.zeros((), dtype=torch.float64)
        spread = mean  # sum of squared distances from the mean so far
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
            values = values_at(noisy)
            if not done:
                mean, spread = torch.zeros(2, *values.shape[1:], dtype=mean.dtype).to(values.device)
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


def _values(
    model: Classifier, batch: Batch, method: Method, job: Job
) -> Callable[[Tensor], Tensor]:
    """From noisy inputs `(P, N, *row)` to the method's values there, `(P, N, ...)`."""
    rule = _RULES.get(method.plugin)
    if rule is not None and (
        method.plugin != "saliency" or {**_SIGNED, **method.params} == _SIGNED
    ):

        def gradients(noisy: Tensor) -> Tensor:
            values = variant_gradients(model, noisy, batch.targets, rule)
            return values * noisy if method.plugin == "input_x_gradient" else values

        return gradients

    bound = job.plugin(method)
    if Capability.GRADIENT not in bound.plugin.requires:
        raise InvalidRequest.field(
            f"{method.field}.plugin",
            f"{method.plugin} needs no gradients; name an attribution that does",
        )

    def attributions(noisy: Tensor) -> Tensor:
        rows = torch.arange(len(batch), device=noisy.device).repeat(len(noisy))
        copies = Batch(
            noisy.flatten(0, 1),
            batch.targets.take(rows),
            batch.seeds * len(noisy),
            {name: tensor[rows] for name, tensor in batch.tensors.items()},
        )
        found: Tensor = bound.run(model, copies).attributions
        return found.detach().reshape(*noisy.shape[:2], *found.shape[1:])

    return attributions


def _noisy(model: Classifier, batch: Batch, params: SmoothGradParams, sample: int) -> Tensor:
    values = batch.inputs + params.noise * model.scale * batch.normal(sample)
    if params.clip:
        values = values.clamp(*model.bounds)
    return model.carry(values, batch.inputs)
