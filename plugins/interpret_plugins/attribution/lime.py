"""LIME: local interpretable model-agnostic explanations."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import ClassVar, Literal

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

from .coalitions import MAX_COALITIONS, coin_flips, score_coalitions
from .features import FEATURES, FeatureParams, check_features, features_of
from .perturbation import Hiding, fill_value
from .regression import MAX_FEATURES, Fit, Moments

_RANKING_PENALTY = 0.01  # of the reference implementation
_POOR = 0.3
_POOR_FIT = (
    f"the linear model explains less than {_POOR:.0%} of the variance of the scores around this "
    "input: its coefficients say little; other features, a wider kernel or more samples may help"
)


class LIMEParams(FeatureParams):
    samples: int = Field(
        1000,
        ge=2,
        le=MAX_COALITIONS,
        description="Random coalitions of features that are scored, besides the input itself.",
    )
    distance: Literal["cosine", "euclidean"] = Field(
        "cosine",
        description="How far a coalition is from the whole input, as vectors of zeros and ones.",
    )
    kernel_width: float | None = Field(
        None,
        gt=0,
        description="A coalition at distance d weighs exp(-d^2 / (2 width^2)). By default 0.25 for "
        "the cosine, and 0.75 times the square root of the number of features for the Euclidean "
        "distance.",
    )
    ridge: float = Field(
        1.0,
        ge=0,
        description="Penalty on the squared coefficients, where a coalition next to the input "
        "weighs 1; 0 for plain least squares.",
    )
    num_features: int | None = Field(
        None, ge=1, description="At most so many features get a coefficient; by default all."
    )
    selection: Literal["weights", "lasso"] = Field(
        "weights",
        description="How features are chosen: those with the largest coefficients, or those that "
        "the lasso's path keeps longest.",
    )


@dataclass(frozen=True)
class LIMEResult:
    attributions: Tensor = output(
        "The coefficient of the value's feature, `(N, *input_shape)`, signed, in units of the "
        "score; the whole of it at every value of the feature.",
        shared=True,
    )
    features: Tensor = output(
        "The feature that each value belongs to, `(N, *input_shape)`, counted from 0 in each row; "
        "-1 where a value is never hidden."
    )
    score: Tensor = metric("Share of the weighted variance of the scores that the fit explains.")
    intercept: Tensor = metric("Value of the linear model where all features are hidden.")
    logits: Tensor | None = logits_before()


class LIME(Plugin[LIMEParams, LIMEResult]):
    """The coefficients of a linear model of the score, in which features are kept, near an input.

    Random coalitions z keep each feature with probability 1/2; the others become `fill`. A linear
    model `g(z) = b + w'z` is fitted to the scores by least squares, in which a coalition weighs
    `exp(-d^2 / (2 width^2))`, d being its distance from the whole input, and `|w|^2` costs `ridge`.
    The coefficient of a feature is how much the score rises, on the average around the input, when
    the feature is kept. With `num_features` the model is fitted again to the best features alone.
    The metric `score` tells how far the linear model can be believed. No gradient is needed.

    Source: Ribeiro, Singh & Guestrin 2016, "Why Should I Trust You?: Explaining the Predictions of
    Any Classifier", equation 2 and section 3.4; kernel, ridge and selection of features as in the
    authors' implementation.
    """

    name = "lime"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.SCORES})
    tensors: ClassVar[Mapping[str, AuxTensor]] = FEATURES

    def check(self, model: Classifier, params: LIMEParams) -> None:
        fill_value(model, params.fill)
        check_features(model, params)

    def run(self, model: Classifier, batch: Batch, params: LIMEParams, job: Job) -> LIMEResult:
        features = features_of(model, batch, params, job, MAX_FEATURES)
        rows = len(batch)
        attributions = torch.zeros_like(batch.inputs)
        score, intercept = attributions.new_zeros(rows), attributions.new_zeros(rows)

        def draw(row: int, numbers: Tensor) -> Tensor:
            return coin_flips(features.counts[row], batch.seeds[row], numbers)

        def shown(row: int, moments: Moments) -> Tensor:
            found = attributions.clone()
            found[row] = features.spread(row, _fit(moments, params).coefficients)
            return found

        hiding = Hiding(model, batch, params)
        for done in score_coalitions(hiding, job, features, [params.samples] * rows, draw):
            count = features.counts[done.row]
            if not done.numbers[0]:
                # Scores are taken from that of the whole input, which loses no digits in the sums.
                moments = Moments(count, model.device)
                whole = done.kept.new_ones(1, count)
                moments.add(whole, done.scores.new_zeros(1), done.scores.new_ones(1))
            before = hiding.before[done.row]
            moments.add(done.kept, done.scores - before, _weights(done.kept, params))
            job.preview(attributions=partial(shown, done.row, moments))
            if done.numbers[-1] == params.samples - 1:
                fit = _fit(moments, params)
                attributions[done.row] = features.spread(done.row, fit.coefficients)
                score[done.row], intercept[done.row] = fit.score, before + fit.intercept
        if (score < _POOR).any():
            job.warn(score < _POOR, _POOR_FIT)
        return LIMEResult(attributions, features.numbers, score, intercept, hiding.logits)


def _weights(kept: Tensor, params: LIMEParams) -> Tensor:
    """Of coalitions `(P, M)`, by their distance from the whole input."""
    features = kept.shape[1]
    share = kept.double().mean(1) if features else kept.new_ones(len(kept), dtype=torch.float64)
    if params.distance == "cosine":
        distance, width = 1 - share.sqrt(), 0.25
    else:
        distance, width = (features * (1 - share)).sqrt(), 0.75 * sqrt(max(1, features))
    return torch.exp(-((distance / (params.kernel_width or width)) ** 2) / 2)


def _fit(moments: Moments, params: LIMEParams) -> Fit:
    fit = moments.ridge(params.ridge)
    if params.num_features is None or params.num_features >= len(fit.coefficients):
        return fit
    if params.selection == "weights":
        sizes = moments.ridge(_RANKING_PENALTY).coefficients.abs()
        chosen = sizes.topk(params.num_features).indices
    else:
        chosen = _lasso(moments, params.num_features)
    return moments.ridge(params.ridge, chosen)


def _lasso(moments: Moments, most: int) -> Tensor:
    """The features of the lasso's path at its last step that has at most so many."""
    from sklearn.linear_model import lars_path_gram

    central = moments.central()
    products = central.cpu().numpy()
    _, _, path = lars_path_gram(products[:-1, -1], products[:-1, :-1], n_samples=1, method="lasso")
    few = (path != 0).sum(0) <= most
    return torch.from_numpy(path[:, few][:, -1].nonzero()[0]).to(central.device)
