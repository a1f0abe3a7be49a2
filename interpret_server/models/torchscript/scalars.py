"""TorchScript's operators on numbers, strings and lists, as the Python functions that they are."""

import math
import operator
from collections.abc import Callable
from typing import Any


def range_length(start: int, stop: int, step: int) -> int:
    """How many numbers `range(start, stop, step)` holds."""
    return len(range(start, stop, step))


def derive_index(index: int, start: int, step: int) -> int:
    """Number `index` of a range."""
    return start + index * step


def smallest(*values: Any) -> Any:
    """The smallest of several numbers or of one list."""
    return min(*values)


def largest(*values: Any) -> Any:
    """The largest of several numbers or of one list."""
    return max(*values)


SCALARS: dict[str, Callable[..., Any]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::div": operator.truediv,
    "aten::floordiv": operator.floordiv,
    "aten::floor_divide": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::fmod": math.fmod,
    "aten::pow": operator.pow,
    "aten::neg": operator.neg,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::__and__": operator.and_,
    "aten::__or__": operator.or_,
    "aten::__xor__": operator.xor,
    "aten::__not__": operator.not_,
    "aten::__lshift__": operator.lshift,
    "aten::__rshift__": operator.rshift,
    "aten::__range_length": range_length,
    "aten::__derive_index": derive_index,
    "aten::ceil": math.ceil,
    "aten::floor": math.floor,
    "aten::round": round,
    "aten::sqrt": math.sqrt,
    "aten::exp": math.exp,
    "aten::log": math.log,
    "aten::log2": math.log2,
    "aten::sin": math.sin,
    "aten::cos": math.cos,
    "aten::tanh": math.tanh,
    "aten::gcd": math.gcd,
    "aten::sum": sum,
    "aten::Int": int,
    "aten::IntImplicit": int,
    "aten::Float": float,
    "aten::FloatImplicit": float,
    "aten::Bool": bool,
    "aten::ScalarImplicit": operator.pos,
    "aten::str": str,
    "prim::abs": abs,
    "aten::abs": abs,
    "prim::min": smallest,
    "prim::max": largest,
}
