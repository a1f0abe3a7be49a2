"""Quantisation of PT2E programs: `quantized_decomposed` operators, exact going forward.

Going back, rounding passes no gradient, unless the straight-through estimator is asked for (Bengio
et al. 2013, arXiv:1308.3432): then a value that was not cut off passes its gradient as it is.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..torchscript.values import DTYPES, Item, Origin, Value, concrete, origin_of

if TYPE_CHECKING:
    from .walker import Walker

_HALF = (torch.float16, torch.bfloat16)


class _Round(torch.autograd.Function):
    """Rounded and cut off, still in floating point; the gradient of what was not cut off passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, zero_point: Any, lower: int, upper: int) -> Tensor:
        rounded = torch.round(x) + zero_point
        ctx.save_for_backward((rounded >= lower) & (rounded <= upper))
        return torch.clamp(rounded, lower, upper)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (kept,) = ctx.saved_tensors
        return gradients[0] * kept, None, None, None


def quantise(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int,
    lower: int,
    upper: int,
    dtype: torch.dtype | None,
    axis: int | None = None,
) -> Tensor:
    """`round(x / scale) + zero_point`, cut off at the limits.

    Args:
        x: floating point.
        scale: of the whole, or `(C,)` along `axis`.
        zero_point: like `scale`.
        lower: the smallest number.
        upper: the largest number.
        dtype: of the result; None for that of `x`, with straight-through gradients.
        axis: along which scales differ.
    """
    x = x.float() if x.dtype in _HALF else x
    inverse = 1.0 / (scale.double() if isinstance(scale, Tensor) else scale)
    if isinstance(inverse, Tensor):
        inverse = _along(inverse.to(x.dtype), x, axis)
    zero_point = _along(zero_point, x, axis)
    if dtype is None:
        result: Tensor = _Round.apply(x * inverse, zero_point, lower, upper)  # type: ignore[no-untyped-call]
        return result
    return torch.clamp(torch.round(x * inverse) + zero_point, lower, upper).to(dtype)


def dequantise(
    x: Tensor,
    scale: Tensor | float,
    zero_point: Tensor | int | None,
    dtype: torch.dtype,
    axis: int | None = None,
) -> Tensor:
    """`(x - zero_point) * scale`; see `quantise`."""
    wide = x if x.is_floating_point() else x.to(dtype)
    if zero_point is not None:
        wide = wide - _along(zero_point, x, axis)
    scaled: Tensor = wide * _along(scale, x, axis)
    return scaled.to(wide.dtype if x.is_floating_point() else dtype)


def _along(value: Any, x: Tensor, axis: int | None) -> Any:
    if not isinstance(value, Tensor) or axis is None:
        return value
    return value.reshape([-1 if place == axis % x.dim() else 1 for place in range(x.dim())])


def _number(item: Item) -> Item:
    """The number that a constant tensor of one element holds."""
    if isinstance(item, Value) and item.is_tensor and item.origin is Origin.CONSTANT:
        return Value(item.value.item()) if item.value.numel() == 1 else item
    return item


def _record(walker: "Walker", function: Any, items: list[Item], kind: str) -> Item:
    with torch.no_grad():
        result = function(*(concrete(item) for item in items))
    if origin_of(items) is Origin.CONSTANT:
        return Value(result)
    return walker.recorder.function(function, items, {}, result, Origin.DATA, kind=kind)


def _dtype(item: Item, default: torch.dtype) -> Value:
    value = item.value
    return Value(DTYPES[value] if isinstance(value, int) else value or default)


def quantize(walker: "Walker", arguments: dict[str, Item]) -> Item:
    """`quantize_per_tensor` and `quantize_per_channel`."""
    source = arguments["input"]
    if source.origin is not Origin.CONSTANT:
        walker.precision = torch.int8
    if walker.straight_through and source.origin is not Origin.CONSTANT:
        dtype = Value(None)
    else:
        dtype = _dtype(arguments["dtype"], torch.int8)
    axis = arguments.get("axis", Value(None))
    scale = arguments.get("scale", arguments.get("scales"))
    zero_point = arguments.get("zero_point", arguments.get("zero_points"))
    limits = [_number(arguments["quant_min"]), _number(arguments["quant_max"])]
    if axis.value is None:
        scale, zero_point = _number(scale), _number(zero_point)
    return _record(walker, quantise, [source, scale, zero_point, *limits, dtype, axis], "quantize")


def dequantize(walker: "Walker", arguments: dict[str, Item]) -> Item:
    """`dequantize_per_tensor` and `dequantize_per_channel`."""
    axis = arguments.get("axis", Value(None))
    scale = arguments.get("scale", arguments.get("scales"))
    zero_point = arguments.get("zero_point", arguments.get("zero_points"))
    dtype = _dtype(arguments["out_dtype"], torch.float32)
    if axis.value is None:
        scale, zero_point = _number(scale), _number(zero_point)
    items = [arguments["input"], scale, zero_point, dtype, axis]
    return _record(walker, dequantise, items, "dequantize")


def choose_qparams(walker: "Walker", arguments: dict[str, Item]) -> Item:
    """`choose_qparams`: scale and zero point by the values of a whole batch."""
    walker.mixes_rows = True
    walker.recorder.note("Quantisation takes its scale from the values of a whole batch.")
    limits = [arguments["quant_min"], arguments["quant_max"], arguments["eps"]]
    items = [arguments["input"], *limits, _dtype(arguments["dtype"], torch.int8)]
    return _record(walker, _chosen, items, "choose_qparams")


def _chosen(
    x: Tensor, lower: int, upper: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    chosen = torch.ops.quantized_decomposed.choose_qparams.tensor(
        x.detach().float(), lower, upper, eps, dtype
    )
    return tuple(chosen)
