"""Feature ablation: how far a target falls when a group of values is hidden."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

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
    output,
)

from .features import given, grid, renumbered
from .perturbation import Hiding, PerturbationParams, fill_value

_Size = Annotated[int, Field(ge=1)]


class FeatureAblationParams(PerturbationParams):
    cell: _Size | list[_Size] | None = Field(
        None,
        description="Size of the grid's cells, in input values, where the request brings no "
        "`features`: one number for every axis but the channels', or a list with one for each, "
        "with or without the axis of channels, which a cell else has whole. By default an eighth "
        "of each axis, rounded up.",
    )


@dataclass(frozen=True)
class FeatureAblationResult:
    attributions: Tensor = output(
        "How far the target falls while the value's feature is hidden, `(N, *input_shape)`, "
        "signed; the whole fall at every value of the feature."
    )
    features: Tensor = output(
        "The feature that each value belongs to, `(N, *input_shape)`, counted from 0 in each row; "
        "-1 where a value is never hidden."
    )
    logits: Tensor | None = logits_before()


class FeatureAblation(Plugin[FeatureAblationParams, FeatureAblationResult]):
    """The fall of a target's score when one feature is hidden, a group of input values.

    Features are the cells of a grid, or whatever groups the auxiliary tensor `features` makes:
    superpixels, words, columns of a table. Each is replaced by `fill` alone, one forward pass for
    each feature, and all its values get `score(x) - score(x without it)`; positive values speak for
    the target. On a linear model the features' falls add up to the fall when all are hidden.

    Source: leave-one-out ablation as in Zeiler & Fergus 2014, "Visualizing and Understanding
    Convolutional Networks", section 4.2, and Li, Monroe & Jurafsky 2016, "Understanding Neural
    Networks through Representation Erasure", section 3, with features that do not overlap.
    """

    name = "feature_ablation"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.SCORES})
    tensors: ClassVar[Mapping[str, AuxTensor]] = {
        "features": AuxTensor(
            "Whole numbers: values with the same number are hidden together, those with a negative "
            "number never. Its rows have the input's shape, or one that broadcasts to it; the axis "
            "of channels may be left out.",
            like_input=False,
        )
    }

    def check(self, model: Classifier, params: FeatureAblationParams) -> None:
        fill_value(model, params.fill)
        if None not in model.input_sizes:
            grid(model, model.input_shape, params.cell)

    def run(
        self, model: Classifier, batch: Batch, params: FeatureAblationParams, job: Job
    ) -> FeatureAblationResult:
        if "features" in batch.tensors:
            chosen = given(model, batch)
        else:
            chosen = grid(model, tuple(batch.inputs.shape[1:]), params.cell).expand(
                batch.inputs.shape
            )
        features, counts = renumbered(chosen)

        def kept(rows: Tensor, numbers: Tensor) -> Tensor:
            return features[rows] != numbers.reshape(-1, *(1,) * (features.dim() - 1))

        hiding = Hiding(model, batch, params)
        drops = hiding.drops(job, counts, kept)
        nothing = drops.new_zeros(len(batch), 1)
        index = features.flatten(1)
        falls = torch.cat([drops, nothing], 1).gather(1, index % (drops.shape[1] + 1))
        attributions = falls.reshape(batch.inputs.shape).to(model.dtype)
        return FeatureAblationResult(attributions, features, hiding.logits)
