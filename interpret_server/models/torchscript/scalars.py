"""TorchScript's operators on numbers, strings and lists, as the Python functions that they are."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch


def range_length(start: int, stop: int, step: int) -> int:
    """How many numbers `range(start, stop, step)` holds."""
    return len(range(start, stop, step))


def derive_index(index: int, start: int, step: int) -> int:
    """Number `index` of a range."""
    return start + index * step


def plain(value: Any) -> Any:
    """The number in a tensor of one element; a number as it is."""
    return value.item() if isinstance(value, torch.Tensor) else value


def element(sequence: Any, index: int) -> Any:
    """One character of a string."""
    return sequence[index]


def formatted(template: str, *values: Any) -> str:
    """A message: TorchScript fills every `{}` in turn."""
    parts = template.split("{}")
    texts = [str(value) for value in values][: len(parts) - 1]
    texts += ["{}"] * (len(parts) - 1 - len(texts))
    return "".join(part + text for part, text in zip(parts, [*texts, ""], strict=True))


def truncated(dividend: int, divisor: int) -> int:
    """The quotient, rounded towards zero."""
    quotient = abs(dividend) // abs(divisor)
    return quotient if (dividend < 0) == (divisor < 0) else -quotient


def smallest(*values: Any) -> Any:
    """The smallest of several numbers or of one list."""
    return min(*values)


def largest(*values: Any) -> Any:
    """The largest of several numbers or of one list."""
    return max(*values)


TRUNCATED = "aten::div.trunc"  # no operator of TorchScript's: a division with a rounding mode

SCALARS: dict[str, Callable[..., Any]] = {
    TRUNCATED: truncated,
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
    "aten::asin": math.asin,
    "aten::acos": math.acos,
    "aten::atan": math.atan,
    "aten::atan2": math.atan2,
    "aten::tan": math.tan,
    "aten::sinh": math.sinh,
    "aten::cosh": math.cosh,
    "aten::log10": math.log10,
    "aten::log1p": math.log1p,
    "aten::expm1": math.expm1,
    "aten::fabs": math.fabs,
    "aten::isnan": math.isnan,
    "aten::isinf": math.isinf,
    "aten::isfinite": math.isfinite,
    "aten::factorial": math.factorial,
    "aten::sum": sum,
    "aten::all": all,
    "aten::any": any,
    "aten::sorted": sorted,
    "aten::Int": int,
    "aten::IntImplicit": int,
    "aten::Float": float,
    "aten::FloatImplicit": float,
    "aten::Bool": bool,
    "aten::ScalarImplicit": operator.pos,
    "aten::str": str,
    "aten::ord": ord,
    "aten::chr": chr,
    "aten::lower": str.lower,
    "aten::upper": str.upper,
    "aten::strip": str.strip,
    "aten::split": str.split,
    "aten::join": str.join,
    "aten::replace": str.replace,
    "aten::startswith": str.startswith,
    "aten::endswith": str.endswith,
    "aten::find": str.find,
    "prim::abs": abs,
    "aten::abs": abs,
    "prim::min": smallest,
    "prim::max": largest,
}
