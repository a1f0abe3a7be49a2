"""Arithmetic, comparison, logic and types, element by element."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from ...lowered import Unlowerable
from ..call import Call
from ..carried import carried, holds_integers, integer_type
from ..grid import limits
from ..registry import operator
from ..values import Maybe, Output, Value

_UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.det,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Division; of integers, rounded towards zero."""
    if a.is_floating_point() or b.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def power(a: Tensor, b: Tensor) -> Tensor:
    """`a ** b` in the type of `a`."""
    return torch.pow(a, b).to(a.dtype)


_BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Div": divide,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Pow": power,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}


@operator(*(name for name in _UNARY if name != "Round"))
def unary(call: Call, x: Value) -> Output:
    return call.function(_UNARY[call.operator], x)


def round_straight_through(x: Tensor) -> Tensor:
    """`x` rounded half to even, with the gradient of `x`."""
    return x + (x.round() - x).detach()


@operator("Round")
def rounding(call: Call, x: Value) -> Output:
    return call.function(round_straight_through if call.straight_through else torch.round, x)


@operator(*(name for name in _BINARY if name != "Add"))
def binary(call: Call, a: Value, b: Value) -> Output:
    return call.function(_BINARY[call.operator], a, aligned(call, a, b))


def aligned(call: Call, a: Value, b: Value) -> Value:
    """`b`, with the trailing axes that broadcasting before opset 7 asks for by an attribute."""
    if not call.integer("broadcast") or "axis" not in call.attributes:
        return b
    rank_a, rank_b = call.rank(a), call.rank(b)
    if rank_a is None or rank_b is None:
        raise Unlowerable(f"{call.operator} with the attribute axis on values of unknown rank")
    missing = rank_a - call.integer("axis") % rank_a - rank_b
    for _ in range(missing):
        b = call.function(torch.unsqueeze, b, -1, kind="unsqueeze")
    return b


_VARIADIC: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}


@operator(*_VARIADIC)
def variadic(call: Call, *values: Value) -> Output:
    return functools.reduce(lambda a, b: call.function(_VARIADIC[call.operator], a, b), values)


@operator("Mean")
def mean(call: Call, *values: Value) -> Output:
    total = functools.reduce(lambda a, b: call.function(torch.add, a, b, kind="add"), values)
    return call.function(torch.div, total, len(values))


@operator("Mod")
def modulo(call: Call, a: Value, b: Value) -> Output:
    return call.function(torch.fmod if call.integer("fmod") else torch.remainder, a, b)


@operator("BitShift")
def bit_shift(call: Call, a: Value, b: Value) -> Output:
    left = call.text("direction", "LEFT") == "LEFT"
    return call.function(torch.bitwise_left_shift if left else torch.bitwise_right_shift, a, b)


@operator("Where")
def where(call: Call, condition: Value, a: Value, b: Value) -> Output:
    return call.function(torch.where, condition, a, b)


@operator("IsInf")
def is_inf(call: Call, x: Value) -> Output:
    return call.function(
        infinite,
        x,
        bool(call.integer("detect_negative", 1)),
        bool(call.integer("detect_positive", 1)),
    )


def infinite(x: Tensor, negative: bool, positive: bool) -> Tensor:
    """Where `x` is infinite, with the signs asked for."""
    none = torch.zeros_like(x, dtype=torch.bool)
    below = torch.isneginf(x) if negative else none
    return below | torch.isposinf(x) if positive else below


def convert(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in another element type."""
    return x.to(dtype)


def convert_like(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the element type of another tensor."""
    return x.to(like.dtype)


_OLD_NAMES = {"FLOAT": 1, "UINT8": 2, "INT8": 3, "INT32": 6, "INT64": 7, "BOOL": 9, "DOUBLE": 11}


@operator("Cast")
def cast(call: Call, x: Value) -> Output:
    code = call.attributes["to"]
    dtype = call.target_dtype(_OLD_NAMES.get(code, 0) if isinstance(code, str) else code)
    if holds_integers(x) and _holds(dtype, integer_type(call, x)):
        return carried(call.module(nn.Identity(), x, kind="cast"), dtype)
    return call.function(convert, x, dtype)


def _holds(dtype: torch.dtype, grid: torch.dtype) -> bool:
    """Whether an integer type has room for another."""
    if dtype.is_floating_point or dtype is torch.bool:
        return False
    (low, high), (least, most) = limits(dtype), limits(grid)
    return low <= least and most <= high


@operator("CastLike")
def cast_like(call: Call, x: Value, like: Value) -> Output:
    dtype = call.dtype(like)
    if dtype is None:
        return call.function(convert_like, x, like, kind="cast")
    return call.function(convert, x, dtype, kind="cast")


@operator("Identity")
def identity(call: Call, x: Value) -> Output:
    return call.module(nn.Identity(), x) if isinstance(x, fx.Node) else x


def everywhere(x: Tensor) -> Tensor:
    """True at every element."""
    return torch.ones_like(x, dtype=torch.bool)


@operator("Dropout")
def dropout(call: Call, x: Value, ratio: Maybe = None, training: Maybe = None) -> Output:
    outputs = [call.module(nn.Identity(), x)]
    if len(call.outputs) > 1:
        outputs.append(call.function(everywhere, x, kind="constant"))
    return outputs


def cumulate(x: Tensor, axes: Sequence[int], products: bool, exclusive: bool, back: bool) -> Tensor:
    """Running sums or products along an axis."""
    (axis,) = axes
    x = x.flip(axis) if back else x
    if exclusive:
        first = torch.full_like(x.narrow(axis, 0, 1), 1 if products else 0)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    result = (torch.cumprod if products else torch.cumsum)(x, axis, dtype=x.dtype)
    return result.flip(axis) if back else result


@operator("CumSum", "CumProd")
def cumulative(call: Call, x: Value, axis: Value) -> Output:
    return call.function(
        cumulate,
        x,
        call.items(axis),
        call.operator == "CumProd",
        bool(call.integer("exclusive")),
        bool(call.integer("reverse")),
    )


def clip_to(x: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
    """`x` no smaller than `low` and no larger than `high`."""
    if low is not None:
        x = torch.maximum(x, low.to(x.dtype))
    return x if high is None else torch.minimum(x, high.to(x.dtype))


@operator("Clip")
def clip(call: Call, x: Value, low: Maybe = None, high: Maybe = None) -> Output:
    if "min" in call.attributes:
        low = torch.tensor(call.real("min", 0.0))
    if "max" in call.attributes:
        high = torch.tensor(call.real("max", 0.0))
    if low is None and high is None:
        return call.module(nn.Identity(), x, kind="identity")
    bounds = [b.item() for b in (low, high) if isinstance(b, Tensor) and b.numel() == 1]
    if not call.is_float(x) or len(bounds) != (low is not None) + (high is not None):
        return call.function(clip_to, x, low, high)
    least = bounds[0] if low is not None else -math.inf
    most = bounds[-1] if high is not None else math.inf
    if _unbounded(most) and least == 0:
        return call.module(nn.ReLU(), x, kind="relu")
    if (least, most) == (0, 6):
        return call.module(nn.ReLU6(), x, kind="relu6")
    if math.isfinite(least) and math.isfinite(most) and least < most:
        return call.module(nn.Hardtanh(least, most), x, kind="hardtanh")
    return call.function(clip_to, x, low, high)


def _unbounded(limit: float) -> bool:
    return limit >= torch.finfo(torch.float32).max
