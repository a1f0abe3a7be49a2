"""Quantised values during import, which the graph holds as floating-point numbers."""

import torch
from torch import Tensor, fx

from .call import Call
from .values import Maybe, Value

_INTEGERS = "integers"
_DEEPEST = 16


def form_of(call: Call, *values: Maybe) -> str:
    """What a quantised result is held as; see `grid`. Constants stay integers."""
    if call.faithful or not any(isinstance(value, fx.Node) for value in values):
        return "integers"
    return "straight_through" if call.straight_through else "numbers"


def carried(value: Value, grid: torch.dtype) -> Value:
    """A value that holds integers of a type, whatever it is held as."""
    if isinstance(value, fx.Node):
        value.meta[_INTEGERS] = grid
    return value


def integer_type(call: Call, x: Maybe, default: torch.dtype = torch.uint8) -> torch.dtype:
    """The type of a quantised value: its own, or that which its floating-point numbers stand for.

    Operators in between, such as pooling and reshapes, keep the type of their first input.
    """
    dtype = None if x is None else call.dtype(x)
    if isinstance(x, Tensor) or (dtype is not None and not dtype.is_floating_point):
        return dtype or default
    for _ in range(_DEEPEST):
        if not isinstance(x, fx.Node):
            break
        if _INTEGERS in x.meta:
            grid: torch.dtype = x.meta[_INTEGERS]
            return grid
        x = next(iter(x.all_input_nodes), None)
    return default


def holds_integers(x: Value) -> bool:
    """Whether a value is floating-point numbers that stand for integers."""
    return isinstance(x, fx.Node) and _INTEGERS in x.meta
