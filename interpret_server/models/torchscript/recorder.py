"""Writes the FX graph: nodes with names and kinds, constants, guards, and the finished module."""

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..lowered import Lowered, Unlowerable
from .decisions import Decision, Decisions, remove_dead
from .memory import refresh
from .values import Item, Origin, Value, leaves

_ROWS = (1, 2, 3)  # batch sizes at which decisions taken on shapes must come out the same

_DETACH = torch.ops.aten.detach.default
_RESERVED = frozenset(dir(fx.GraphModule({}, fx.Graph())))


class _Entry:
    __slots__ = ("name", "node")

    def __init__(self, name: str, node: fx.Node) -> None:
        self.name, self.node = name, node


class Recorder:
    """An FX graph in the making.

    Args:
        names: of the inputs.
        examples: of the inputs; axis 0 is the batch.
    """

    def __init__(self, names: Sequence[str], examples: Sequence[Tensor]) -> None:
        self.graph = fx.Graph()
        self.scope = ""  # path of the module whose code is being walked
        self.without_gradient = 0  # how many torch.no_grad() surround the code being walked
        self.type_name = ""  # its class
        self.place: Callable[[], str] = str  # describes the line of code being walked
        self.notes: dict[str, None] = {}
        self.owned: set[int] = set()  # memory of the archive itself
        self._names, self._examples = tuple(names), tuple(examples)
        self._attributes: dict[str, Tensor | nn.Module] = {}
        self._entries: list[_Entry] = []
        self._decisions: list[Decision] = []
        self.inputs = [
            Value(example.detach().clone(), Origin.DATA, self.graph.placeholder(name))
            for name, example in zip(names, examples, strict=True)
        ]
        for value in self.inputs:
            assert value.node is not None
            value.node.meta["kind"] = "input"
        self.device = self.graph.call_function(getattr, (self.inputs[0].node, "device"))

    def where(self) -> str:
        """` in layer1.0 (model.py, line 12)`, for messages."""
        scope, place = self.scope, self.place()
        return (f" in {scope}" if scope else "") + (f" ({place})" if place else "")

    def note(self, sentence: str) -> None:
        """Tell the user something, once."""
        self.notes.setdefault(sentence)

    # Arguments

    def argument(self, item: Item) -> Any:
        """The FX form of an item: nodes and constants."""
        if isinstance(item, list):
            return [self.argument(element) for element in item]
        if isinstance(item, tuple):
            return tuple(self.argument(element) for element in item)
        if isinstance(item, dict):
            return {key: self.argument(element) for key, element in item.items()}
        if not isinstance(item, Value):
            raise Unlowerable(f"a module or class object is used as a value{self.where()}")
        self.check(item)
        if item.node is None:
            if item.is_tensor and item.origin is Origin.CONSTANT:
                item.node = self._constant(item)
            elif item.number is not None:
                item.node = self.graph.call_function(
                    torch.ops.aten.scalar_tensor.default,
                    (self.argument(item.number),),
                    {"dtype": item.value.dtype},
                )
                item.node.meta["kind"] = "scalar_tensor"
        return item.value if item.node is None else item.node

    def check(self, value: Value) -> None:
        """Make a tensor ready to be read: up to date with writes to the memory that it shows.

        Raises:
            Unlowerable: its memory was changed in a way that the graph does not follow.
        """
        if value.stale:
            raise Unlowerable(f"{value.stale} changes what is read later{self.where()}")
        refresh(value)

    def _constant(self, value: Value) -> fx.Node:
        tensor = value.value
        target = f"_tensor_{len(self._attributes)}"
        self._attributes[target] = tensor
        node = self.graph.get_attr(target)
        node.meta["kind"] = "constant"
        return node

    def static(self, item: Item, what: str) -> Any:
        """The value of an item that the graph's structure depends on.

        Raises:
            Unlowerable: it depends on tensor data.
        """
        if isinstance(item, Value):
            if item.origin >= Origin.DATA:
                raise Unlowerable(f"{what} depends on tensor data{self.where()}")
            if item.origin is Origin.SHAPE:
                if item.is_tensor:
                    raise Unlowerable(f"{what} depends on a tensor{self.where()}")
                self.guard(self.argument(item), item.value, what)
            return item.value
        if isinstance(item, list):
            return [self.static(element, what) for element in item]
        if isinstance(item, tuple):
            return tuple(self.static(element, what) for element in item)
        if isinstance(item, dict):
            return {key: self.static(element, what) for key, element in item.items()}
        raise Unlowerable(f"{what} takes a module as a value{self.where()}")

    def guard(self, node: fx.Node, expected: Any, what: str) -> None:
        """Demand that `node` gives `expected` whatever the batch size."""
        self._decisions.append(Decision(node, expected, what, self.where()))

    # Nodes

    def function(
        self,
        target: Callable[..., Any],
        items: Sequence[Item],
        keywords: Mapping[str, Any],
        result: Any,
        origin: Origin,
        *,
        kind: str,
        name: str | None = None,
    ) -> Item:
        """Call a function; lists and tuples of results are taken apart.

        Args:
            items: positional arguments.
            keywords: keyword arguments, items or FX nodes.
            result: what it gave for the example.
            kind: of the tensors that it gives.
            name: of the layer; None for the kind, after the module being walked.
        """
        node = self.graph.call_function(
            target,
            tuple(self.argument(item) for item in items),
            {
                key: item if isinstance(item, fx.Node) else self.argument(item)
                for key, item in keywords.items()
            },
        )
        return self._unpack(node, result, origin, kind, name or self.named(kind))

    def _unpack(self, node: fx.Node, result: Any, origin: Origin, kind: str, name: str) -> Item:
        if isinstance(result, Tensor):
            return self._layer(node, result, origin, kind, name)
        if isinstance(result, (list, tuple)):
            if isinstance(result, list):
                length = self.graph.call_function(len, (node,))
                if origin is Origin.RAGGED:
                    raise Unlowerable(
                        f"{kind} gives a list whose length depends on tensor data{self.where()}"
                    )
                self.guard(length, len(result), f"the length of the list that {kind} gives")
            return type(result)(
                self._unpack(
                    self.graph.call_function(operator.getitem, (node, index)),
                    element,
                    origin,
                    kind,
                    name,
                )
                for index, element in enumerate(result)
            )
        return Value(result, origin, node)

    def module(
        self, module: nn.Module, item: Value, result: Tensor, *, kind: str, name: str | None = None
    ) -> Value:
        """Call a module of the canonical form on one tensor."""
        target = f"_module_{len(self._attributes)}"
        self._attributes[target] = module
        # A graph without its module cannot check the target; `finish` renames it anyway.
        node = self.graph.create_node("call_module", target, (self.argument(item),))
        return self._layer(node, result, item.origin, kind, name or self.named(kind))

    def _layer(self, node: fx.Node, result: Tensor, origin: Origin, kind: str, name: str) -> Value:
        node.meta["kind"] = kind
        self._entries.append(_Entry(name, node))
        if self.without_gradient and result.is_floating_point():
            node = self.graph.call_function(_DETACH, (node,))
            node.meta["kind"] = kind
        return Value(result, origin, node)

    # Names

    def named(self, operator_name: str) -> str:
        """`layer1.0.add`: an operator of the module being walked."""
        return f"{self.scope}.{operator_name}" if self.scope else operator_name

    @property
    def mark(self) -> int:
        """A position among the layers recorded so far, for `name_output`."""
        return len(self._entries)

    def name_output(self, path: str, output: Item, since: int, *, leaf: bool) -> None:
        """Name the first tensor that a call of module `path` gave after the module.

        A leaf module's output loses the operator's name; a container gets a second name for the
        value that its last part computed.
        """
        tensors = (leaf for leaf in leaves(output) if leaf.is_tensor)
        output = next(tensors, None)
        if not path or output is None or output.node is None:
            return
        node = output.node.args[0] if output.node.target is _DETACH else output.node
        if leaf:
            for entry in self._entries[since:]:
                if entry.node is node:
                    entry.name = path
                    return
        self._entries.append(_Entry(path, output.node))

    # The end

    def finish(self, output: Item) -> Lowered:
        """The finished graph.

        Raises:
            Unlowerable: a decision taken on a shape comes out differently at another batch size.
        """
        self.graph.output(self.argument(output))
        decisions = None
        if self._decisions:
            decisions = Decisions(self.graph, self._attributes, self._decisions)
            self._check(decisions)
        remove_dead(self.graph)
        kept = set(self.graph.nodes)
        layers = self._layers(kept)
        attributes: dict[str, Any] = {}
        names = {node: name for name, node in reversed(layers.items())}
        for node in self.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                attribute = self._attributes[str(node.target)]
                if node.op == "call_module":
                    node.target = _target(names[node])
                attributes[str(node.target)] = attribute
        self.graph.lint()
        module = fx.GraphModule(attributes, self.graph, "Network").eval()
        if decisions is not None:
            decisions.attach(module)
        return Lowered(
            graph=module,
            input_names=self._names,
            output_names=tuple(output) if isinstance(output, dict) else (),
            layers={name: node.name for name, node in layers.items()},
            notes=list(self.notes),
        )

    def _layers(self, kept: set[fx.Node]) -> dict[str, fx.Node]:
        layers: dict[str, fx.Node] = {}
        calls: Counter[str] = Counter()
        for entry in self._entries:
            if entry.node not in kept:
                continue
            name = entry.name
            while name in layers:
                calls[entry.name] += 1
                name = f"{entry.name}:{calls[entry.name]}"
            layers[name] = entry.node
        return layers

    def _check(self, decisions: Decisions) -> None:
        """Refuse what depends on the batch size."""
        given = {len(example) for example in self._examples if example.dim()}
        for rows in sorted(set(_ROWS) - given):
            inputs = [
                example.index_select(0, torch.arange(rows) % len(example))
                if example.dim()
                else example
                for example in self._examples
            ]
            differing = decisions.differing(inputs)
            if differing is not None:
                raise Unlowerable(f"{differing.what} depends on the batch size{differing.where}")


def _target(name: str) -> str:
    """The attribute that holds a layer's module: its name, where `GraphModule` leaves it free."""
    first, dot, rest = name.partition(".")
    return f"{first}_{dot}{rest}" if first in _RESERVED else name
