"""Which layers hold maps over the input's spatial axes, and which axis is the channels'."""

import math
from collections.abc import Sequence
from typing import Literal

from interpret_server.models.classifier import Layer
from interpret_server.models.inner import Way
from interpret_server.plugin import Classifier, InvalidRequest

Channels = Literal["auto", "first", "last"]

# Kinds of layers whose values are channels first, in every format.
_SPATIAL = ("conv", "pool", "upsample", "interpolate", "resize", "batch_norm", "batchnorm")
# Those that move, merge or mix axes, so that it is not known any more which axis is which.
_MOVING = frozenset(
    {
        "bmm", "depthtospace", "depth_to_space", "einsum", "embedding", "expand", "flatten", "fold",
        "gather", "gemm", "gru", "index_select", "linear", "lstm", "matmul", "mm", "movedim",
        "permute", "pixel_shuffle", "pixel_unshuffle", "reshape", "rnn", "select", "space_to_depth",
        "spacetodepth", "squeeze", "swapaxes", "t", "tile", "transpose", "unflatten", "unfold",
        "unsqueeze", "view",
    }
)  # fmt: skip
# Those that let any position reach any other, where rows still have several axes.
_MIXING = frozenset({"bmm", "einsum", "gemm", "linear", "matmul", "mm"})


def layer_to_explain(model: Classifier, target: str | None, named: str | None) -> Layer:
    """The named layer, or else the last one whose maps all paths to the target cross.

    Args:
        model: with readable layers.
        target: the layer in which the target lies; None for the logits.
        named: by the caller, or None.

    Raises:
        InvalidRequest: no layer can be chosen, or the named one does not lead to the target.
    """
    way = Way(model, target)
    if named is not None:
        layer = model.layer(named, "params.layer")
        if layer not in way.layers:
            end = "the logits" if target is None else f"the target's layer {target!r}"
            raise InvalidRequest.field(
                "params.layer", f"{named!r} does not come before {end}; name a layer that does"
            )
        return layer
    maps = map_layers(model, way)
    if not maps:
        end = "the logits" if target is None else f"layer {target!r}"
        raise _unknown(model, f"no such layer that all paths cross lies before {end}")
    for layer in way.after(maps[-1]):
        if _mixes(layer):
            raise _unknown(
                model, f"after the last one, {maps[-1].name!r}, {layer.name!r} may mix positions"
            )
    return maps[-1]


def map_layers(model: Classifier, way: Way) -> list[Layer]:
    """The layers known to be maps, channels first, that all paths to a target cross."""
    axes = len(model.input_shape)
    known = _channels_first(way)
    return [
        layer
        for layer in way.layers
        if layer.name in known
        and layer.name in way.crossed
        and len(layer.shape) - 1 in (axes, axes - 1)
        and math.prod(layer.shape[1:]) > 1
    ]


def channel_axis(
    model: Classifier, way: Way, layer: Layer, row: Sequence[int], channels: Channels
) -> int:
    """The axis of a layer's rows that holds channels: 0 or the last one.

    Args:
        model: that the layer belongs to.
        way: to a target that the layer leads to.
        layer: whose values are maps.
        row: the shape of one row of the layer.
        channels: the caller's word.

    Raises:
        InvalidRequest: the layer has no spatial axes, or they cannot be told.
    """
    last = len(row) - 1
    if last < 1 or math.prod(row) == 1:
        raise _no_axes(layer, row)
    if channels != "auto":
        return 0 if channels == "first" else last
    if layer.name in _channels_first(way):
        return 0
    sizes = [model.input_shape[axis] for axis in spatial_axes(model, last)]
    if len(sizes) != last:
        raise _no_axes(layer, row)
    distortions = {
        axis: _distortion(sizes, [size for other, size in enumerate(row) if other != axis])
        for axis in (0, last)
    }
    if last == 1 or distortions[0] == distortions[last]:
        raise InvalidRequest.field(
            "params.channels",
            f"the rows of layer {layer.name!r} have shape {list(row)}: say whether channels come "
            "'first' or 'last'",
        )
    return min(distortions, key=distortions.__getitem__)


def spatial_axes(model: Classifier, count: int) -> tuple[int, ...]:
    """The axes of an input row that a map of `count` axes lies over; empty where none fit."""
    axes = range(len(model.input_shape))
    if len(axes) == count:
        return tuple(axes)
    if len(axes) != count + 1:
        return ()
    last = model.input_layout == "HWC" or model.encoded  # an embedded token is a channel vector
    return tuple(axes[:-1] if last else axes[1:])


def _channels_first(way: Way) -> frozenset[str]:
    """The layers that convolutions and poolings give, and what follows them axis by axis."""
    known: set[str] = set()
    for layer in way.layers:
        follows = layer.kind not in _MOVING and known.intersection(way.sources[layer.name])
        if follows or any(word in layer.kind for word in _SPATIAL):
            known.add(layer.name)
    return frozenset(known)


def _mixes(layer: Layer) -> bool:
    several = sum(size > 1 for size in layer.shape) > 1
    return several and (layer.kind in _MIXING or "attention" in layer.kind)


def _distortion(sizes: Sequence[int], maps: Sequence[int]) -> float:
    """How differently a map's axes are reduced: 0 where all are alike."""
    shares = [math.log(size / own) for size, own in zip(sizes, maps, strict=True)]
    return max(shares) - min(shares)


def _no_axes(layer: Layer, row: Sequence[int]) -> InvalidRequest:
    return InvalidRequest.field(
        "params.layer",
        f"the rows of layer {layer.name!r} have shape {list(row)}, which has no spatial axes that "
        "lie over the input's; name a layer before it is flattened",
    )


def _unknown(model: Classifier, why: str) -> InvalidRequest:
    return InvalidRequest.field(
        "params.layer",
        f"no layer of {model.name} with spatial axes can be chosen: {why}; name one",
    )
