"""Feature ablation: how far a target falls when a group of values is hidden."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
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
    output,
)

from .features import FEATURES, FeatureParams, check_features, features_of
from .perturbation import Hiding, fill_value


@dataclass(frozen=True)
class FeatureAblationResult:
    attributions: Tensor = output(
        "How far the target falls while the value's feature is hidden, `(N, *input_shape)`, "
        "signed; the whole fall at every value of the feature.",
        shared=True,
    )
    features: Tensor = output(
        "The feature that each value belongs to, `(N, *input_shape)`, counted from 0 in each row; "
        "-1 where a value is never hidden."
    )
    logits: Tensor | None = logits_before()


class FeatureAblation(Plugin[FeatureParams, FeatureAblationResult]):
    """The fall of a target's score when one feature is hidden, a group of input values.

    Features are the cells of a grid, superpixels, single values, or whatever groups the auxiliary
    tensor `features` makes, such as words. Each is replaced by `fill` alone, one forward pass for
    each feature, and all its values get `score(x) - score(x without it)`; positive values speak for
    the target. On a linear model the features' falls add up to the fall when all are hidden.

    Source: leave-one-out ablation as in Zeiler & Fergus 2014, "Visualizing and Understanding
    Convolutional Networks", section 4.2, and Li, Monroe & Jurafsky 2016, "Understanding Neural
    Networks through Representation Erasure", section 3, with features that do not overlap.
    """

    name = "feature_ablation"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.SCORES})
    tensors: ClassVar[Mapping[str, AuxTensor]] = FEATURES

    def check(self, model: Classifier, params: FeatureParams) -> None:
        fill_value(model, params.fill)
        check_features(model, params)

    def run(
        self, model: Classifier, batch: Batch, params: FeatureParams, job: Job
    ) -> FeatureAblationResult:
        features = features_of(model, batch, params, job)

        def kept(rows: Tensor, numbers: Tensor) -> Tensor:
            whole = features.numbers[rows]
            return whole != numbers.reshape(-1, *(1,) * (whole.dim() - 1))

        hiding = Hiding(model, batch, params)
        drops = hiding.drops(job, features.counts, kept)
        falls = [
            features.spread(row, drops[row, :count]) for row, count in enumerate(features.counts)
        ]
        attributions = torch.stack(falls).to(model.dtype)
        return FeatureAblationResult(attributions, features.numbers, hiding.logits)
