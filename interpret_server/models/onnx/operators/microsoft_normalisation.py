"""Normalisation layers of com.microsoft, fused with the sum or the embeddings before them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..call import Call
from ..grid import dequantise
from ..registry import MICROSOFT, operator
from ..values import Maybe, Output, Value
from .indexing import gather
from .microsoft import plain
from .normalisation import layer_normalization, normalise_scale, rms_normalization

_EPSILON = 1e-12


def _normalised(call: Call, x: Value, scale: Value, bias: Maybe) -> Any:
    epsilon = call.real("epsilon", _EPSILON)
    single = plain(call, "LayerNormalization", axis=-1, epsilon=epsilon)
    y = layer_normalization(replace(single, outputs=call.outputs[:1]), x, scale, bias)
    return y[0] if isinstance(y, list) else y


def _summed(call: Call, *terms: Any) -> Any:
    total: Any = None
    for term in terms:
        if term is not None:
            total = term if total is None else call.function(torch.add, total, term, kind="add")
    return total


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    call: Call, x: Value, skip: Value, scale: Value, shift: Maybe = None, bias: Maybe = None
) -> Output:
    total = _summed(call, x, bias, skip)
    return [_normalised(call, total, scale, shift), None, None, total]


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_normalization(
    call: Call, x: Value, skip: Value, scale: Value, bias: Maybe = None
) -> Output:
    total = _summed(call, x, bias, skip)
    y = call.function(
        normalise_scale,
        total,
        scale,
        -1,
        call.real("epsilon", _EPSILON),
        torch.float32,
        kind="rms_norm",
    )
    return [y, None, None, total]


@operator("SimplifiedLayerNormalization")
def simplified_layer_normalization(call: Call, x: Value, scale: Value) -> Output:
    """The root mean square, as onnxruntime names it in the default domain."""
    return rms_normalization(call, x, scale)


def embedded(call: Call, table: Value, index: Value) -> Output:
    """Rows of a table; of a constant one, an embedding layer."""
    return gather(plain(call, "Gather", axis=0), table, index)


def first_rows(table: Tensor, index: Tensor) -> Tensor:
    """As many rows of a table as each row of `index` has entries."""
    return F.embedding(torch.arange(index.shape[1], device=index.device), table)


def ones_counted(mask: Tensor) -> Tensor:
    """How many entries of each row are 1, as int32."""
    return (mask == 1).sum(1).to(torch.int32)


def none_counted(index: Tensor) -> Tensor:
    """0 for each row, as int32."""
    return torch.zeros(index.shape[0], dtype=torch.int32, device=index.device)


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(
    call: Call,
    index: Value,
    segments: Maybe,
    words: Value,
    positions: Value,
    segment_table: Maybe,
    scale: Value,
    shift: Value,
    mask: Maybe = None,
    position_index: Maybe = None,
) -> Output:
    places = (
        call.function(first_rows, positions, index, kind="slice")
        if position_index is None
        else embedded(call, positions, position_index)
    )
    kinds = None
    if segments is not None and segment_table is not None:
        kinds = embedded(call, segment_table, segments)
    total = _summed(call, embedded(call, words, index), places, kinds)
    if mask is None:
        lengths = call.function(none_counted, index, kind="constant")
    else:
        lengths = call.function(ones_counted, mask, kind="reduce_sum")
    return [_normalised(call, total, scale, shift), lengths, total]


@operator("QEmbedLayerNormalization", domain=MICROSOFT)
def quantised_embed_layer_normalization(call: Call, *inputs: Any) -> Output:
    """Its tables, scale and shift are stored as integers, each with a scale and a zero point."""
    given: list[Any] = [*inputs, *[None] * (18 - len(inputs))]
    tables = [
        None
        if given[i] is None
        else call.function(dequantise, given[i], given[i + 6], given[i + 11], 0, 0, None)
        for i in range(2, 7)
    ]
    whole: list[Any] = [*given[:2], *tables, given[7]]
    return embed_layer_normalization(call, *whole)
