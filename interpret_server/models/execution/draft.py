"""A copy of a graph that passes rewrite."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ..batching import InGroups


@dataclass(frozen=True)
class Observed:
    """What a node gave at the example.

    Args:
        shape: of a tensor; None of anything else.
        dtype: of a tensor.
        plain: it holds no tensor: a size, say.
        device: the kind of a tensor's device, such as `cpu`.
    """

    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    plain: bool = False
    device: str = ""


class _Observer(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[str, Observed] = {}

    def run_node(self, n: fx.Node) -> object:
        value: object = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n.name] = Observed(tuple(value.shape), value.dtype, device=value.device.type)
        else:
            held = tree_leaves(value)
            self.found[n.name] = Observed(plain=not any(isinstance(x, Tensor) for x in held))
        return value


def observe(graph: fx.GraphModule, x: Tensor) -> dict[str, Observed]:
    """What every node of a graph gives at `x`, by name."""
    observer = _Observer(graph)
    with torch.no_grad():
        observer.run(x)
    return observer.found


def graph_of(body: nn.Module) -> fx.GraphModule | None:
    """The graph inside a classifier's body, if it has one."""
    inner = body.body if isinstance(body, InGroups) else body
    return inner if isinstance(inner, fx.GraphModule) else None


def function_name(node: fx.Node) -> str:
    """The plain name of what a function or method node calls, such as `add`; empty for others."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    return str(getattr(node.target, "__name__", "")).split(".")[0]


@dataclass
class Draft:
    """A graph in the making, with the modules and constants that it refers to.

    Args:
        graph: a copy, which passes change.
        table: target -> module or constant; shared with the original, never changed.
        observed: what the nodes gave at the example.
        copied: modules and constants whose values went into the plan's own copies.
        derived: modules with such copies, by what they were made of; shared between drafts.
    """

    graph: fx.Graph
    table: dict[str, Any]
    observed: dict[fx.Node, Observed]
    copied: list[nn.Module | Tensor] = field(default_factory=list)
    derived: dict[tuple[str, ...], nn.Module] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        body: fx.GraphModule,
        observed: Mapping[str, Observed],
        nodes: Sequence[str] | None = None,
        derived: dict[tuple[str, ...], nn.Module] | None = None,
    ) -> "Draft":
        """A copy of a graph.

        Args:
            body: the original.
            observed: what its nodes gave, as far as known.
            nodes: names of the nodes to give, as a tuple; None for the graph's own output.
            derived: see the class; drafts of one graph may share it.
        """
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        output: Any = graph.graph_copy(body.graph, copies)
        if nodes is not None:
            named = {node.name: copy for node, copy in copies.items()}
            output = tuple(named[name] for name in nodes)
        graph.output(output)
        table = {
            str(node.target): attribute(body, str(node.target))
            for node in graph.nodes
            if node.op in ("call_module", "get_attr")
        }
        known = {
            copy: observed[node.name] for node, copy in copies.items() if node.name in observed
        }
        draft = cls(graph, table, known, derived={} if derived is None else derived)
        draft.prune()
        return draft

    def prune(self) -> None:
        """Drop the nodes that nothing needs."""
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.op not in ("placeholder", "output") and not writes(node):
                self.graph.erase_node(node)

    def module(self, node: Any) -> nn.Module | None:
        """The module that a node calls."""
        if not isinstance(node, fx.Node) or node.op != "call_module":
            return None
        module: nn.Module = self.table[str(node.target)]
        return module

    def constant(self, value: Any) -> Tensor | None:
        """The constant that a node reads."""
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        constant = self.table[str(value.target)]
        return constant if isinstance(constant, Tensor) else None

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """Of a node's tensor at the example, where known."""
        return self.observed.get(node, Observed()).shape

    def gives_number(self, node: fx.Node) -> bool:
        """Whether a node gave no tensor at the example."""
        return node in self.observed and self.observed[node].plain

    def put(self, node: fx.Node, made_of: tuple[str, ...], make: Callable[[], nn.Module]) -> None:
        """Let a node call another module.

        Args:
            node: that calls a module.
            made_of: tells derived modules apart.
            make: the module, unless another draft of the same graph has made it.
        """
        if made_of not in self.derived:
            self.derived[made_of] = make()
        node.target = " ".join(made_of)
        self.table[node.target] = self.derived[made_of]

    def bypass(self, node: fx.Node, source: fx.Node) -> None:
        """Take a node out; what read it reads `source` instead."""
        node.replace_all_uses_with(source)
        self.graph.erase_node(node)

    def compile(self) -> fx.GraphModule:
        """The graph as a module. Short targets save a look-up per level of the original's paths."""
        short: dict[str, str] = {}
        for node in self.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                node.target = short.setdefault(str(node.target), f"_{len(short)}")
        return fx.GraphModule(
            {name: self.table[target] for target, name in short.items()}, self.graph
        )


def writes(node: fx.Node) -> bool:
    """Whether a node works in place."""
    name = function_name(node)
    return name.endswith("_") and not name.endswith("__")


def attribute(root: nn.Module, target: str) -> Any:
    """What a node's target, such as `features.0.weight`, stands for."""
    value: Any = root
    for name in target.split("."):
        value = getattr(value, name)
    return value
