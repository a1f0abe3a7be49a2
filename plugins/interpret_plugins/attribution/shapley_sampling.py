"""Shapley values by sampling the orders in which features are revealed."""

from collections.abc import Mapping
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

from .coalitions import MAX_COALITIONS, score_coalitions
from .features import FEATURES, FeatureParams, check_features, features_of
from .perturbation import Hiding, fill_value
from .shapley_values import Exact, Sampled, ShapleyValues

_LARGEST_ERROR = 0.5
_INEXACT = (
    "the standard errors are more than half as large as the attributions, by their root mean "
    "squares: raise `permutations` or take fewer features"
)


class ShapleySamplingParams(FeatureParams):
    permutations: int = Field(
        32,
        ge=4,
        le=MAX_COALITIONS,
        description="Random orders in which the features are revealed. Where all 2^M coalitions of "
        "the M features cost no more, they are scored instead, and the values are exact.",
    )
    antithetic: bool = Field(
        True,
        description="Follow every order by its reverse, which counts as another and mostly makes "
        "the errors smaller; `permutations` is then even.",
    )


@dataclass(frozen=True)
class ShapleySamplingResult:
    attributions: Tensor = output(
        "The Shapley value of the value's feature, `(N, *input_shape)`, signed, in units of the "
        "score; the whole of it at every value of the feature.",
        shared=True,
    )
    standard_error: Tensor = output(
        "Standard error of each attribution, `(N, *input_shape)`, from the spread over the orders; "
        "0 where all coalitions were scored."
    )
    features: Tensor = output(
        "The feature that each value belongs to, `(N, *input_shape)`, counted from 0 in each row; "
        "-1 where a value is never hidden."
    )
    base_value: Tensor = metric(
        "The score where all features are hidden; with one value of each feature it sums to the "
        "score of the input."
    )
    logits: Tensor | None = logits_before()


class ShapleySampling(Plugin[ShapleySamplingParams, ShapleySamplingResult]):
    """Shapley values of features: the mean rise of the score when a feature is revealed.

    Beginning with everything hidden by `fill`, features are revealed one after the other in random
    orders, and each gets the mean of the changes of the score at its turn. The changes of an order
    telescope, so that the values of the features sum to `S(x) - S(all hidden)` whatever the number
    of orders. The tensor `standard_error` tells how well the values are known; it falls as one over
    the square root of `permutations`. No gradient is needed.

    Source: Castro, Gomez & Tejada 2009, "Polynomial calculation of the Shapley value based on
    sampling"; Strumbelj & Kononenko 2010, "An Efficient Explanation of Individual Classifications
    using Game Theory"; antithetic orders as in Mitchell, Cooper, Frank & Holmes 2022, "Sampling
    Permutations for Shapley Value Estimation".
    """

    name = "shapley_sampling"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.SCORES})
    tensors: ClassVar[Mapping[str, AuxTensor]] = FEATURES

    def check(self, model: Classifier, params: ShapleySamplingParams) -> None:
        fill_value(model, params.fill)
        check_features(model, params)
        if params.antithetic and params.permutations % 2:
            raise InvalidRequest.field(
                "params.permutations", "an even number is needed where every order is reversed"
            )

    def run(
        self, model: Classifier, batch: Batch, params: ShapleySamplingParams, job: Job
    ) -> ShapleySamplingResult:
        features = features_of(model, batch, params, job)
        estimates = [
            _estimate(count, seed, params, batch.inputs)
            for count, seed in zip(features.counts, batch.seeds, strict=True)
        ]
        attributions = torch.zeros_like(batch.inputs)
        standard_error = torch.zeros_like(attributions)
        base_value = attributions.new_zeros(len(batch))
        inexact = torch.zeros(len(batch), dtype=torch.bool, device=model.device)
        counts = [estimate.count for estimate in estimates]
        hiding = Hiding(model, batch, params)

        def draw(row: int, numbers: Tensor) -> Tensor:
            return estimates[row].draw(numbers)

        for done in score_coalitions(hiding, job, features, counts, draw):
            row, estimate = done.row, estimates[done.row]
            if estimate.add(done, hiding.before[row]):
                attributions[row] = features.spread(row, estimate.values)
                standard_error[row] = features.spread(row, estimate.error)
                inexact[row] = estimate.error.norm() > _LARGEST_ERROR * estimate.values.norm()
                job.preview(attributions=attributions.clone)
            base_value[row] = estimate.base
        if inexact.any():
            job.warn(inexact, _INEXACT)
        return ShapleySamplingResult(
            attributions, standard_error, features.numbers, base_value, hiding.logits
        )


def _estimate(
    features: int, seed: int, params: ShapleySamplingParams, like: Tensor
) -> ShapleyValues:
    coalitions = params.permutations * (features - 1)
    if 2**features - 2 <= max(0, coalitions):
        return Exact(features, like.device)
    if coalitions > MAX_COALITIONS:
        raise InvalidRequest.field(
            "params.permutations",
            f"{params.permutations} orders of {features} features are {coalitions} coalitions; at "
            f"most {MAX_COALITIONS} are scored",
        )
    return Sampled(features, params.permutations, params.antithetic, seed, like)
