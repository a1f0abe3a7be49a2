"""Layers that a method reads where the caller names none, and several layers read together."""

import math
from collections.abc import Sequence
from itertools import groupby

from interpret_server.models.classifier import Layer
from interpret_server.plugin import Classifier, InvalidRequest

_ACTIVATIONS = frozenset(
    {
        "celu", "elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "leakyrelu", "mish", "prelu",
        "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "tanh", "threshold",
    }
)  # fmt: skip


def resolutions(model: Classifier) -> list[list[Layer]]:
    """The layers of activation functions in order, in groups of one spatial size each.

    Layers of a single position are left out unless a network has no others, as one on flat vectors;
    its groups then are those of one width. A network without activation functions gives all of its
    layers.

    Raises:
        InvalidRequest: the model has no layers to read.
    """
    known = list(model.layers.values())
    active = [layer for layer in known if layer.kind in _ACTIVATIONS] or known
    maps = [layer for layer in active if math.prod(layer.shape[1:]) > 1]
    groups = groupby(maps or active, lambda layer: layer.shape[1:] if maps else layer.shape)
    found = [list(layers) for _, layers in groups]
    if not found:
        raise InvalidRequest.field("params.layers", f"{model.name} has no layers that can be read")
    return found


def middle_layer(model: Classifier) -> Layer:
    """The last activation of the last resolution but one."""
    groups = resolutions(model)
    return groups[max(0, len(groups) - 2)][-1]


def style_layers(model: Classifier) -> list[Layer]:
    """The first wide activation of each resolution, as relu1_1 to relu5_1 of a VGG network."""
    return [_wide(group)[0] for group in resolutions(model)]


def content_layer(model: Classifier) -> Layer:
    """The second wide activation of the last resolution but one, as relu4_2 of a VGG network."""
    groups = resolutions(model)
    return _wide(groups[max(0, len(groups) - 2)])[:2][-1]


def _wide(layers: Sequence[Layer]) -> list[Layer]:
    """Those with at least as many channels as the median: no bottlenecks."""
    channels = sorted(layer.shape[0] for layer in layers)
    return [layer for layer in layers if layer.shape[0] >= channels[len(channels) // 2]]


def check_layers(
    model: Classifier, layers: Sequence[str] | None, weights: Sequence[float] | None, field: str
) -> None:
    """Refuse layers that the model does not have, and weights that are not one for each.

    Args:
        field: of the layers, such as `layers`; that of the weights is then `layer_weights`.

    Raises:
        InvalidRequest: naming the field.
    """
    for name in layers or ():
        model.layer(name)
    if weights is not None and len(weights) != len(layers or ()):
        raise InvalidRequest.field(
            f"params.{field.removesuffix('s')}_weights",
            f"give one weight for each of params.{field}",
        )
