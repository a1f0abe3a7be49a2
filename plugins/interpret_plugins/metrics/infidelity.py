"""Infidelity: how far an attribution is from predicting what perturbations do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_plugins.attribution.perturbation import fill_value
from interpret_server.noise import generator
from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    Method,
    Plugin,
    metric,
    output,
)

from .judged import TENSORS, USES, JudgeParams, judged, passes, per_value, scores


class InfidelityParams(JudgeParams):
    method: Method = Field(
        Method(plugin="saliency", params={"absolute": False}),
        description="The attribution that is judged: its name, or its name and parameters. Its "
        "signs count.",
    )
    samples: int = Field(64, ge=1, le=1_000_000, description="Perturbations of each input.")
    perturbation: Literal["noise", "removal"] = Field(
        "noise",
        description="Gaussian noise on every value, or values replaced by `fill` at random.",
    )
    noise: float = Field(
        0.03, gt=0, le=10, description="Standard deviation of the noise, as a share of the bounds."
    )
    removed: float = Field(
        0.1, gt=0, le=1, description="Probability of each value to be removed in a perturbation."
    )
    fill: Literal["mean", "zero", "lower", "upper"] | float = Field(
        "zero",
        description="What removed values become, and what attributions of kind `share` start from.",
    )
    attribution: Literal["slope", "share"] = Field(
        "slope",
        description="What the attribution says of a value: the target's change per unit of it (a "
        "gradient), or its share in the change from `fill` (integrated gradients, occlusion).",
    )
    scale: bool = Field(
        False, description="Multiply each row's attribution by the number that suits it best."
    )


@dataclass(frozen=True)
class InfidelityResult:
    infidelity: Tensor = metric(
        "Mean squared error of the predicted change, in target units.", better="low"
    )
    factor: Tensor = metric("What the attribution was multiplied by; 1 without `scale`.")
    attributions: Tensor = output("What was judged, as its method gave it.")


class Infidelity(Plugin[InfidelityParams, InfidelityResult]):
    """Mean squared error of the change that an attribution predicts for perturbed inputs.

    `E[(I . A - (f(x) - f(x - I)))^2]` over random perturbations I, where f is the target's value (a
    class's logit) and A the attribution; for shares of a change, A is divided by `x - fill` first.
    With `scale`, A is multiplied by `E[(I . A) (f(x) - f(x - I))] / E[(I . A)^2]`, which gives the
    least error. Zero for the gradient of a linear model; lower is better.

    Source: Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations", definition 2.1.
    """

    name = "infidelity"
    kind = Kind.METRIC
    requires = frozenset({Capability.SCORES})
    uses: ClassVar[Mapping[str, Kind]] = USES
    tensors: ClassVar[Mapping[str, AuxTensor]] = TENSORS

    def check(self, model: Classifier, params: InfidelityParams) -> None:
        fill_value(model, params.fill)

    def run(
        self, model: Classifier, batch: Batch, params: InfidelityParams, job: Job
    ) -> InfidelityResult:
        x, targets = batch.inputs, batch.targets
        fill = model.carry(fill_value(model, params.fill).expand_as(x), x)
        wrong, changed, predicted, product = x.new_zeros(4, len(x), dtype=torch.float64)
        parts = passes(job, batch, params.samples)
        for step in job.track(1 + len(parts)):
            if not step:
                attributions = judged(model, batch, params, job)
                slopes = per_value(model, batch, attributions, params)
                if params.attribution == "share":
                    slopes = torch.where(x == fill, 0, slopes / (x - fill))
                before = scores(model, x, targets, "logit")
                continue
            rows, numbers = parts[step - 1]
            whole = x[rows]
            seeds = [batch.seeds[row] for row in rows.tolist()]
            perturbed = model.carry(
                _perturbed(model, whole, fill[rows], seeds, numbers.tolist(), params), whole
            )
            told = ((whole - perturbed) * slopes[rows]).flatten(1).double().sum(1)
            change = before[rows] - scores(model, perturbed, targets.take(rows), "logit")
            wrong.index_add_(0, rows, (told - change) ** 2)
            changed.index_add_(0, rows, change**2)
            predicted.index_add_(0, rows, told**2)
            product.index_add_(0, rows, told * change)
        factor = torch.ones_like(wrong)
        if params.scale:
            factor = torch.where(predicted > 0, product / predicted, 0)
            wrong = (changed - factor * product).clamp(min=0)
        error = wrong / params.samples
        return InfidelityResult(error.to(x.dtype), factor.to(x.dtype), attributions)


def _perturbed(
    model: Classifier,
    x: Tensor,
    fill: Tensor,
    seeds: list[int],
    numbers: list[int],
    params: InfidelityParams,
) -> Tensor:
    sources = [generator(*pair) for pair in zip(seeds, numbers, strict=True)]
    shape = x.shape[1:]
    if params.perturbation == "noise":
        noise = torch.stack([torch.randn(shape, generator=source) for source in sources])
        return x - params.noise * model.scale * noise.to(x)
    drawn = torch.stack([torch.rand(shape, generator=source) for source in sources])
    return torch.where((drawn < params.removed).to(x.device), fill, x)
