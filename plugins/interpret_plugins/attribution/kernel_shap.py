"""Kernel SHAP: Shapley values by weighted linear regression."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

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

from .coalitions import MAX_COALITIONS, ShapleyKernel, score_coalitions
from .features import FEATURES, FeatureParams, check_features, features_of
from .perturbation import Hiding, fill_value
from .regression import MAX_FEATURES, Moments

_UNDETERMINED = (
    "there are too few samples to tell all features apart, and what they leave open was shared out "
    "evenly: raise `samples` to several times the number of features"
)


class KernelSHAPParams(FeatureParams):
    samples: int | None = Field(
        None,
        ge=2,
        le=MAX_COALITIONS,
        description="Coalitions of features that are scored, besides the whole input and the "
        "empty one. By default 2048 and two for each feature. Where 2^M - 2 are no more, all "
        "coalitions of the M features are scored, and the Shapley values are exact.",
    )


@dataclass(frozen=True)
class KernelSHAPResult:
    attributions: Tensor = output(
        "The Shapley value of the value's feature, `(N, *input_shape)`, signed, in units of the "
        "score; the whole of it at every value of the feature.",
        shared=True,
    )
    features: Tensor = output(
        "The feature that each value belongs to, `(N, *input_shape)`, counted from 0 in each row; "
        "-1 where a value is never hidden."
    )
    base_value: Tensor = metric(
        "The score where all features are hidden; with one value of each feature it sums to the "
        "score of the input."
    )
    coalitions: Tensor = metric(
        "Coalitions that stand for the row, with the whole input and the empty one; 2^M where the "
        "values are exact."
    )
    logits: Tensor | None = logits_before()


class KernelSHAP(Plugin[KernelSHAPParams, KernelSHAPResult]):
    """Shapley values of features, from a regression of the score on which of them are kept.

    A feature's Shapley value is its mean share in the score over all orders in which features can
    be revealed, hidden ones being `fill`. The values are the coefficients of a linear model of the
    scores of coalitions of s out of M features under the weight `(M - 1) / (C(M, s) s (M - s))`.
    The empty and the whole coalition, whose weight is infinite, are exact constraints: the values
    of the features sum to `S(x) - S(all hidden)` whatever the number of samples. Sizes of
    coalitions are taken whole while the samples reach, from the smallest and the largest inwards;
    the rest is drawn, each coalition together with its complement. No gradient is needed.

    Source: Lundberg & Lee 2017, "A Unified Approach to Interpreting Model Predictions", section 4.1
    and theorem 2; the constrained solution and paired sampling as in Covert & Lee 2021, "Improving
    KernelSHAP: Practical Shapley Value Estimation Using Linear Regression".
    """

    name = "kernel_shap"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.SCORES})
    tensors: ClassVar[Mapping[str, AuxTensor]] = FEATURES

    def check(self, model: Classifier, params: KernelSHAPParams) -> None:
        fill_value(model, params.fill)
        check_features(model, params)

    def run(
        self, model: Classifier, batch: Batch, params: KernelSHAPParams, job: Job
    ) -> KernelSHAPResult:
        features = features_of(model, batch, params, job, MAX_FEATURES)

        @cache
        def kernel(count: int) -> ShapleyKernel:
            return ShapleyKernel(count, params.samples or 2048 + 2 * count)

        def draw(row: int, numbers: Tensor) -> Tensor:
            empty = torch.zeros(int(numbers[0] == 0), features.counts[row], dtype=torch.bool)
            others = numbers[len(empty) :] - 1
            return torch.cat([empty, kernel(features.counts[row]).draw(batch.seeds[row], others)])

        def shown(row: int, moments: Moments, total: Tensor) -> Tensor:
            found = attributions.clone()
            found[row] = features.spread(row, moments.constrained(total)[0])
            return found

        attributions = torch.zeros_like(batch.inputs)
        base_value = attributions.new_zeros(len(batch))
        undetermined = torch.zeros(len(batch), dtype=torch.bool, device=model.device)
        counts = [1 + kernel(count).count for count in features.counts]
        hiding = Hiding(model, batch, params)
        for row, numbers, kept, scores in score_coalitions(hiding, job, features, counts, draw):
            first = int(numbers[0] == 0)
            if first:
                moments, base = Moments(features.counts[row], model.device), scores[0]
            weights = kernel(features.counts[row]).weights(numbers[first:] - 1)
            moments.add(kept[first:], scores[first:] - base, weights)
            total = hiding.before[row] - base
            job.preview(attributions=partial(shown, row, moments, total))
            if numbers[-1] == counts[row] - 1:
                values, determined = moments.constrained(total)
                attributions[row] = features.spread(row, values)
                base_value[row], undetermined[row] = base, not determined
        if undetermined.any():
            job.warn(undetermined, _UNDETERMINED)
        scored = base_value.new_tensor([count + 1 for count in counts])
        return KernelSHAPResult(attributions, features.numbers, base_value, scored, hiding.logits)
