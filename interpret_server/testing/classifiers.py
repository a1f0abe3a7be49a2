"""Classifiers made from an eager module, without a file."""

import torch
from torch import Tensor, fx, nn

from interpret_server.models.classifier import (
    Bounds,
    Capability,
    Classifier,
    ClassifierModule,
    Layer,
)
from interpret_server.models.relu_rules import count_rectifiers


class _Record(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value: object = super().run_node(n)
        if isinstance(value, Tensor) and n.op in ("call_module", "call_function", "call_method"):
            self.values[n.name] = value
        return value


def classifier(
    module: nn.Module,
    input_shape: tuple[int, ...],
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    name: str = "model",
    input_layout: str = "other",
) -> Classifier:
    """A classifier from an eager module that `torch.fx` can trace.

    Args:
        module: `(N, *input_shape)` to logits `(N, K)`; its dtype is the classifier's.
        input_shape: of one row.
        bounds: of the input, or None.
        name: that errors call it by.
        input_layout: `CHW`, `HWC`, `CL` or `other`.
    """
    graph = fx.symbolic_trace(module.eval().requires_grad_(False))
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    served = ClassifierModule(nn.Identity(), graph, nn.Identity()).eval()
    record = _Record(graph)
    logits = record.run(torch.zeros(2, *input_shape, dtype=dtype))
    kinds = dict(graph.named_modules())
    layers = {
        str(node.target if node.op == "call_module" else node.name): Layer(
            str(node.target if node.op == "call_module" else node.name),
            type(kinds[str(node.target)]).__name__.lower()
            if node.op == "call_module"
            else node.name,
            tuple(record.values[node.name].shape[1:]),
            node.name,
        )
        for node in graph.graph.nodes
        if node.name in record.values
    }
    capabilities = {Capability.GRADIENT, Capability.LAYERS}
    lacking = {}
    if count_rectifiers(served, torch.zeros(1, *input_shape, dtype=dtype)):
        capabilities.add(Capability.RECTIFIERS)
    else:
        lacking[Capability.RECTIFIERS] = f"{name} has no rectifier"
    if bounds is None:
        lacking[Capability.BOUNDS] = f"{name}'s manifest does not state inputs[0].bounds"
    else:
        capabilities.add(Capability.BOUNDS)
    return Classifier(
        name,
        served,
        input_shape=input_shape,
        classes=logits.shape[1],
        capabilities=frozenset(capabilities),
        lacking=lacking,
        bounds=None if bounds is None else Bounds(*bounds),
        layers=layers,
        input_layout=input_layout,
        dtype=dtype,
    )
