"""Score-CAM."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.models.inner import Way
from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Plugin,
)

from .activation_maps import (
    ActivationMap,
    ActivationMapParams,
    check_maps,
    enlarge,
    over_inputs,
    shown,
    spatial_sizes,
    warn_of_maps,
)
from .map_layers import channel_axis, layer_to_explain, spatial_axes
from .perturbation import Hiding, PerturbationParams, fill_value, warn_unchanged


class ScoreCAMParams(ActivationMapParams, PerturbationParams):
    weights: Literal["softmax", "increase"] = Field(
        "softmax",
        description="What a channel's map weighs: the softmax over channels of the scores that "
        "their masks leave, or a score's increase over the hidden input's.",
    )


class ScoreCAM(Plugin[ScoreCAMParams, ActivationMap]):
    """A layer's maps, each weighted by the score of what it shows of the input.

    `L = ReLU(sum_k alpha_k A_k)`. Channel k of the layer is enlarged to the input's size and
    stretched to [0, 1], which gives a mask `H_k`; where it is below 1 the input fades into `fill`,
    and `S_k` is the target's score then. `alpha_k` is the softmax of all `S_k`, or
    `S_k - S(fill)`. A channel that is the same everywhere shows nothing and weighs nothing. No
    gradient is needed: one forward pass for each channel.

    Source: Wang, Wang, Du, Yang, Zhang, Ding, Mardziel & Hu 2020, "Score-CAM: Score-Weighted Visual
    Explanations for Convolutional Neural Networks".
    """

    name = "score_cam"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.LAYERS, Capability.SCORES})

    def check(self, model: Classifier, params: ScoreCAMParams) -> None:
        fill_value(model, params.fill)
        check_maps(model, params)
        if params.layer is None:
            return
        axes = len(model.layer(params.layer, "params.layer").shape) - 1
        if not spatial_axes(model, axes):
            raise InvalidRequest.field(
                "params.layer",
                f"the maps of layer {params.layer!r} have {axes} spatial axes and are to mask "
                f"inputs of shape {list(model.input_shape)}; name a layer whose maps lie over them",
            )

    def run(
        self, model: Classifier, batch: Batch, params: ScoreCAMParams, job: Job
    ) -> ActivationMap:
        target = batch.targets.layer
        layer = layer_to_explain(model, target, params.layer)
        with torch.no_grad():
            (values,) = model.activations(batch.inputs, [layer.name])
        axis = channel_axis(
            model, Way(model, target), layer, tuple(values.shape[1:]), params.channels
        )
        values = values.movedim(axis + 1, 1)
        sizes = spatial_sizes(model, batch, values.dim() - 2)
        low, high = values.flatten(2).aminmax(dim=2)
        counts = (high > low).sum(1)
        # Channels that show something come first.
        order = (high > low).int().argsort(dim=1, descending=True, stable=True)
        # The hidden input is scored before them, where its score is needed.
        extra = 1 if params.weights == "increase" else 0

        def kept(rows: Tensor, numbers: Tensor) -> Tensor:
            channels = order[rows, (numbers - extra).clamp(min=0)]
            maps = _stretched(enlarge(values[rows, channels], sizes, "linear"))
            hidden = (numbers < extra).reshape(-1, *(1,) * len(sizes))
            return over_inputs(model, torch.where(hidden, 0, maps))

        shape = (len(batch), extra + order.shape[1])
        scores = values.new_full(shape, torch.nan, dtype=torch.float64)

        def weighted() -> Tensor:
            found = scores[:, extra:]
            tried = found.isfinite()
            if extra:
                weights = found - scores[:, :1]
            else:
                weights = torch.where(tried, found, -torch.inf).softmax(1)
            weights = torch.where(tried, weights, 0)
            weights = torch.zeros_like(weights).scatter(1, order, weights)
            return torch.einsum("nc,nc...->n...", weights, values.double()).to(values.dtype)

        def running() -> Tensor:
            return shown(model, batch, params, layer, weighted(), None).attributions

        unchanged = torch.ones(len(batch), dtype=torch.bool, device=values.device)
        hiding = Hiding(model, batch, params)
        for rows, numbers, _, found in hiding.passes(job, (counts + extra).tolist(), kept):
            scores[rows, numbers] = found
            unchanged[rows[found != hiding.before[rows]]] = False
            job.preview(attributions=running)
        warn_unchanged(job, unchanged)
        raw = weighted()
        warn_of_maps(job, layer, raw, unchanged)
        return shown(model, batch, params, layer, raw, hiding.logits)


def _stretched(maps: Tensor) -> Tensor:
    """Maps `(P, *spatial)` from 0 at their smallest value to 1 at their largest."""
    low, high = (
        value.reshape(-1, *(1,) * (maps.dim() - 1)) for value in maps.flatten(1).aminmax(dim=1)
    )
    return torch.where(high > low, (maps - low) / (high - low), 0)
