"""DeepLIFT over a distribution of baselines."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from interpret_server.models.multipliers import multipliers
from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    Plugin,
    logits_before,
    metric,
    output,
)

from .backgrounds import BASELINES, BackgroundParams, background
from .baselines import check_baseline
from .convergence import convergence_delta
from .deep_lift import ZERO, inexact
from .gradients import warn_of_zeros
from .passes import passes


class DeepLiftShapParams(BackgroundParams):
    pass


@dataclass(frozen=True)
class DeepLiftShapResult:
    attributions: Tensor = output(
        "Share of each input value in the target's difference from its mean over the baselines, "
        "`(N, *input_shape)`, signed."
    )
    convergence_delta: Tensor = metric(
        "Sum of the attributions, less the target's value at the input and plus its mean over the "
        "baselines; 0 within rounding."
    )
    logits: Tensor | None = logits_before()


class DeepLiftShap(Plugin[DeepLiftShapParams, DeepLiftShapResult]):
    """DeepLIFT averaged over baselines, an approximation of Shapley values.

    The mean over baselines `x'` of `m(x, x') (x - x')`, with DeepLIFT's multipliers `m` of the
    rescale rule. Values are in target units and sum to `S(x) - mean S(x')` on any network;
    `convergence_delta` is what the sum misses. Baselines are those of the tensor `baselines`, or
    `draws` of normal noise around `baseline`, from each row's seed. Tokens are attributed
    by their embeddings. Several baselines go through the model at once; sums are kept in float64.

    Source: Lundberg & Lee 2017, "A Unified Approach to Interpreting Model Predictions" (Deep SHAP);
    the multipliers are those of `deep_lift`.
    """

    name = "deep_lift_shap"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT, Capability.DETERMINISTIC})
    tensors: ClassVar[dict[str, AuxTensor]] = {**BASELINES}

    def check(self, model: Classifier, params: DeepLiftShapParams) -> None:
        check_baseline(model, params.baseline)

    def run(
        self, model: Classifier, batch: Batch, params: DeepLiftShapParams, job: Job
    ) -> DeepLiftShapResult:
        inputs, rows = batch.inputs, len(batch)
        choice = background(model, batch, params)
        parts = passes(job, 2 * rows, choice.count)  # a row runs at both ends
        total = torch.zeros_like(inputs, dtype=torch.float64)
        start = inputs.new_zeros(rows, dtype=torch.float64)
        unruled: set[str] = set()
        for step in job.track(len(parts)):
            part = parts[step]
            baselines = torch.stack([choice.example(number) for number in part])
            variants = inputs.expand_as(baselines)
            index = torch.arange(rows, device=inputs.device).repeat(len(part))
            found = multipliers(
                model, variants.flatten(0, 1), baselines.flatten(0, 1), batch.targets.take(index)
            )
            unruled.update(found.unruled)
            shares = found.inputs.reshape(variants.shape) * (inputs - baselines)
            for share, value in zip(shares, found.start.reshape(-1, rows), strict=True):
                total += share
                start += value
        attributions = (total / choice.count).to(inputs.dtype)
        end = found.objective[:rows]
        delta = convergence_delta(job, attributions, end, start / choice.count, inexact(unruled))
        warn_of_zeros(job, attributions, ZERO)
        logits = None if found.logits is None else found.logits[:rows]
        return DeepLiftShapResult(attributions, delta, logits)
