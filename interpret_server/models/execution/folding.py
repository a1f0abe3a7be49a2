"""Batch norm and constant scales and shifts into the convolution or linear layer before them.

`scale * (W x + b) + shift` is `(scale * W) x + (scale * b + shift)`, row by row of W (Jacob et al.
2018, section 3.2). It is computed in float64 and rounded once.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from .draft import Draft, function_name

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class _Affine:
    """`scale * y + shift` per channel of a layer's output `y`, in float64, `(channels,)` each."""

    scale: Tensor
    shift: Tensor

    def then(self, other: "_Affine") -> "_Affine":
        return _Affine(other.scale * self.scale, other.scale * self.shift + other.shift)

    def fits(self, weight: Tensor) -> bool:
        """Whether the folded weights are finite in their own data type."""
        largest = torch.finfo(weight.dtype).max
        scaled = weight.abs().amax().double() * self.scale.abs().amax()
        return bool(scaled <= largest) and bool(self.shift.abs().amax() <= largest)


def is_norm(module: nn.Module | None) -> bool:
    """Whether a module is a batch norm that works by its stored statistics."""
    return type(module) in _NORMS and not module.training and module.running_mean is not None  # type: ignore[union-attr]


def fold(draft: Draft, layout: torch.memory_format = torch.contiguous_format) -> list[str]:
    """Fold what can be, and tell the names of the nodes that are gone.

    A layer whose own output is read elsewhere keeps it.

    Args:
        draft: to be changed.
        layout: of the weights of two-dimensional convolutions.
    """
    pending: dict[fx.Node, _Affine] = {}
    folded: dict[fx.Node, list[str]] = {}
    for node in list(draft.graph.nodes):
        source = _source(node)
        layer = draft.module(source)
        if (
            source is None
            or len(source.users) > 1
            or type(layer) not in (*_CONVOLUTIONS, nn.Linear)
        ):
            continue
        weight: Tensor = layer.weight  # type: ignore[union-attr, assignment]
        if not weight.is_floating_point() or not weight.numel():
            continue
        channels = _channels(layer)
        axis = _channel_axis(draft, source, layer)
        if axis is None:
            continue
        affine = _norm(draft, node, axis, channels) or _constant(
            draft, node, source, axis, channels
        )
        if affine is None:
            continue
        if source in pending:
            affine = pending[source].then(affine)
        if not affine.fits(weight):
            continue
        pending[source] = affine
        if (norm := draft.module(node)) is not None:
            draft.copied.append(norm)
        draft.copied.extend(c for c in map(draft.constant, node.all_input_nodes) if c is not None)
        folded.setdefault(source, []).append(node.name)
        draft.bypass(node, source)
    for source, affine in pending.items():
        layer = draft.module(source)
        assert layer is not None
        draft.copied.append(layer)
        made_of = (source.name, *folded[source])
        draft.put(source, made_of, partial(_folded, layer, affine, layout))
    draft.prune()
    return [name for names in folded.values() for name in names]


def with_weights(layer: nn.Module, **weights: Tensor | None) -> nn.Module:
    """A copy of a layer with some of its weights replaced; the others are shared."""
    twin = copy.copy(layer)
    twin._parameters = dict(layer._parameters)
    for name, weight in weights.items():
        frozen = None if weight is None else nn.Parameter(weight, requires_grad=False)
        twin._parameters[name] = frozen
    return twin


def _source(node: fx.Node) -> fx.Node | None:
    """The one node that depends on the input among those that a node reads."""
    found = [item for item in node.all_input_nodes if item.op != "get_attr"]
    return found[0] if len(found) == 1 else None


def _channels(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _channel_axis(draft: Draft, source: fx.Node, layer: Any) -> int | None:
    shape = draft.shape(source)
    if shape is None:
        return None
    if isinstance(layer, nn.Linear):
        return len(shape) - 1
    return 1 if len(shape) == layer.weight.dim() else None


def _norm(draft: Draft, node: fx.Node, axis: int, channels: int) -> _Affine | None:
    norm: Any = draft.module(node)
    if not is_norm(norm) or axis != 1 or norm.num_features != channels:
        return None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return _Affine(scale, shift if norm.bias is None else shift + norm.bias.double())


def _constant(
    draft: Draft, node: fx.Node, source: fx.Node, axis: int, channels: int
) -> _Affine | None:
    """What a node adds to `source` or multiplies it by, if that is constant for each channel."""
    name = function_name(node)
    if name not in ("add", "sub", "mul", "div", "truediv", "true_divide"):
        return None
    if len(node.args) != 2 or any(value != 1 for value in node.kwargs.values()):
        return None
    left, right = node.args
    first = left is source
    value = _per_channel(draft, right if first else left, source, axis, channels)
    if value is None:
        return None
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    if name == "add":
        return _Affine(one, value)
    if name == "mul":
        return _Affine(value, zero)
    if name == "sub":
        return _Affine(one, -value) if first else _Affine(-one, value)
    return _Affine(1 / value, zero) if first and bool(value.all()) else None


def _per_channel(
    draft: Draft, value: Any, source: fx.Node, axis: int, channels: int
) -> Tensor | None:
    """A constant as `(channels,)` in float64, if it broadcasts along every other axis."""
    shape, observed = draft.shape(source), draft.observed[source]
    constant = draft.constant(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        constant = torch.tensor(float(value), dtype=observed.dtype)
    if constant is None or constant.dtype != observed.dtype or shape is None:
        return None
    sizes = (1,) * (len(shape) - constant.dim()) + tuple(constant.shape)
    if len(sizes) > len(shape) or any(
        size not in ((1, channels) if position == axis else (1,))
        for position, size in enumerate(sizes)
    ):
        return None
    flat = constant.detach().double().reshape(-1)
    return flat.expand(channels).clone() if flat.numel() == 1 else flat


def _folded(layer: Any, affine: _Affine, layout: torch.memory_format) -> nn.Module:
    weight, scale = layer.weight.detach(), affine.scale.to(layer.weight.device)
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach().double()
    exact = weight.double()
    if isinstance(layer, _TRANSPOSED):  # (in, out / groups, ...), the input's groups one by one
        grouped = exact.unflatten(0, (layer.groups, -1))
        scales = scale.reshape(layer.groups, 1, -1, *(1,) * (weight.dim() - 2))
        exact = (grouped * scales).flatten(0, 1)
    else:
        exact = exact * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    bias = bias * scale + affine.shift.to(scale.device)
    rounded = exact.to(weight.dtype)
    if rounded.dim() == 4:
        rounded = rounded.clone(memory_format=layout)
    return with_weights(layer, weight=rounded, bias=bias.to(weight.dtype))
