"""Fused attention taken apart, so that its weights are values of the graph."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from ..execution.draft import Draft, function_name

_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def take_attention_apart(draft: Draft) -> None:
    """Write every fused attention of a graph as scores, a mask, softmax and a product."""
    for node in list(draft.graph.nodes):
        if function_name(node) == "scaled_dot_product_attention":
            _take_apart(draft, node)
    draft.prune()


def _take_apart(draft: Draft, node: fx.Node) -> None:
    given: dict[str, Any] = dict(zip(_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
    query, key, value = (given[name] for name in _ARGUMENTS[:3])
    call = draft.graph.call_function
    with draft.graph.inserting_before(node):
        if given.get("enable_gqa"):
            key, value = (call(alike_heads, (query, side)) for side in (key, value))
        products = call(inner_products, (query, key))
        scores = call(scaled, (products, query, given.get("scale")))
        mask, causal = given.get("attn_mask"), bool(given.get("is_causal"))
        if causal or mask is not None:
            scores = call(masked_scores, (scores, mask, causal))
        weights = call(F.softmax, (scores, -1))
        mixed = call(torch.matmul, (weights, value))
    sizes = [draft.shape(side) for side in (given["query"], given["key"])]
    if sizes[0] is not None and sizes[1] is not None:
        seen = draft.observed[given["query"]]
        draft.observed[weights] = replace(seen, shape=(*sizes[0][:-1], sizes[1][-2]))
    draft.bypass(node, mixed)


def inner_products(query: Tensor, key: Tensor) -> Tensor:
    """`q k^T`, `(..., T, S)`."""
    return query @ key.transpose(-2, -1)


def scaled(products: Tensor, query: Tensor, scale: float | None) -> Tensor:
    """Products times a scale; `1 / sqrt(width)` where there is none."""
    return products * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)


def masked_scores(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Scores with a mask added, and minus infinity where a query may not attend."""
    if causal:
        ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(~ones.tril(), -math.inf)
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else scores + mask


def alike_heads(query: Tensor, side: Tensor) -> Tensor:
    """Keys or values of grouped heads, repeated for each of the query's heads."""
    return side.repeat_interleave(query.shape[-3] // side.shape[-3], -3)
