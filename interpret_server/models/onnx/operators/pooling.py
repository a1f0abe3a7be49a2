"""Pooling."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...lowered import Unlowerable
from ..call import Call
from ..registry import operator
from ..values import Output, Value
from .convolution import sum_windows
from .window import Window, padded, resolved, window_pads

_MAX: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVERAGE: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_GLOBAL: dict[tuple[str, int], Any] = {
    ("GlobalAveragePool", 1): nn.AdaptiveAvgPool1d,
    ("GlobalAveragePool", 2): nn.AdaptiveAvgPool2d,
    ("GlobalAveragePool", 3): nn.AdaptiveAvgPool3d,
    ("GlobalMaxPool", 1): nn.AdaptiveMaxPool1d,
    ("GlobalMaxPool", 2): nn.AdaptiveMaxPool2d,
    ("GlobalMaxPool", 3): nn.AdaptiveMaxPool3d,
}


def _window(call: Call, x: Value) -> Window:
    window = resolved(call, x, Window.of(call, call.integers("kernel_shape") or ()))
    if not 1 <= window.count <= 3:
        raise Unlowerable(f"{call.operator} over {window.count} axes; 1 to 3 are supported")
    return window


def _fits(window: Window) -> bool:
    padding = window.symmetric
    return padding is not None and all(
        pad <= width // 2 for pad, width in zip(padding, window.kernel, strict=True)
    )


@operator("MaxPool")
def max_pool(call: Call, x: Value) -> Output:
    window = _window(call, x)
    if len(call.outputs) > 1 and call.outputs[1]:
        return call.several(
            max_with_indices,
            x,
            window.kernel,
            window.strides,
            window.dilations,
            window.pads,
            window.auto_pad,
            window.ceil,
            bool(call.integer("storage_order")),
            count=2,
        )
    kind = f"max_pool{window.count}d"
    dtype = call.dtype(x)
    if dtype is not None and not dtype.is_floating_point:
        x = call.function(Tensor.float, x, kind="cast")
    if _fits(window):
        module = _MAX[window.count](
            window.kernel,
            window.strides,
            window.symmetric,
            window.dilations,
            ceil_mode=window.ceil,
        )
    else:
        x = padded(call, x, window, -math.inf)
        module = _MAX[window.count](window.kernel, window.strides, 0, window.dilations)
    y = call.module(module, x, kind=kind)
    if dtype is not None and not dtype.is_floating_point:
        return call.function(Tensor.to, y, dtype, kind="cast")
    return y


def max_with_indices(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    auto_pad: str,
    ceil: bool,
    columns_first: bool,
) -> tuple[Tensor, Tensor]:
    """The largest element of each window and its position in the flattened input."""
    sides = window_pads(x.shape[2:], kernel, strides, dilations, pads, auto_pad, ceil)
    flat_sides = [side for pair in reversed(sides) for side in pair]
    functions: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
    values, index = functions[len(kernel) - 1](
        F.pad(x if x.is_floating_point() else x.float(), flat_sides, value=-math.inf),
        list(kernel),
        list(strides),
        0,
        list(dilations),
        return_indices=True,
    )
    places: list[Tensor] = []
    for (before, after), length in reversed(list(zip(sides, x.shape[2:], strict=True))):
        places.insert(0, index % (length + before + after) - before)
        index = torch.div(index, length + before + after, rounding_mode="floor")
    axes = list(enumerate(x.shape[2:]))
    position = torch.zeros_like(places[0])
    for axis, length in reversed(axes) if columns_first else axes:
        position = position * length + places[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device)
    planes = planes.reshape(x.shape[0], x.shape[1], *[1] * len(kernel)) * math.prod(x.shape[2:])
    return values.to(x.dtype), position + planes


@operator("AveragePool")
def average_pool(call: Call, x: Value) -> Output:
    window = _window(call, x)
    with_padding = bool(call.integer("count_include_pad"))
    kind = f"avg_pool{window.count}d"
    undilated = all(dilation == 1 for dilation in window.dilations)
    if _fits(window) and undilated:
        module = _AVERAGE[window.count](
            window.kernel, window.strides, window.symmetric, window.ceil, with_padding
        )
        return call.module(module, x, kind=kind)
    if with_padding and undilated and not window.ceil:
        module = _AVERAGE[window.count](window.kernel, window.strides)
        return call.module(module, padded(call, x, window), kind=kind)
    return call.function(
        windowed_mean,
        x,
        window.kernel,
        window.strides,
        window.dilations,
        window.pads,
        window.auto_pad,
        window.ceil,
        with_padding,
        kind=kind,
    )


def windowed_mean(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    auto_pad: str,
    ceil: bool,
    with_padding: bool,
) -> Tensor:
    """The mean of each window over the input, or over the input and its declared padding."""
    sides = window_pads(x.shape[2:], kernel, strides, dilations, pads, auto_pad, ceil)
    flat_sides = [side for pair in reversed(sides) for side in pair]
    ones = torch.ones_like(x[:1])
    if with_padding:
        declared = window_pads(x.shape[2:], kernel, strides, dilations, pads, auto_pad, False)
        inside = [(a, min(b, e)) for (a, b), (_, e) in zip(sides, declared, strict=True)]
        ones = F.pad(ones, [side for pair in reversed(inside) for side in pair], value=1.0)
        rest = [(0, b - e) for (_, b), (_, e) in zip(sides, inside, strict=True)]
        counted = F.pad(ones, [side for pair in reversed(rest) for side in pair])
    else:
        counted = F.pad(ones, flat_sides)
    total = sum_windows(F.pad(x, flat_sides), kernel, strides, dilations)
    return total / sum_windows(counted, kernel, strides, dilations)


@operator("LpPool")
def lp_pool(call: Call, x: Value) -> Output:
    window = _window(call, x)
    return call.function(
        windowed_norm,
        padded(call, x, window),
        window.kernel,
        window.strides,
        window.dilations,
        call.integer("p", 2),
    )


def windowed_norm(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], p: int
) -> Tensor:
    """The p-norm of each window."""
    total = sum_windows(x.abs() ** p, kernel, strides, dilations)
    return torch.where(total > 0, total, torch.ones_like(total)) ** (1 / p) * (total > 0)


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(call: Call, x: Value) -> Output:
    largest = call.operator == "GlobalMaxPool"
    module = _GLOBAL.get((call.operator, (call.rank(x) or 0) - 2))
    if module is None:
        return call.function(largest_everywhere if largest else mean_everywhere, x)
    count = (call.rank(x) or 0) - 2
    kind = f"adaptive_{'max' if largest else 'avg'}_pool{count}d"
    return call.module(module(1), x, kind=kind)


def mean_everywhere(x: Tensor) -> Tensor:
    """The mean over all spatial axes."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def largest_everywhere(x: Tensor) -> Tensor:
    """The maximum over all spatial axes."""
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call, x: Value) -> Output:
    return call.function(norm_everywhere, x, call.integer("p", 2))


def norm_everywhere(x: Tensor, p: int) -> Tensor:
    """The p-norm over all spatial axes."""
    norm: Tensor = torch.linalg.vector_norm(x, p, tuple(range(2, x.dim())), keepdim=True)
    return norm
