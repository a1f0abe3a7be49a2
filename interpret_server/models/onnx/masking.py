"""Softmax over masked scores, where everything may be masked.

Softmax of nothing but -inf is NaN, and so is its gradient, which spreads to every input even where
the file replaces the NaN afterwards. Such slices are taken out before softmax and put back after
it: the values are those of the file, and no gradient passes through them.
"""

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from .builder import Builder
from .values import Value

_LOWEST = -1e30  # two such numbers may add up to -inf
_MOST = 64  # nodes looked at


def may_be_masked(builder: Builder, x: Value) -> bool:
    """Whether a value may hold -inf, from a mask that is added, selected or given."""
    if not isinstance(x, fx.Node):
        return False
    pending, seen = [x], {x}
    while pending and len(seen) < _MOST:
        node = pending.pop()
        dtype = builder.dtype(node)
        if dtype is not None and not dtype.is_floating_point:
            continue
        if node.op == "placeholder" or node.target is torch.log or _has_low_number(builder, node):
            return True
        if _computes_scores(builder, node):
            continue
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return bool(pending)


def _has_low_number(builder: Builder, node: fx.Node) -> bool:
    if node.op == "get_attr":
        return bool((builder.root.get_buffer(str(node.target)) <= _LOWEST).any())
    found: list[float] = []

    def visit(item: Any) -> Any:
        if isinstance(item, float) and item <= _LOWEST:
            found.append(item)
        return item

    fx.node.map_aggregate((node.args, node.kwargs), visit)
    return bool(found)


def _computes_scores(builder: Builder, node: fx.Node) -> bool:
    if node.op == "call_module":
        return not isinstance(builder.root.get_submodule(str(node.target)), nn.Identity)
    return node.target in (torch.matmul, torch.bmm, torch.einsum)


def is_masked(x: Tensor, axis: int) -> Tensor:
    """Where all of a slice along an axis is -inf."""
    return (x == -math.inf).all(axis, keepdim=True)


def unmasked(x: Tensor, masked: Tensor) -> Tensor:
    """`x` with zeros in the slices that are masked."""
    return x.masked_fill(masked, 0.0)


def masked_again(y: Tensor, masked: Tensor) -> Tensor:
    """`y` with NaN in the slices that are masked."""
    return y.masked_fill(masked, math.nan)
