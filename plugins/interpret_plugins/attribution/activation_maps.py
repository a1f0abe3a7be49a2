"""What class activation maps have in common: their parameters, their layer, how they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from interpret_server.models.classifier import Layer
from interpret_server.models.inner import Way, layer_gradient
from interpret_server.plugin import (
    Batch,
    Classifier,
    InvalidRequest,
    Job,
    Params,
    logits_before,
    metric,
    output,
)

from .map_layers import channel_axis, layer_to_explain, map_layers, spatial_axes


class ActivationMapParams(Params):
    layer: str | None = Field(
        None,
        description="The layer whose maps are weighed; null: the last one with spatial axes that "
        "all paths to the target cross.",
    )
    channels: Literal["auto", "first", "last"] = Field(
        "auto",
        description="Where a named layer's row has its channels; `auto`: first after convolutions "
        "and pooling, else where the other axes fit the input's proportions.",
    )
    upsample: Literal["linear", "nearest", "none"] = Field(
        "linear",
        description="How the map is brought to the input's size: interpolation linear along each "
        "axis (bilinear for images), the nearest value, or not at all.",
    )
    rectify: bool = Field(True, description="Set what is below zero to zero, as published.")


@dataclass(frozen=True)
class ActivationMap:
    attributions: Tensor = output(
        "The map at the input's spatial size, `(N, *spatial)`, without a channel axis; at the "
        "layer's where `upsample` is none.",
        like_input=False,
    )
    map: Tensor = output("The map at the layer's spatial size.", like_input=False)
    layer: Tensor = metric("Position of the explained layer in the model's list, from 0.")
    logits: Tensor | None = logits_before()


@dataclass(frozen=True)
class Maps:
    """A layer's maps, channels first, and the target's gradient at them: both `(N, C, *spatial)`.

    Args:
        layer: that they belong to.
        values: of the layer.
        gradient: of the target by these values.
        logits: `(N, K)`, or None where the target lies in a layer.
    """

    layer: Layer
    values: Tensor
    gradient: Tensor
    logits: Tensor | None

    def weighted(self, weights: Tensor) -> Tensor:
        """`sum over channels of weights * values`, `(N, *spatial)`; weights broadcast."""
        return (weights * self.values).sum(1)

    def over_positions(self, values: Tensor) -> Tensor:
        """The sum over all positions, `(N, C, 1, ...)`."""
        return values.sum(tuple(range(2, values.dim())), keepdim=True)


def check_maps(model: Classifier, params: ActivationMapParams) -> None:
    """Refuse a model that has no such maps, and a layer that holds none.

    Raises:
        InvalidRequest: naming the field.
    """
    if model.packing is not None:
        raise InvalidRequest.field("model", f"{model.name} takes several inputs, and no single map")
    if params.layer is None:
        if not map_layers(model, Way(model, None)):
            layer_to_explain(model, None, None)
        return
    layer = model.layer(params.layer, "params.layer")
    channel_axis(model, Way(model, None), layer, layer.shape, params.channels)
    _check_upsampling(model, params, layer, len(layer.shape) - 1)


def maps_at(model: Classifier, batch: Batch, params: ActivationMapParams) -> Maps:
    """The maps to weigh, by one forward and backward pass.

    Raises:
        InvalidRequest: no layer can be chosen, or the named one does not lead to the target.
    """
    target = batch.targets.layer
    layer = layer_to_explain(model, target, params.layer)
    found = layer_gradient(model, batch.inputs, layer.name, batch.targets)
    row = tuple(found.activations.shape[1:])
    axis = channel_axis(model, Way(model, target), layer, row, params.channels) + 1
    values, gradient = (value.movedim(axis, 1) for value in (found.activations, found.gradient))
    return Maps(layer, values, gradient, found.logits)


def result_of(
    model: Classifier, batch: Batch, params: ActivationMapParams, maps: Maps, raw: Tensor, job: Job
) -> ActivationMap:
    """A result from a map `(N, *spatial)` as the formula gives it; warns about empty ones."""
    dead = ~maps.gradient.flatten(1).any(1)
    if dead.any():
        job.warn(
            dead,
            f"the gradient at layer {maps.layer.name} is zero everywhere, and so is the map",
        )
    warn_of_maps(job, maps.layer, raw, dead)
    return shown(model, batch, params, maps.layer, raw, maps.logits)


def shown(
    model: Classifier,
    batch: Batch,
    params: ActivationMapParams,
    layer: Layer,
    raw: Tensor,
    logits: Tensor | None,
) -> ActivationMap:
    """A result from a map `(N, *spatial)` as the formula gives it."""
    drawn = raw.clamp(min=0) if params.rectify else raw
    large = drawn
    if params.upsample != "none":
        large = enlarge(drawn, spatial_sizes(model, batch, raw.dim() - 1), params.upsample)
    position = list(model.layers).index(layer.name)
    return ActivationMap(large, drawn, torch.full((len(raw),), position, device=raw.device), logits)


def spatial_sizes(model: Classifier, batch: Batch, axes: int) -> list[int]:
    """The input's sizes along the axes that a map of `axes` axes lies over."""
    return [batch.inputs.shape[axis + 1] for axis in spatial_axes(model, axes)]


def enlarge(values: Tensor, sizes: Sequence[int], how: Literal["linear", "nearest"]) -> Tensor:
    """Interpolate `(N, *spatial)` to spatial sizes, the corners of pixels not aligned."""
    if tuple(values.shape[1:]) == tuple(sizes):
        return values
    if how == "nearest":
        return F.interpolate(values[:, None], size=tuple(sizes), mode="nearest")[:, 0]
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(sizes)]
    return F.interpolate(values[:, None], size=tuple(sizes), mode=mode, align_corners=False)[:, 0]


def over_inputs(model: Classifier, values: Tensor) -> Tensor:
    """Maps `(N, *spatial)` at the input's size with an axis to broadcast over its channels."""
    axes = spatial_axes(model, values.dim() - 1)
    if len(axes) == len(model.input_shape):
        return values
    return values[..., None] if axes[0] == 0 else values[:, None]


def _check_upsampling(
    model: Classifier, params: ActivationMapParams, layer: Layer, axes: int
) -> None:
    if params.upsample != "none" and not spatial_axes(model, axes):
        raise InvalidRequest.field(
            "params.upsample",
            f"the maps of layer {layer.name!r} have {axes} spatial axes, and inputs of "
            f"{model.name} have shape {list(model.input_shape)}; use 'none'",
        )


def warn_of_maps(job: Job, layer: Layer, raw: Tensor, known: Tensor) -> None:
    """Warn about maps `(N, *spatial)` without a positive value, but for `known` rows `(N,)`."""
    flat, where = raw.flatten(1), f"the map at layer {layer.name} is"
    empty = ~known & ~flat.any(1)
    negative = ~known & ~empty & ~(flat > 0).any(1)
    for rows, message in (
        (empty, f"{where} zero everywhere: it says nothing about what matters"),
        (negative, f"{where} nowhere above zero: no position speaks for the target"),
    ):
        if rows.any():
            job.warn(rows, message)
