"""The values of layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    Params,
    Plugin,
    TargetKind,
    metric,
    output,
)

from .layers import layer_before


class LayerActivationParams(Params):
    layers: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="The layers to read; none: the last one that all paths to the logits cross.",
    )


@dataclass(frozen=True)
class LayerActivationResult:
    activations: Mapping[str, Tensor] = output(
        "The values of each layer, `(N, *layer_shape)`.", like_input=False
    )
    channel_means: Mapping[str, Tensor] = output(
        "Their mean over positions, `(N, C)`; C is the layer's first axis.", like_input=False
    )
    channel_maxima: Mapping[str, Tensor] = output(
        "Their largest value over positions, `(N, C)`.", like_input=False
    )
    zero_share: Mapping[str, Tensor] = metric("Share of a layer's values that are exactly 0.")
    sparseness: Mapping[str, Tensor] = metric(
        "From 0, where all values have one size, to 1, where all but one are 0; 0 where all are."
    )


class LayerActivation(Plugin[LayerActivationParams, LayerActivationResult]):
    """What one or several layers hold for an input.

    All layers are read in one forward pass. Tensors and metrics are named after the layer, as in
    `activations.<layer>`. `sparseness` of n values a is
    `(sqrt(n) - sum |a| / sqrt(sum a^2)) / (sqrt(n) - 1)`.

    Source: Hoyer 2004, "Non-negative Matrix Factorization with Sparseness Constraints",
    section 3.1, for the sparseness.
    """

    name = "layer_activation"
    kind = Kind.INTERNALS
    requires = frozenset({Capability.LAYERS})
    target_kinds: ClassVar[frozenset[TargetKind]] = frozenset()

    def check(self, model: Classifier, params: LayerActivationParams) -> None:
        for name in params.layers:
            model.layer(name, "params.layers")

    @torch.no_grad()
    def run(
        self, model: Classifier, batch: Batch, params: LayerActivationParams, job: Job
    ) -> LayerActivationResult:
        names = list(dict.fromkeys(params.layers)) or [layer_before(model, None, None).name]
        for _ in job.track(1):
            values = model.activations(batch.inputs, names)
        found = dict(zip(names, values, strict=True))
        return LayerActivationResult(
            found,
            {name: _by_channel(value).mean(2) for name, value in found.items()},
            {name: _by_channel(value).amax(2) for name, value in found.items()},
            {name: (value == 0).flatten(1).double().mean(1) for name, value in found.items()},
            {name: _sparseness(value.flatten(1).double()) for name, value in found.items()},
        )


def _by_channel(values: Tensor) -> Tensor:
    """`(N, C, positions)`; a layer of single numbers has one channel."""
    values = values if values.dim() > 1 else values[:, None]
    return values.flatten(2) if values.dim() > 2 else values[:, :, None]


def _sparseness(values: Tensor) -> Tensor:
    if values.shape[1] == 1:
        return values.new_zeros(len(values))
    size = values.norm(dim=1)
    root = values.shape[1] ** 0.5
    share = values.abs().sum(1) / torch.where(size > 0, size, 1)
    return torch.where(size > 0, ((root - share) / (root - 1)).clamp(0, 1), 0)
