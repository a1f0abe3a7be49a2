"""Half-precision graphs in float32."""

from typing import Any

import torch
from torch import Tensor, fx

HALF = (torch.float16, torch.bfloat16)


def to_single(graph: fx.GraphModule) -> list[str]:
    """Turn a graph's half-precision weights and casts into float32, in place; what to tell users.

    float32 holds every float16 and bfloat16 value exactly, so only rounding is left out.
    """
    stored = [*graph.parameters(), *graph.buffers()]
    found = sorted({str(tensor.dtype) for tensor in stored if tensor.dtype in HALF})
    if not found:
        return []
    graph._apply(_single)  # type: ignore[no-untyped-call]
    for node in graph.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, _single)
        node.kwargs = fx.node.map_aggregate(node.kwargs, _single)
    graph.recompile()
    names = " and ".join(name.removeprefix("torch.") for name in found)
    return [f"The file's weights are {names}; the network computes in float32."]


def _single(item: Any) -> Any:
    if isinstance(item, Tensor):
        return item.float() if item.dtype in HALF else item
    return torch.float32 if item in HALF else item
