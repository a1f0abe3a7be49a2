"""PyTorch's fused attention operators, taken apart into differentiable ones.

`nn.MultiheadAttention` and `nn.TransformerEncoderLayer` call them in evaluation mode without
gradients, and so do archives traced in that mode. They have no derivative. The definitions follow
`native/transformers/attention.cpp` and `transformer.cpp` of ATen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..lowered import Unlowerable
from .values import Item, Value, concrete

if TYPE_CHECKING:
    from .operators import Operators

_aten = torch.ops.aten
_NONE = Value(None)


@dataclass
class Nested:
    """Rows of unequal length, as `_nested_tensor_from_mask` makes them, still padded.

    Args:
        padded: `(N, T, C)`.
        kept: `(N, T)`, false for padding.
        checked: rows that are padded elsewhere than at their end count as whole.
    """

    padded: Value
    kept: Value
    checked: bool = False


def native_multi_head_attention(operators: "Operators", items: Sequence[Item]) -> Item:
    """`aten::_native_multi_head_attention`: the result and the attention weights."""
    query, key, value, _, heads, weight, bias, out_weight, out_bias, mask, need, mean, kind = items
    attended, weights = _Attention(operators, heads, mask, kind).run(
        (query, key, value), weight, bias, out_weight, out_bias
    )
    if not concrete(need):
        return attended, Value(None)
    if concrete(mean):
        weights = operators.call(_aten.mean.dim, [weights, [Value(1)], Value(False), _NONE])
    return attended, weights


def transformer_encoder_layer(operators: "Operators", items: Sequence[Item]) -> Item:
    """`aten::_transformer_encoder_layer_fwd`: attention and feed-forward, with two norms."""
    source, _, heads, weight, bias, out_weight, out_bias, gelu, first, epsilon, *rest = items
    norms, forward, (mask, kind) = rest[:4], rest[4:8], rest[8:]
    x = source.padded if isinstance(source, Nested) else source
    if isinstance(source, Nested):
        mask, kind = operators.call(_aten.logical_not.default, [source.kept]), Value(1)
    before = bool(concrete(first))

    def normalised(value: Item, index: int) -> Item:
        width = [Value(int(norms[index].value.shape[0]))]
        scale, shift = norms[index], norms[index + 1]
        arguments = [value, width, scale, shift, epsilon, Value(True)]
        return operators.call(_aten.layer_norm.default, arguments)

    def added(a: Item, b: Item) -> Item:
        return operators.call(_aten.add.Tensor, [a, b, Value(1)])

    def feed_forward(value: Item) -> Item:
        value = operators.call(_aten.linear.default, [value, *forward[:2]])
        value = (
            operators.call(_aten.gelu.default, [value, Value("none")])
            if concrete(gelu)
            else operators.call(_aten.relu.default, [value])
        )
        return operators.call(_aten.linear.default, [value, *forward[2:]])

    attention = _Attention(operators, heads, mask, kind)

    def attended(value: Item) -> Item:
        return attention.run((value, value, value), weight, bias, out_weight, out_bias)[0]

    if before:
        x = added(attended(normalised(x, 0)), x)
        x = added(feed_forward(normalised(x, 2)), x)
    else:
        x = normalised(added(attended(x), x), 0)
        x = normalised(added(feed_forward(x), x), 2)
    return Nested(x, source.kept, source.checked) if isinstance(source, Nested) else x


def padded(operators: "Operators", items: Sequence[Item]) -> Item:
    """`aten::to_padded_tensor` of a nested tensor."""
    nested, value, size = items[0], items[1], items[2] if len(items) > 2 else _NONE
    if not isinstance(nested, Nested):
        return NotImplemented
    if concrete(size) is None:
        raise Unlowerable(f"aten::to_padded_tensor has no size{operators.recorder.where()}")
    gone = operators.call(_aten.logical_not.default, [nested.kept])
    if nested.checked:
        aligned = _aligned(operators, nested.kept)
        gone = operators.call(_aten.logical_and.default, [gone, aligned])
    gone = operators.call(_aten.unsqueeze.default, [gone, Value(-1)])
    return operators.call(_aten.masked_fill.Scalar, [nested.padded, gone, value])


def _aligned(operators: "Operators", kept: Value) -> Item:
    """Which rows of a mask `(N, T)` are true up to some place and false from there: `(N, 1)`."""
    long, axis, keep = Value(4), [Value(1)], Value(True)
    counts = operators.call(_aten.sum.dim_IntList, [kept, axis, keep, long])
    length = operators.structure.size([kept, Value(1)])
    places = operators.call(_aten.arange.default, [length, long, _NONE, _NONE, _NONE])
    expected = operators.call(_aten.lt.Tensor, [places, counts])
    same = operators.call(_aten.eq.Tensor, [kept, expected])
    return operators.call(_aten.all.dim, [same, Value(1), keep])


class _Attention:
    """One call of the fused attention.

    Args:
        heads: how many.
        mask: true (or not 0) where nothing is attended to, or None.
        kind: 0 for a mask `(T, S)`, 1 for `(N, S)`, 2 for `(N, heads, T, S)`.
    """

    def __init__(self, operators: "Operators", heads: Item, mask: Item, kind: Item) -> None:
        self.operators, self.heads = operators, int(concrete(heads))
        self.mask, self.kind = mask, concrete(kind)

    def run(
        self,
        inputs: tuple[Item, Item, Item],
        weight: Item,
        bias: Item,
        out_weight: Item,
        out_bias: Item,
    ) -> tuple[Item, Item]:
        """The attended values `(N, T, C)` and the weights `(N, heads, T, S)`."""
        call = self.operators.call
        query, key, value = (self._split(part) for part in self._projected(inputs, weight, bias))
        width = int(query.value.shape[-1])
        query = call(_aten.mul.Scalar, [query, Value(width**-0.5)])
        keys = call(_aten.transpose.int, [key, Value(-2), Value(-1)])
        weights = self._softmax(call(_aten.matmul.default, [query, keys]))
        mixed = call(_aten.matmul.default, [weights, value])
        mixed = call(_aten.transpose.int, [mixed, Value(1), Value(2)])
        mixed = call(_aten.flatten.using_ints, [mixed, Value(2), Value(3)])
        return call(_aten.linear.default, [mixed, out_weight, out_bias]), weights

    def _projected(
        self, inputs: tuple[Item, Item, Item], weight: Item, bias: Item
    ) -> Sequence[Any]:
        call = self.operators.call
        if inputs[0] is inputs[1] is inputs[2]:
            whole = call(_aten.linear.default, [inputs[0], weight, bias])
            return call(_aten.chunk.default, [whole, Value(3), Value(-1)])  # type: ignore[no-any-return]
        weights = call(_aten.chunk.default, [weight, Value(3), Value(0)])
        biases = call(_aten.chunk.default, [bias, Value(3), Value(0)])
        return [
            call(_aten.linear.default, [one, *parts])
            for one, *parts in zip(inputs, weights, biases, strict=True)
        ]

    def _split(self, value: Item) -> Any:
        """`(N, T, C)` to `(N, heads, T, C / heads)`."""
        call = self.operators.call
        sizes = [Value(self.heads), Value(-1)]
        value = call(_aten.unflatten.int, [value, Value(-1), sizes])
        return call(_aten.transpose.int, [value, Value(1), Value(2)])

    def _softmax(self, scores: Item) -> Item:
        """A row whose every entry is masked gives zeros."""
        call = self.operators.call
        softmax = _aten.softmax.int
        if concrete(self.mask) is None:
            return call(softmax, [scores, Value(-1), _NONE])
        mask = self.operators.cast(self.mask, torch.bool)
        if self.kind == 1 or (self.kind is None and mask.value.dim() == 2):
            for _ in range(2):
                mask = call(_aten.unsqueeze.default, [mask, Value(1)])
        lowest = Value(torch.finfo(scores.value.dtype).min)
        scores = call(_aten.masked_fill.Scalar, [scores, mask, lowest])
        weights = call(softmax, [scores, Value(-1), _NONE])
        return call(_aten.masked_fill.Scalar, [weights, mask, Value(0.0)])


FUSED = {
    "_native_multi_head_attention": native_multi_head_attention,
    "_transformer_encoder_layer_fwd": transformer_encoder_layer,
    "to_padded_tensor": padded,
}
