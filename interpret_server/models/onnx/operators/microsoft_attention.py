"""Attention of com.microsoft, as products, a softmax and the reshapes between them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...lowered import Unlowerable
from ..call import Call
from ..registry import MICROSOFT, operator
from ..values import Maybe, Output, Value
from .activation import softmax
from .integer_products import matmul_integer_to_float
from .linear import add, matmul
from .microsoft import plain

_FILTER = -10000.0


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`(N, S, heads * H)` to `(N, heads, S, H)`."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`(N, heads, S, H)` to `(N, S, heads * H)`."""
    return x.transpose(1, 2).flatten(2)


def scaled_scores(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """`query @ key.T * scale`; without a scale, that of the head's size."""
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return query @ key.transpose(-1, -2) * factor


def key_mask(mask: Tensor, scores: Tensor) -> Tensor:
    """Which keys may be attended to, broadcast to scores `(N, heads, S, T)`.

    Args:
        mask: one length per row; one end per row and then one start per row; 1 or 0 per key,
            `(N, T)`; or per query and key, `(N, S, T)` or `(N, 1, M, M)` with M at least T.
        scores: of all queries and keys.
    """
    rows, queries, keys = scores.shape[0], scores.shape[-2], scores.shape[-1]
    if mask.dim() == 1:
        place = torch.arange(keys, device=mask.device)
        seen = place < mask[:rows, None]
        if mask.shape[0] == 2 * rows:
            seen = seen & (place >= mask[rows:, None])
        return seen[:, None, None]
    if mask.dim() == 2:
        return mask[:, None, None] > 0
    if mask.dim() == 3:
        return mask[:, None] > 0
    return mask[:, :, keys - queries : keys, :keys] > 0


def add_mask(scores: Tensor, mask: Tensor, low: float) -> Tensor:
    """Scores with `low` added where a key is masked."""
    return scores + torch.where(key_mask(mask, scores), 0.0, low).to(scores.dtype)


def add_causal_mask(scores: Tensor, low: float) -> Tensor:
    """Scores with `low` added where a key comes after its query."""
    queries, keys = scores.shape[-2:]
    ones = torch.ones(queries, keys, dtype=torch.bool, device=scores.device)
    after = ones.triu(keys - queries + 1)
    return scores + torch.where(after, low, 0.0).to(scores.dtype)


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values, each `(N, heads, ..., size)`."""

    query: Any
    key: Any
    value: Any


def attend(
    call: Call, heads: Heads, mask: Maybe, bias: Maybe, past: tuple[Maybe, Maybe]
) -> list[Value | None]:
    """The attended values `(N, S, D)`, with all keys and values."""
    key, value = heads.key, heads.value
    if past[0] is not None and past[1] is not None:
        key = call.function(torch.cat, [past[0], key], 2, kind="concat")
        value = call.function(torch.cat, [past[1], value], 2, kind="concat")
    scale, low = call.real("scale", 0.0) or None, call.real("mask_filter_value", _FILTER)
    scores = call.function(scaled_scores, heads.query, key, scale, kind="matmul")
    if bias is not None:
        scores = call.function(torch.add, scores, bias, kind="add")
    if mask is not None:
        if call.rank(mask) not in (1, 2, 3, 4):
            raise Unlowerable(f"{call.operator} with a mask of unknown rank")
        scores = call.function(add_mask, scores, mask, low, kind="add")
    if call.integer("unidirectional"):
        scores = call.function(add_causal_mask, scores, low, kind="add")
    weights = softmax(plain(call, "Softmax", axis=-1), scores)
    mixed = call.function(torch.matmul, weights, value, kind="matmul")
    return [call.function(merge_heads, mixed, kind="reshape"), key, value, scores]


def _heads(call: Call, x: Any, heads: int) -> Any:
    return call.function(split_heads, x, heads, kind="reshape")


@operator("Attention", domain=MICROSOFT)
def attention(
    call: Call,
    x: Value,
    weight: Value,
    bias: Maybe = None,
    mask: Maybe = None,
    past: Maybe = None,
    attention_bias: Maybe = None,
    past_length: Maybe = None,
) -> Output:
    if call.integer("do_rotary") or call.integer("past_present_share_buffer"):
        raise Unlowerable("Attention with rotary embeddings or a shared buffer")
    packed: Any = matmul(plain(call, "MatMul"), x, weight)
    if bias is not None:
        packed = add(plain(call, "Add"), packed, bias)
    return _packed_attention(call, packed, mask, past, attention_bias)


@operator("QAttention", domain=MICROSOFT)
def quantised_attention(
    call: Call,
    x: Value,
    weight: Value,
    bias: Value,
    x_scale: Value,
    weight_scale: Value,
    mask: Maybe = None,
    x_zero: Maybe = None,
    weight_zero: Maybe = None,
    past: Maybe = None,
) -> Output:
    if call.integer("do_rotary") or call.integer("past_present_share_buffer"):
        raise Unlowerable("QAttention with rotary embeddings or a shared buffer")
    packed = matmul_integer_to_float(
        call, x, weight, x_scale, weight_scale, x_zero, weight_zero, bias
    )
    return _packed_attention(call, packed, mask, past, None)


def _packed_attention(
    call: Call, packed: Any, mask: Maybe, past: Maybe, attention_bias: Maybe
) -> list[Maybe]:
    shape = call.shape(packed)
    width = None if shape is None else shape[-1]
    sizes = call.integers("qkv_hidden_sizes")
    if width is None:
        raise Unlowerable(f"{call.operator} of an unknown width")
    parts = call.several(torch.split, packed, sizes or width // 3, -1, count=3, kind="split")
    heads = Heads(*(_heads(call, part, call.integer("num_heads", 1)) for part in parts))
    before: tuple[Maybe, Maybe] = (None, None)
    if past is not None:
        before = (
            call.function(torch.select, past, 0, 0, kind="select"),
            call.function(torch.select, past, 0, 1, kind="select"),
        )
    y, key, value, _ = attend(call, heads, mask, attention_bias, before)
    if len(call.outputs) < 2:
        return [y]
    return [y, call.function(torch.stack, [key, value], kind="concat")]


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(
    call: Call,
    query: Value,
    key: Maybe = None,
    value: Maybe = None,
    bias: Maybe = None,
    mask: Maybe = None,
    attention_bias: Maybe = None,
    past_key: Maybe = None,
    past_value: Maybe = None,
    past_length: Maybe = None,
    cache: Maybe = None,
) -> Output:
    if cache is not None:
        raise Unlowerable("MultiHeadAttention with the input cache_indirection")
    count = call.integer("num_heads", 1)
    parts = _unpacked(call, query, key, value)
    if bias is not None:
        parts = _biased(call, parts, bias)
    split = [part if call.rank(part) == 4 else _heads(call, part, count) for part in parts]
    y = attend(call, Heads(*split), mask, attention_bias, (past_key, past_value))
    return y[: len(call.outputs)]


def _unpacked(call: Call, query: Value, key: Maybe, value: Maybe) -> list[Any]:
    """Queries, keys and values, which may come packed by heads, `(N, S, heads, 2 or 3, H)`."""
    if key is None:
        return _unstacked(call, query, 3)
    if value is None:
        return [query, *_unstacked(call, key, 2)]
    return [query, key, value]


def _unstacked(call: Call, packed: Value, count: int) -> list[Any]:
    if call.rank(packed) != 5:
        raise Unlowerable("MultiHeadAttention without keys or values")
    parts = call.several(torch.unbind, packed, 3, count=count, kind="split")
    return [call.function(torch.flatten, part, 2, kind="reshape") for part in parts]


def _biased(call: Call, parts: list[Any], bias: Value) -> list[Any]:
    sizes = [(call.shape(part) or (None,))[-1] for part in parts]
    if None in sizes or any(call.rank(part) != 3 for part in parts):
        raise Unlowerable("MultiHeadAttention with a bias on values of unknown width")
    biases = call.several(torch.split, bias, sizes, count=3, kind="split")
    return [add(plain(call, "Add"), part, term) for part, term in zip(parts, biases, strict=True)]


def rotated(
    x: Tensor,
    position: Tensor,
    cosine: Tensor,
    sine: Tensor,
    heads: int,
    size: int,
    interleaved: bool,
) -> Tensor:
    """Rotary position embedding.

    Args:
        x: `(N, S, heads * H)` or `(N, heads, S, H)`.
        position: of each entry `(N, S)`, or of the first one `(1,)`.
        cosine: `(longest, size / 2)`.
        sine: as `cosine`.
        heads: where `x` has 3 axes; 0 to derive it from the width of `cosine`.
        size: how many numbers of each head are rotated; 0 for all.
        interleaved: pairs are neighbours, rather than halves.
    """
    flat = x.dim() == 3
    if flat:
        x = split_heads(x, heads or x.shape[-1] // (2 * cosine.shape[-1]))
    length = x.shape[2]
    if position.dim() == 1:
        position = position[:, None] + torch.arange(length, device=position.device)
    cos, sin = cosine[position][:, None], sine[position][:, None]
    rotary, rest = x[..., : size or None], x[..., size or x.shape[-1] :]
    if interleaved:
        a, b = rotary[..., ::2], rotary[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = rotary.chunk(2, -1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    y = torch.cat([turned, rest], -1)
    return merge_heads(y) if flat else y


@operator("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(call: Call, x: Value, position: Value, cosine: Value, sine: Value) -> Output:
    if call.integer("is_packed_batching"):
        raise Unlowerable("RotaryEmbedding with packed batches")
    return call.function(
        rotated,
        x,
        position,
        cosine,
        sine,
        call.integer("num_heads"),
        call.integer("rotary_embedding_dim"),
        bool(call.integer("interleaved")),
    )
