"""Decisions that a walk took on sizes, to be taken again for other sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..lowered import Lowered

_META = "decisions"


@dataclass
class Decision:
    """A number that the structure of a graph depends on.

    Args:
        node: computes it from sizes.
        expected: what it was for the example.
        what: the construct that depends on it.
        where: ` in layer1.0`, or empty.
    """

    node: fx.Node
    expected: Any
    what: str
    where: str


class Decisions:
    """The decisions of one graph, and what computes them from inputs.

    Args:
        graph: in the making, from placeholders to every decision's node.
        attributes: that it refers to.
        decisions: not empty.
    """

    def __init__(
        self, graph: fx.Graph, attributes: Mapping[str, Any], decisions: Sequence[Decision]
    ) -> None:
        self._decisions = tuple(decisions)
        copy = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        copy.graph_copy(graph, copies)
        copy.output([copies[decision.node] for decision in decisions])
        remove_dead(copy)
        used = {str(node.target) for node in copy.nodes if node.op in ("call_module", "get_attr")}
        self._module = fx.GraphModule({name: attributes[name] for name in used}, copy).eval()

    def differing(self, inputs: Sequence[Tensor]) -> Decision | None:
        """The first decision that comes out differently; None too where the graph does not run."""
        try:
            with torch.no_grad():
                found = self._module(*inputs)
        except (RuntimeError, ValueError, IndexError, TypeError):
            return None  # a network of fixed sizes: it refuses others aloud
        for value, decision in zip(found, self._decisions, strict=True):
            if value != decision.expected:
                return decision
        return None

    def attach(self, module: fx.GraphModule) -> None:
        """Let `decided_otherwise` find them."""
        module.meta[_META] = self


def decided_otherwise(lowered: Lowered, inputs: Sequence[Tensor]) -> str | None:
    """Why a graph is not the file's program for inputs of these shapes; None where it is.

    The program may choose its steps by sizes, and the graph holds those of the example's sizes.
    Where the graph does not run on such inputs the answer is None as well.

    Args:
        lowered: from `lower`, as it was returned.
        inputs: one tensor per input, of the data types of the examples, on the CPU.
    """
    decisions = lowered.graph.meta.get(_META)
    if decisions is None:
        return None
    differing: Decision | None = decisions.differing(inputs)
    return None if differing is None else f"{differing.what} depends on sizes{differing.where}"


def remove_dead(graph: fx.Graph) -> None:
    """Erase nodes that nothing uses."""
    for node in reversed(graph.nodes):
        if node.op not in ("placeholder", "output") and not node.users:
            graph.erase_node(node)
