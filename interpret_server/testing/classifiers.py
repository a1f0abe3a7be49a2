"""Classifiers made from an eager module, without a file."""

import torch
from torch import fx, nn

from interpret_server.models.assembly import assemble, from_graph
from interpret_server.models.classifier import Bounds, Classifier
from interpret_server.models.inputs import ResolvedInput
from interpret_server.models.lowered import Lowered
from interpret_server.models.manifest import OutputKind, OutputSpec


def lowered(module: nn.Module) -> Lowered:
    """The graph of an eager module that `torch.fx` can trace, with its layers named and typed.

    Layers are named by their module path; a functional call is named as its FX node is.
    """
    graph = fx.symbolic_trace(module.eval())
    modules = dict(graph.named_modules())
    layers = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            node.meta["kind"] = _kind(type(modules[str(node.target)]).__name__)
            layers[str(node.target)] = node.name
        elif node.op in ("call_function", "call_method"):
            target = node.target
            node.meta["kind"] = _kind(target if isinstance(target, str) else target.__name__)
            layers[node.name] = node.name
    names = tuple(node.name for node in graph.graph.nodes if node.op == "placeholder")
    return Lowered(graph, names, layers=layers)


def _kind(name: str) -> str:
    return {"logsoftmax": "log_softmax"}.get(name.lower(), name.lower())


def classifier(
    module: nn.Module,
    input_shape: tuple[int, ...],
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    name: str = "model",
    input_layout: str = "other",
    values: bool = False,
) -> Classifier:
    """A classifier from an eager module that `torch.fx` can trace.

    Args:
        module: `(N, *input_shape)` to logits `(N, K)`, or to values; its dtype is the classifier's.
        input_shape: of one row.
        bounds: of the input, or None.
        name: that errors call it by.
        input_layout: `CHW`, `HWC`, `CL` or `other`.
        values: the module gives values of any shape that are no scores of classes.
    """
    resolved = ResolvedInput(
        name="x",
        shape=input_shape,
        layout=input_layout,
        dtype=next((p.dtype for p in module.parameters()), torch.float32),
        bounds=None if bounds is None else Bounds(*bounds),
    )
    kind = OutputKind.VALUES if values else OutputKind.LOGITS
    body = from_graph(lowered(module), resolved, OutputSpec(kind=kind))
    return assemble(name, body, resolved)
