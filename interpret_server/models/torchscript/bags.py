"""Bags of embeddings as an embedding and a reduction, so that the embedded tokens can be read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from .values import Item, Origin, Value, concrete

if TYPE_CHECKING:
    from .operators import Operators

_aten = torch.ops.aten
_NONE = Value(None)
_SUM, _MEAN, _MAX = range(3)  # `mode` of aten::embedding_bag


def embedding_bag(operators: "Operators", items: Sequence[Item]) -> Item:
    """`aten::embedding_bag` of rows of tokens `(N, T)`, as `nn.EmbeddingBag` calls it.

    A row without any token that counts gives zeros. NotImplemented for bags of unequal length.
    """
    weight, flat, starts, _, mode, _, weights, last = items[:8]
    padding = concrete(items[8]) if len(items) > 8 else None
    tokens = _rows(flat, starts)
    if tokens is None or concrete(last):
        return NotImplemented
    call = operators.call
    values: Any = call(
        _aten.embedding.default, [weight, tokens, Value(-1), Value(False), Value(False)]
    )
    axis, gone = Value(1), None
    if padding is not None and padding >= 0:
        gone = call(_aten.eq.Scalar, [tokens, Value(padding)])
        gone = call(_aten.unsqueeze.default, [gone, Value(-1)])
    if concrete(weights) is not None:
        shape = operators.structure.size([tokens])
        scale = call(_aten.reshape.default, [weights, shape])
        values = call(_aten.mul.Tensor, [values, call(_aten.unsqueeze.default, [scale, Value(-1)])])
    match concrete(mode):
        case 2:
            result = _largest(operators, values, gone)
        case _:
            if gone is not None:
                values = call(_aten.masked_fill.Scalar, [values, gone, Value(0.0)])
            result = call(_aten.sum.dim_IntList, [values, [axis], Value(False), _NONE])
    if concrete(mode) == _MEAN:
        result = call(_aten.div.Tensor, [result, _count(operators, tokens, values, gone)])
    return (result, _NONE, _NONE, _NONE)


def _rows(flat: Item, starts: Item) -> Value | None:
    """The tokens `(N, T)` behind a flat list that starts a new bag every T."""
    view = flat.view
    if view is None or view.operator not in ("reshape", "view", "flatten"):
        return None
    tokens: Value = view.base
    if tokens.value.dim() != 2 or starts.origin > Origin.SHAPE:
        return None
    rows, length = tokens.value.shape
    expected = torch.arange(rows, device=starts.value.device) * length
    return tokens if torch.equal(starts.value, expected.to(starts.value)) else None


def _largest(operators: "Operators", values: Item, gone: Item) -> Item:
    call = operators.call
    if gone is not None:
        lowest = Value(torch.finfo(values.value.dtype).min)
        values = call(_aten.masked_fill.Scalar, [values, gone, lowest])
    found: Any = call(_aten.max.dim, [values, Value(1), Value(False)])
    if gone is None:
        return found[0]
    empty = call(_aten.all.dim, [gone, Value(1), Value(False)])
    return call(_aten.masked_fill.Scalar, [found[0], empty, Value(0.0)])


def _count(operators: "Operators", tokens: Value, values: Item, gone: Item) -> Item:
    """How many tokens of each row count, at least 1: a number, or `(N, 1)`."""
    call = operators.call
    if gone is None:
        length = operators.structure.size([tokens, Value(1)])
        number = call(_aten.scalar_tensor.default, [length, Value(6), _NONE, _NONE, _NONE])
        return operators.cast(number, values.value.dtype)
    kept = call(_aten.logical_not.default, [gone])
    counts = call(_aten.sum.dim_IntList, [kept, [Value(1)], Value(False), Value(4)])
    counts = call(_aten.clamp_min.default, [counts, Value(1)])
    return operators.cast(counts, values.value.dtype)
