"""Convolution and transposed convolution."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...lowered import Unlowerable
from ..call import Call
from ..registry import operator
from ..values import Maybe, Output, Value
from .window import Window, padded, resolved

_MODULES: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter that does not ask for gradients."""
    return nn.Parameter(tensor, requires_grad=False)


def kernel_of(call: Call, weight: Value) -> tuple[int, ...]:
    """The sizes of a convolution's kernel.

    Raises:
        Unlowerable: they are not known, or there are not 1 to 3 of them.
    """
    shape = call.shape(weight)
    if shape is None or None in shape or not 3 <= len(shape) <= 5:
        raise Unlowerable(f"{call.operator} with a weight that has not 1 to 3 spatial axes")
    return tuple(length for length in shape[2:] if length is not None)


@operator("Conv")
def conv(call: Call, x: Value, weight: Value, bias: Maybe = None) -> Output:
    window = resolved(call, x, Window.of(call, kernel_of(call, weight)))
    groups = call.integer("group", 1)
    padding = window.symmetric
    if padding is None:
        x, padding = padded(call, x, window), (0,) * window.count
    kind = f"conv{window.count}d"
    if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
        function = (F.conv1d, F.conv2d, F.conv3d)[window.count - 1]
        return call.function(
            function, x, weight, bias, window.strides, padding, window.dilations, groups, kind=kind
        )
    module = _MODULES[window.count](
        weight.shape[1] * groups,
        weight.shape[0],
        window.kernel,
        window.strides,
        padding,
        window.dilations,
        groups,
        bias is not None,
        device="meta",
    )
    module.weight = frozen(weight)
    if bias is not None:
        module.bias = frozen(bias)
    return call.module(module, x, kind=kind)


def trim(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """`x` without the first and last elements of its spatial axes; negative counts add zeros."""
    sides = [-side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
    return F.pad(x, sides)


def add_channels(x: Tensor, bias: Tensor) -> Tensor:
    """`x` plus one number per channel."""
    return x + bias.reshape(-1, *[1] * (x.dim() - 2))


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Value, weight: Value, bias: Maybe = None) -> Output:
    window = Window.of(call, kernel_of(call, weight))
    extra = tuple(call.integers("output_padding") or [0] * window.count)
    before, after = _trims(call, x, window, extra)
    groups = call.integer("group", 1)
    limits = zip(extra, window.strides, window.dilations, strict=True)
    plain = before == after and min(before) >= 0 and all(e < max(s, d) for e, s, d in limits)
    kind = f"conv_transpose{window.count}d"
    if plain and isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor)):
        module = _TRANSPOSED[window.count](
            weight.shape[0],
            weight.shape[1] * groups,
            window.kernel,
            window.strides,
            before,
            extra,
            groups,
            bias is not None,
            window.dilations,
            device="meta",
        )
        module.weight = frozen(weight)
        if bias is not None:
            module.bias = frozen(bias)
        return call.module(module, x, kind=kind)
    functions: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
    y = call.function(
        functions[window.count - 1],
        x,
        weight,
        None,
        window.strides,
        0,
        0,
        groups,
        window.dilations,
        kind=kind,
    )
    y = call.function(
        trim, y, before, [end - e for end, e in zip(after, extra, strict=True)], kind="pad"
    )
    return y if bias is None else call.function(add_channels, y, bias, kind="add")


def _trims(
    call: Call, x: Value, window: Window, extra: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    wanted = call.integers("output_shape")
    if wanted is None and not window.auto_pad.startswith("SAME"):
        return window.pads[: window.count], window.pads[window.count :]
    shape = call.shape(x)
    lengths = [length for length in (shape or ())[2:] if length is not None]
    if len(lengths) != window.count:
        raise Unlowerable(f"{call.operator} with an output shape on an input of unknown size")
    before, after = [], []
    for axis, length in enumerate(lengths):
        stride = window.strides[axis]
        span = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        size = wanted[axis - window.count] if wanted else length * stride
        total = stride * (length - 1) + extra[axis] + span - size
        less, more = total // 2, total - total // 2
        upper = window.auto_pad == "SAME_UPPER"
        before.append(less if upper else more)
        after.append(more if upper else less)
    return tuple(before), tuple(after)


def sum_windows(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Tensor:
    """The sum of each window, channel by channel."""
    ones = torch.ones((x.shape[1], 1, *kernel), dtype=x.dtype, device=x.device)
    functions: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
    result: Tensor = functions[len(kernel) - 1](
        x, ones, None, tuple(strides), 0, tuple(dilations), x.shape[1]
    )
    return result
