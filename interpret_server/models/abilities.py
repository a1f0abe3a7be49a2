"""What a network can do, found by trying it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from .batching import InGroups
from .classifier import Capability, Layer
from .network import ClassifierModule
from .recording import first_undifferentiable, record
from .relu_rules import count_rectifiers
from .sources import brief

if TYPE_CHECKING:
    from .assembly import Body

NO_RECTIFIERS = (
    "the network has no rectifier (ReLU, ReLU6, leaky ReLU, PReLU), so this rule would change "
    "nothing"
)
NO_SCORES = "the file gives the winning class alone, and no scores"
NO_CLASSES = "the manifest says that the output holds values, and no scores of classes"


def missing_capabilities(
    module: ClassifierModule, body: "Body", x: Tensor
) -> dict[Capability, str]:
    """What a network lacks, and why; bounds and determinism are for others to judge.

    Args:
        module: the network in one piece.
        body: of it.
        x: rows to try it with.
    """
    missing = {}
    if body.source == "classes":
        missing[Capability.SCORES] = NO_SCORES
    if body.source == "values":
        missing[Capability.SCORES] = NO_CLASSES
    if body.form != "graph":
        missing[Capability.LAYERS] = f"the layers of this model cannot be read: {body.reason}"
    if reason := _no_gradient(module, body, x[:1]):
        missing[Capability.GRADIENT] = missing[Capability.RECTIFIERS] = reason
    elif reason := _no_rectifiers(module, x[:1]):
        missing[Capability.RECTIFIERS] = reason
    return missing


def _no_rectifiers(module: ClassifierModule, x: Tensor) -> str | None:
    try:
        return None if count_rectifiers(module, x) else NO_RECTIFIERS
    except (RuntimeError, NotImplementedError) as error:
        return f"its backward pass does not run under a rectifier rule ({brief(error)})"


def _no_gradient(module: ClassifierModule, body: "Body", x: Tensor) -> str | None:
    if body.form == "runtime":
        return f"the model runs forward only: {body.reason}"
    leaf = x.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            total = module(leaf).sum()
            gradients = (
                torch.autograd.grad(total, leaf, allow_unused=True)
                if total.requires_grad
                else (None,)
            )
    except (RuntimeError, NotImplementedError) as error:
        return f"the model cannot be differentiated ({brief(error)})"
    if gradients[0] is not None:
        return None
    inner = body.module.body if isinstance(body.module, InGroups) else body.module
    node = None
    if isinstance(inner, fx.GraphModule):
        rows = body.module.size if isinstance(body.module, InGroups) else 1
        node = first_undifferentiable(inner, module.normalise(x.expand(rows, *x.shape[1:])))
    where = f": {node.meta.get('kind', node.name)} at {node.name} has none" if node else ""
    return f"no gradient reaches the input of this model{where}"


def layers_of(
    module: ClassifierModule, body: "Body", x: Tensor, other: Tensor | None
) -> dict[str, Layer]:
    """The layers of a graph that have one row per example.

    Args:
        module: the network in one piece.
        body: of it, a graph.
        x: rows to try it with.
        other: rows of another size, where sizes are free.
    """
    grouped = body.module if isinstance(body.module, InGroups) else None
    graph: Any = grouped.body if grouped else body.module
    sizes = (grouped.size,) if grouped else (2, 1)
    shapes = _row_shapes(module, graph, x, sizes)
    moved = {} if other is None else _row_shapes(module, graph, other, sizes)
    nodes = {node.name: node for node in graph.graph.nodes}
    dependent: set[str] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or any(n.name in dependent for n in node.all_input_nodes):
            dependent.add(node.name)
    return {
        name: Layer(
            name,
            str(nodes[node].meta.get("kind", nodes[node].name)),
            shapes[node],
            node,
            _free(shapes[node], moved.get(node)),
        )
        for name, node in body.layers.items()
        if node in dependent and node in shapes and (other is None or node in moved)
    }


def _row_shapes(
    module: ClassifierModule, graph: Any, x: Tensor, sizes: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """The row shape of every node whose values have one row per example."""
    with torch.no_grad():
        batches = [module.normalise(x[torch.arange(rows) % len(x)]) for rows in sizes]
    trials = [record(graph, batch).shapes for batch in batches]
    return {
        node: shape[1:]
        for node, shape in trials[0].items()
        if all(
            trial.get(node) == (rows, *shape[1:]) for rows, trial in zip(sizes, trials, strict=True)
        )
    }


def _free(shape: tuple[int, ...], moved: tuple[int, ...] | None) -> tuple[int | None, ...]:
    """A shape with None where it differs at another size of the input; empty where it does not."""
    if moved is None or moved == shape or len(moved) != len(shape):
        return ()
    return tuple(a if a == b else None for a, b in zip(shape, moved, strict=True))
