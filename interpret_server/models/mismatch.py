"""Where a served form leaves its file's own execution."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from .recording import record
from .verification import agree, difference


def first_difference(
    graph: fx.GraphModule,
    x: Tensor,
    layers: Mapping[str, str],
    values: Callable[[Sequence[str]], Mapping[str, Tensor]],
    modules: Callable[[str, nn.Module], nn.Module | None],
) -> str | None:
    """The first layer of a graph whose values differ from the file's, if one does.

    A layer is compared with the file's own values; where those cannot be read, with what the
    file's module of that name makes of the graph's values.

    Args:
        graph: of one input.
        x: rows that the graph takes.
        layers: layer name -> node name, in order of execution.
        values: the file's own values of layers at the same rows, as far as they can be read.
        modules: the file's module of a name and of the same class as ours, or None.
    """
    nodes = {node.name: node for node in graph.graph.nodes}
    wanted = {name: nodes[node] for name, node in layers.items() if node in nodes}
    given = {source for node in wanted.values() for source in node.all_input_nodes}
    kept = record(graph, x, keep={*wanted.values(), *given}).kept
    theirs = values(list(wanted))
    for name, node in wanted.items():
        ours = kept.get(node)
        if ours is None:
            continue
        other = theirs.get(name)
        if other is None and node.op == "call_module":
            module = modules(name, graph.get_submodule(str(node.target)))
            sources = [kept.get(source) for source in node.all_input_nodes]
            other = _recomputed(module, sources)
        if other is None or other.numel() != ours.numel():
            continue
        if not agree(difference(ours.flatten(), other.flatten()), ours.dtype):
            return name
    return None


def _recomputed(module: nn.Module | None, inputs: Sequence[Tensor | None]) -> Tensor | None:
    if module is None or not inputs or any(value is None for value in inputs):
        return None
    try:
        with torch.no_grad():
            value: object = module(*inputs)
    except Exception:  # whatever a foreign program raises
        return None
    return value if isinstance(value, Tensor) else None
