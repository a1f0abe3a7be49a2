"""Fused operators as what they are made of, so that each part has multipliers of its own."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


def _moments(x: Tensor, axes: list[int], correction: float = 0) -> tuple[Tensor, Tensor]:
    """Mean and variance, with the axes kept."""
    count = math.prod(x.shape[axis] for axis in axes)
    mean = x.mean(axes, keepdim=True)
    away = x - mean
    return mean, (away * away).sum(axes, keepdim=True) / max(count - correction, 0)


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = _moments(x, list(range(x.dim() - len(shape), x.dim())))
    scale = torch.rsqrt(variance + eps)
    values = (x - mean) * scale
    values = values if weight is None else values * weight
    return values if bias is None else values + bias, mean, scale


def _rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    axes = list(range(x.dim() - len(shape), x.dim()))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scale = torch.rsqrt((x * x).mean(axes, keepdim=True) + eps)
    values = x * scale
    return values if weight is None else values * weight, scale


def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rows: int,
    channels: int,
    size: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    parts = x.reshape(rows, groups, -1)
    mean, variance = _moments(parts, [2])
    scale = torch.rsqrt(variance + eps)
    values = ((parts - mean) * scale).reshape(x.shape)
    broadcast = (1, channels, *(1,) * (x.dim() - 2))
    values = values if weight is None else values * weight.reshape(broadcast)
    values = values if bias is None else values + bias.reshape(broadcast)
    return values, mean.reshape(rows, groups), scale.reshape(rows, groups)


def _batch_norm_of_batch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """By the batch's own moments, as instance norm calls it."""
    mean, variance = _moments(x, [axis for axis in range(x.dim()) if axis != 1])
    scale = torch.rsqrt(variance + rest[-1])
    broadcast = (1, x.shape[1], *(1,) * (x.dim() - 2))
    values = (x - mean) * scale
    values = values if weight is None else values * weight.reshape(broadcast)
    values = values if bias is None else values + bias.reshape(broadcast)
    return values, mean.reshape(-1), scale.reshape(-1)


def _axes(x: Tensor, axes: Sequence[int] | None) -> list[int]:
    return [axis % x.dim() for axis in axes] if axes else list(range(x.dim()))


def _shaped(value: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    return value if keepdim else value.squeeze(tuple(axes))


def _variance(
    x: Tensor, axes: Any = None, *, correction: float | None = 1, keepdim: bool = False
) -> Tensor:
    kept = _axes(x, axes)
    moments = _moments(x, kept, 1 if correction is None else correction)
    return _shaped(moments[1], kept, keepdim)


def _deviation(x: Tensor, axes: Any = None, **settings: Any) -> Tensor:
    return torch.sqrt(_variance(x, axes, **settings))


def _variance_and_mean(
    x: Tensor, axes: Any = None, *, correction: float | None = 1, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    kept = _axes(x, axes)
    mean, variance = _moments(x, kept, 1 if correction is None else correction)
    return _shaped(variance, kept, keepdim), _shaped(mean, kept, keepdim)


def _vector_norm(
    x: Tensor,
    order: float | None = 2,
    axes: Any = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    kept, order = _axes(x, axes), 2 if order is None else order
    values = x if dtype is None else x.to(dtype)
    if order == 2:
        return torch.sqrt((values * values).sum(kept, keepdim=keepdim))
    sizes = values.abs()
    if math.isinf(order):
        return sizes.amax(kept, keepdim) if order > 0 else sizes.amin(kept, keepdim)
    if order == 0:
        return (values != 0).to(values.dtype).sum(kept, keepdim=keepdim)
    if order == 1:
        return sizes.sum(kept, keepdim=keepdim)
    return sizes.pow(order).sum(kept, keepdim=keepdim).pow(1 / order)


def _gated(x: Tensor, axis: int = -1) -> Tensor:
    values, gates = x.chunk(2, axis)
    return values * torch.sigmoid(gates)


def _distances(x: Tensor, y: Tensor, order: float, *_: Any) -> Tensor:
    """Between all vectors of two lists, `(..., P, M)` and `(..., R, M)`."""
    return _vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), order, [-1])


def _modulus(x: Tensor) -> Tensor:
    return _vector_norm(torch.view_as_real(x), 2, [-1])


def _copied(x: Tensor, values: Tensor, *_: Any) -> Tensor:
    return values.to(x.dtype).expand(x.shape).clone()


def _mkldnn_layer(
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    other_bias: Tensor,
    hidden: Tensor,
    cell: Tensor,
    reverse: bool,
    lengths: Sequence[int],
    mode: int,
    width: int,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One level of an LSTM in one direction, time first."""
    h, c = hidden.reshape(-1, width), cell.reshape(-1, width)
    outputs: list[Tensor] = []
    for step in reversed(x.unbind(0)) if reverse else x.unbind(0):
        values = step @ weight.t() + h @ recurrent.t()
        h, c = _lstm_cell(values + bias + other_bias if rest[1] else values, c)
        outputs.append(h)
    y = torch.stack(outputs[::-1] if reverse else outputs)
    return y, h.reshape(hidden.shape), c.reshape(cell.shape), x.new_empty(0)


def _lstm_cell(values: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    enter, forget, made, leave = values.chunk(4, 1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(made)
    return torch.sigmoid(leave) * torch.tanh(cell), cell


def _fused_lstm_cell(
    x: Tensor, h: Tensor, cell: Tensor, bias: Tensor | None = None, other: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    values = x + h
    values = values if bias is None else values + bias
    values = values if other is None else values + other
    return *_lstm_cell(values, cell), values


def _fused_gru_cell(
    x: Tensor, h: Tensor, hidden: Tensor, bias: Tensor | None = None, other: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    values = x if bias is None else x + bias
    recurrent = h if other is None else h + other
    (r, z, n), (r2, z2, n2) = values.chunk(3, 1), recurrent.chunk(3, 1)
    new = torch.tanh(n + torch.sigmoid(r + r2) * n2)
    return new + torch.sigmoid(z + z2) * (hidden - new), values


_TABLE: dict[str, Callable[..., Any]] = {
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "native_group_norm": _group_norm,
    "var": _variance,
    "std": _deviation,
    "var_mean": _variance_and_mean,
    "linalg_vector_norm": _vector_norm,
    "glu": _gated,
    "_cdist_forward": _distances,
    "copy": _copied,
    "mkldnn_rnn_layer": _mkldnn_layer,
    "_thnn_fused_lstm_cell": _fused_lstm_cell,
    "_thnn_fused_gru_cell": _fused_gru_cell,
}
_OF_BATCH = {"native_batch_norm": 5, "cudnn_batch_norm": 5, "_native_batch_norm_legit": -3}


def decomposition(packet: Any, args: Sequence[Any]) -> Callable[..., Any] | None:
    """What an operator is made of, as a function of the same arguments; None for most.

    Args:
        packet: the operator without its overload.
        args: positional ones.
    """
    name = packet.__name__
    training = _OF_BATCH.get(name)
    if training is not None and args[training]:
        return _batch_norm_of_batch
    if name == "abs" and args[0].is_complex():
        return _modulus
    return _TABLE.get(name)
