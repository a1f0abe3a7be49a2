"""Graphs inside graphs: the branches of If and the bodies of Loop and Scan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from onnx import GraphProto, NodeProto
from torch import Tensor, fx

from ...errors import InvalidModel
from .builder import Builder
from .values import UNKNOWN, Examples, Maybe, Numbers, Value


class Scope(dict[str, Maybe]):
    """The values of a graph inside another one, whose values it sees too.

    Args:
        outer: the values around.
        take: what makes an outer value one of this graph.
    """

    def __init__(self, outer: Mapping[str, Maybe], take: Callable[[Maybe], Maybe]) -> None:
        super().__init__()
        self._outer, self._take = outer, take

    def __missing__(self, name: str) -> Maybe:
        value = self[name] = self._take(self._outer[name])
        return value


@dataclass(frozen=True)
class Frame:
    """Where nodes are imported to, and what they see.

    Args:
        builder: of the graph that they go to.
        values: by name.
        versions: of the domains.
        given: attributes of the function around.
        depth: how many functions and graphs are around.
        prefix: of layers' names; None where nodes have none, as inside functions.
    """

    builder: Builder
    values: dict[str, Maybe]
    versions: Mapping[str, int]
    given: Mapping[str, Any]
    depth: int = 0
    prefix: str | None = ""


@dataclass(frozen=True)
class Body:
    """A graph inside another one as a module of its own.

    Args:
        module: from its inputs, and then `captured`, to a tuple of its outputs.
        captured: values of the outer graph.
        outputs: as import knows them.
        examples: of each output.
    """

    module: fx.GraphModule
    captured: tuple[fx.Node, ...]
    outputs: tuple[Value, ...]
    examples: tuple[Examples, ...]


class Walker(Protocol):
    """What imports nodes."""

    def store(self, graph: GraphProto, values: dict[str, Maybe]) -> None:
        """Add a graph's stored values."""

    def walk(self, nodes: Sequence[NodeProto], frame: Frame) -> None:
        """Import nodes in order."""

    def value(self, values: Mapping[str, Maybe], name: str) -> Value:
        """A value by name.

        Raises:
            InvalidModel: it is never computed.
        """


class Subgraphs:
    """Imports the graphs that one node holds.

    Args:
        frame: of the node.
        name: of the node.
    """

    def __init__(self, walker: Walker, frame: Frame, name: str) -> None:
        self._walker, self._frame, self._name = walker, frame, name

    def inline(
        self, graph: GraphProto, inputs: Sequence[Maybe] = (), part: str = ""
    ) -> list[Value]:
        """The graph's outputs, its nodes becoming nodes of the graph around.

        Args:
            part: added to the node's name, in the names of layers.
        """
        around = self._frame.prefix
        prefix = None if around is None else f"{around}{self._name}.{part}"
        scope = Scope(self._frame.values, lambda value: value)
        frame = replace(self._frame, values=scope, depth=self._frame.depth + 1, prefix=prefix)
        return self._import(graph, inputs, frame)

    def body(
        self,
        graph: GraphProto,
        inputs: Sequence[Examples | Tensor] = (),
        *,
        free_batch: bool = True,
    ) -> Body:
        """The graph as a module.

        Args:
            inputs: examples of each input, numbers for a scalar that Python knows; or a constant.
            free_batch: whether a batch size that the file fixes is made free inside.
        """
        outer = self._frame.builder
        builder = Builder(outer.fixed_batch if free_batch else None, outer)
        values: list[Maybe] = []
        for declared, item in zip(graph.input, inputs, strict=True):
            if isinstance(item, Tensor):
                values.append(item)
                continue
            node = builder.placeholder(declared.name, item)
            is_number = isinstance(item[0], int)
            values.append(Numbers((node,), True, torch.int64) if is_number else node)
        frame = Frame(
            builder,
            Scope(self._frame.values, builder.capture),
            self._frame.versions,
            self._frame.given,
            self._frame.depth + 1,
            None,
        )
        outputs = self._import(graph, values, frame)
        nodes = [builder.tensor(value) for value in outputs]
        module = builder.finish(nodes)
        outer.absorb(builder)
        examples = tuple(node.meta.get("examples", UNKNOWN) for node in nodes)
        return Body(module, tuple(builder.captured), tuple(outputs), examples)

    def _import(self, graph: GraphProto, inputs: Sequence[Maybe], frame: Frame) -> list[Value]:
        if len(graph.input) != len(inputs):
            raise InvalidModel(
                f"model: the graph inside {self._name!r} takes {len(graph.input)} inputs, "
                f"not {len(inputs)}"
            )
        self._walker.store(graph, frame.values)
        names = (item.name for item in graph.input)
        frame.values.update(zip(names, inputs, strict=True))
        self._walker.walk(graph.node, frame)
        return [self._walker.value(frame.values, item.name) for item in graph.output]


def examples_of(builder: Builder, value: Value) -> Examples:
    """A value under each witness."""
    if isinstance(value, fx.Node):
        return value.meta.get("examples", UNKNOWN)  # type: ignore[no-any-return]
    if isinstance(value, Tensor):
        return value.to("meta"), value.to("meta")
    return builder.tensor(value).meta["examples"]  # type: ignore[no-any-return]


def joined(a: Examples, b: Examples) -> Examples:
    """Examples of a value that is one of two; sizes that may differ differ under the witnesses."""
    if not all(isinstance(item, Tensor) for item in (*a, *b)):
        return UNKNOWN
    if len({(item.dim(), item.dtype) for item in (*a, *b)}) > 1:
        return UNKNOWN
    pairs = [_size(*sizes) for sizes in zip(*(item.shape for item in (*a, *b)), strict=True)]
    first, second = (a[0].new_empty([pair[k] for pair in pairs]) for k in (0, 1))
    return first, second


def same(a: Examples, b: Examples) -> bool:
    """Whether examples have the same types and sizes."""
    if a is UNKNOWN or b is UNKNOWN:
        return a is b
    return all(
        isinstance(x, Tensor)
        and isinstance(y, Tensor)
        and x.shape == y.shape
        and x.dtype == y.dtype
        for x, y in zip(a, b, strict=True)
    )


def _size(a: int, b: int, c: int, d: int) -> tuple[int, int]:
    """The sizes of an axis that is (a, b) or (c, d) under the two witnesses."""
    if (a, b) == (c, d) or a != b:
        return a, b
    return (c, d) if c != d else (a, a + 3)
