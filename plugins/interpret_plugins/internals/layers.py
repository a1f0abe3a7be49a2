"""Which layer is meant, and which of its values are one unit."""

import torch
from torch import Tensor

from interpret_server.models.classifier import Layer
from interpret_server.models.inner import Way
from interpret_server.plugin import Classifier, InvalidRequest

from ..attribution.map_layers import layer_to_explain

LAYER = "by default the last one that all paths to the target cross."


def layer_before(model: Classifier, target: str | None, named: str | None) -> Layer:
    """The named layer, or else the last one that all paths to the target cross.

    Args:
        model: with readable layers.
        target: the layer in which the target lies; None for the logits.
        named: by the caller, or None.

    Raises:
        InvalidRequest: naming `params.layer`: the named layer does not lead to the target, or
            there is none to choose.
    """
    if named is not None:
        return layer_to_explain(model, target, named)
    way = Way(model, target)
    crossed = [layer for layer in way.layers if layer.name in way.crossed]
    if not crossed:
        end = "the logits" if target is None else f"layer {target!r}"
        raise InvalidRequest.field(
            "params.layer", f"all paths to {end} of {model.name} cross no single layer; name one"
        )
    return crossed[-1]


def position_of(model: Classifier, layer: Layer, rows: int) -> Tensor:
    """A layer's place in the model's list, from 0, for every row: `(N,)`."""
    position = list(model.layers).index(layer.name)
    return torch.full((rows,), position, device=model.device)


def over_positions(values: Tensor) -> Tensor:
    """The sum over all axes but those of rows and channels: `(N, C, ...)` to `(N, C)`."""
    return values.flatten(2).sum(2) if values.dim() > 2 else values


def unit_mask(unit: tuple[int, ...], shape: tuple[int, ...], what: str) -> Tensor:
    """1 at a unit's values, else 0, `shape` bool.

    Args:
        unit: one index for a channel (the first axis), or one for each axis for a neuron.
        shape: of a layer's row.
        what: the layer, in words.

    Raises:
        InvalidRequest: naming `params.unit`.
    """
    if len(unit) not in (1, len(shape)):
        takes = "1 index" if len(shape) == 1 else f"1 index, or {len(shape)} for a neuron"
        raise InvalidRequest.field(
            "params.unit", f"{what} has shape {list(shape)}: a unit takes {takes}, not {len(unit)}"
        )
    for axis, (index, size) in enumerate(zip(unit, shape, strict=False)):
        if index >= size:
            raise InvalidRequest.field(
                "params.unit",
                f"{index} is out of range; axis {axis} of {what} has 0 to {size - 1}",
            )
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[unit] = True
    return mask
