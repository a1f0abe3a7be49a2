"""What a rewritten graph is held against."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from interpret_server.models.execution.draft import Draft, function_name, observe


def draft_of(module: nn.Module, *shape: int, rows: int = 2) -> tuple[fx.GraphModule, Draft]:
    """A module's graph in float64, and a draft of it observed at random rows `(rows, *shape)`."""
    graph = fx.symbolic_trace(module.double().eval()).requires_grad_(False)
    return graph, Draft.of(graph, observe(graph, torch.rand(rows, *shape).double()))


def called(draft: Draft) -> list[str]:
    """The functions that a draft calls, in order."""
    return [name for name in map(function_name, draft.graph.nodes) if name]


def value_and_gradient(form: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """What a form gives, and the gradient of a sum of it with uneven weights."""
    leaf = x.clone().requires_grad_()
    value = form(leaf)
    weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    return value.detach(), torch.autograd.grad((value * weights).sum(), leaf)[0]


def assert_same(
    draft: Draft, graph: fx.GraphModule, *shapes: Sequence[int], tolerance: float = 0.0
) -> None:
    """A draft gives the values and gradients of its graph at inputs of several shapes."""
    plan = draft.compile()
    for shape in shapes:
        x = torch.rand(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found, expected = value_and_gradient(plan, x), value_and_gradient(graph, x)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == theirs.shape
            assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
