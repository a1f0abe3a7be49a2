"""Half-precision graphs in float32."""

from typing import Any

import torch
from torch import Tensor, fx

HALF = (torch.float16, torch.bfloat16)
_METHODS = ("half", "bfloat16")


def to_single(graph: fx.GraphModule) -> list[str]:
    """Turn a graph's half-precision weights and casts into float32, in place; what to tell users.

    float32 holds every float16 and bfloat16 value exactly, so only rounding is left out.
    """
    stored = {tensor.dtype for tensor in (*graph.parameters(), *graph.buffers())} & {*HALF}
    cast: set[torch.dtype] = set()

    def single(item: Any) -> Any:
        if isinstance(item, Tensor) and item.dtype in HALF:
            cast.add(item.dtype)
            return item.float()
        if isinstance(item, torch.dtype) and item in HALF:
            cast.add(item)
            return torch.float32
        return item

    for node in graph.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, single)
        node.kwargs = fx.node.map_aggregate(node.kwargs, single)
        name = getattr(node.target, "__name__", node.target)
        if node.op.startswith("call_") and name in _METHODS and node.op != "call_module":
            cast.add(getattr(torch, "float16" if name == "half" else name))
            node.target = "float" if node.op == "call_method" else Tensor.float
    if not stored | cast:
        return []
    graph._apply(_single)  # type: ignore[no-untyped-call]
    graph.recompile()
    told = sorted(str(dtype).removeprefix("torch.") for dtype in stored | cast)
    what = "weights are" if stored else "arithmetic is in part"
    return [f"The file's {what} {' and '.join(told)}; the network computes in float32."]


def _single(item: Any) -> Any:
    return item.float() if isinstance(item, Tensor) and item.dtype in HALF else item
