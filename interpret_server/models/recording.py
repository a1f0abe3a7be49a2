"""One pass through a graph that notes what its nodes compute."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx


@dataclass
class Recording:
    """What the nodes of a graph gave.

    Args:
        shapes: node name -> shape, of every floating-point tensor.
        kept: the values of the nodes that were asked for.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kept: dict[fx.Node, Tensor] = field(default_factory=dict)


def record(graph: fx.GraphModule, x: Tensor, keep: Collection[fx.Node] = ()) -> Recording:
    """Run a graph once at `x`, without gradients."""
    recorder = _Recorder(graph, frozenset(keep))
    with torch.no_grad():
        recorder.run(x)
    return recorder.recording


class _Recorder(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, keep: frozenset[fx.Node]) -> None:
        super().__init__(graph)
        self.keep, self.recording = keep, Recording()

    def run_node(self, n: fx.Node) -> object:
        value: object = super().run_node(n)
        if isinstance(value, Tensor):
            if value.is_floating_point():
                self.recording.shapes[n.name] = tuple(value.shape)
            if n in self.keep:
                self.recording.kept[n] = value
        return value


def first_undifferentiable(graph: fx.GraphModule, x: Tensor) -> fx.Node | None:
    """The first node that depends on the input but passes no gradient to it, if any."""
    finder = _GradientFinder(graph)
    with torch.enable_grad():
        finder.run(x.detach().clone().requires_grad_())
    return finder.found


class _GradientFinder(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: fx.Node | None = None

    def run_node(self, n: fx.Node) -> object:
        value: object = super().run_node(n)
        operands = [self.env.get(item) for item in n.all_input_nodes]
        if (
            self.found is None
            and isinstance(value, Tensor)
            and n.op != "output"
            and not value.requires_grad
            and any(isinstance(item, Tensor) and item.requires_grad for item in operands)
        ):
            self.found = n
        return value
