"""Shape arithmetic: operators on numbers that Python knows, so that no device is waited for."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from .call import Call
from .values import Maybe, Number, Numbers, Value, dtype_of, number_type

_LONGEST = 64


def divide(a: int, b: int) -> int:
    """Integer division that rounds towards zero."""
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def choose(condition: bool, a: float, b: float) -> float:
    """`a` where the condition holds, else `b`."""
    return a if condition else b


def both(a: bool, b: bool) -> bool:
    """Logical and."""
    return bool(a) and bool(b)


def either(a: bool, b: bool) -> bool:
    """Logical or."""
    return bool(a) or bool(b)


def product(*items: float) -> float:
    """The product of numbers."""
    return math.prod(items)


def total(*items: float) -> float:
    """The sum of numbers."""
    return sum(items)


_COMPARISONS: Mapping[str, Callable[..., Any]] = {
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "And": both,
    "Or": either,
    "Not": operator.not_,
}
_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Mod": operator.mod,
    "Neg": operator.neg,
    "Abs": operator.abs,
    "Floor": math.floor,
    "Ceil": math.ceil,
    "Sqrt": math.sqrt,
    "Max": max,
    "Min": min,
    "Sum": total,
    "Where": choose,
}
_REDUCTIONS: Mapping[str, Callable[..., Any]] = {
    "ReduceProd": product,
    "ReduceSum": total,
    "ReduceMax": max,
    "ReduceMin": min,
}


def evaluate(call: Call, inputs: list[Maybe]) -> Value | None:
    """The output of a node that computes on shapes; None where this is none.

    At least one input is `Numbers`, the others are numbers too or small constants.
    """
    if call.domain or not any(isinstance(value, Numbers) for value in inputs):
        return None
    views = [_view(value) for value in inputs if value is not None]
    if any(view is None for view in views):
        return None
    known = [view for view in views if view is not None]
    name = call.operator
    if name in _COMPARISONS:
        return _elementwise(call, _COMPARISONS[name], known, torch.bool)
    if name == "Div":
        real = known[0].dtype.is_floating_point
        return _elementwise(call, operator.truediv if real else divide, known, known[0].dtype)
    if name in _ARITHMETIC:
        return _elementwise(call, _ARITHMETIC[name], known, known[-1].dtype)
    if name in _REDUCTIONS:
        return _reduce(call, _REDUCTIONS[name], known)
    rule = _STRUCTURAL.get(name)
    return None if rule is None else rule(call, *known)


def _view(value: Value) -> Numbers | None:
    if isinstance(value, Numbers):
        return value
    if isinstance(value, Tensor) and value.dim() <= 1 and value.numel() <= _LONGEST:
        return Numbers(tuple(value.reshape(-1).tolist()), value.dim() == 0, value.dtype)
    return None


def _elementwise(
    call: Call, function: Callable[..., Any], views: list[Numbers], dtype: torch.dtype
) -> Value | None:
    lengths = {len(view.items) for view in views} - {1}
    if len(lengths) > 1:
        return None
    length = lengths.pop() if lengths else 1
    columns = zip(*(v.items * length if len(v.items) == 1 else v.items for v in views), strict=True)
    items = [call.builder.number(function, *column) for column in columns]
    return call.numbers(items, all(view.scalar for view in views), dtype)


def _reduce(call: Call, function: Callable[..., Any], views: list[Numbers]) -> Value | None:
    if len(views[0].items) < 2:
        return None
    item = call.builder.number(function, *views[0].items)
    return call.numbers([item], not call.integer("keepdims", 1), views[0].dtype)


def _known(view: Numbers) -> list[int] | None:
    if any(isinstance(item, fx.Node) for item in view.items):
        return None
    return [int(item) for item in view.items if not isinstance(item, fx.Node)]


def _identity(call: Call, x: Numbers, *_: Numbers) -> Value:
    return x


def _cast(call: Call, x: Numbers) -> Value:
    dtype = dtype_of(call.integer("to"))
    items = [call.builder.number(number_type(dtype), item) for item in x.items]
    return call.numbers(items, x.scalar, dtype)


def _concat(call: Call, *views: Numbers) -> Value | None:
    if any(view.scalar for view in views):
        return None
    items = [item for view in views for item in view.items]
    return call.numbers(items, False, views[0].dtype)


def _gather(call: Call, x: Numbers, index: Numbers) -> Value | None:
    picks = _known(index)
    if picks is None or not all(-len(x.items) <= i < len(x.items) for i in picks):
        return None
    return call.numbers([x.items[i] for i in picks], index.scalar, x.dtype)


def _slice(call: Call, x: Numbers, *bounds: Numbers) -> Value | None:
    if bounds:
        known = [_known(bound) for bound in bounds]
        numbers = [value[0] for value in known if value]
        if len(numbers) != len(bounds):
            return None
        start, end = numbers[0], numbers[1]
        step = numbers[3] if len(numbers) > 3 else 1
    else:
        starts, ends = call.integers("starts"), call.integers("ends")
        if not starts or not ends:
            return None
        start, end, step = starts[0], ends[0], 1
    if step < 0 and end < -len(x.items):
        return call.numbers(x.items[start::step], False, x.dtype)
    return call.numbers(x.items[start:end:step], False, x.dtype)


def _squeeze(call: Call, x: Numbers, *_: Numbers) -> Value | None:
    return call.numbers(x.items, True, x.dtype) if len(x.items) == 1 else None


def _unsqueeze(call: Call, x: Numbers, *axes: Numbers) -> Value | None:
    count = len(axes[0].items) if axes else len(call.integers("axes") or ())
    return call.numbers(x.items, False, x.dtype) if x.scalar and count == 1 else None


def _reshape(call: Call, x: Numbers, shape: Numbers) -> Value | None:
    dims: list[Number] = list(shape.items)
    if len(dims) > 1:
        return None
    return call.numbers(x.items, not dims, x.dtype)


_STRUCTURAL: Mapping[str, Callable[..., Value | None]] = {
    "Identity": _identity,
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
}
