"""How an operator's call becomes an `nn.Module` node: its arguments, its module, the tables."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .recorder import Recorder
from .values import Item, Origin, Value, origin_of


class NotCanonical(Exception):
    """This call has no module form: a weight that depends on the input, say."""


@dataclass
class Call:
    """An operator's arguments by the names of its schema."""

    recorder: Recorder
    operator: str
    items: dict[str, Item]

    def static(self, name: str) -> Any:
        """A plain constant argument."""
        return self.constant(self.items[name])

    def constant(self, item: Item) -> Any:
        """What a constant item holds."""
        if origin_of(item) is not Origin.CONSTANT:
            raise NotCanonical
        return self.recorder.static(item, self.operator)

    def is_size(self, item: Item, source: Value, axis: int) -> bool:
        """Whether an item is the size of `source` along an axis, whatever that is."""
        node = item.node if isinstance(item, Value) else None
        return (
            node is not None
            and node.target is torch.ops.aten.sym_size.int
            and node.args == (source.node, axis)
        )

    def tensor(self, name: str) -> Value:
        """A tensor argument that depends on the input."""
        item = self.items[name]
        if not isinstance(item, Value) or not item.is_tensor:
            raise NotCanonical
        return item

    def weight(self, name: str) -> Tensor | None:
        """A constant tensor, or None where it was left out."""
        item = self.items[name]
        if not isinstance(item, Value) or item.origin is not Origin.CONSTANT:
            raise NotCanonical
        self.recorder.check(item)
        weight: Tensor | None = item.value
        return weight

    def required(self, name: str) -> Tensor:
        """A constant tensor."""
        weight = self.weight(name)
        if weight is None:
            raise NotCanonical
        return weight


@dataclass
class Layer:
    """A module, the one tensor that it reads, and its kind."""

    module: nn.Module
    source: Value
    kind: str


Builder = Callable[[Call], Layer]


class Builders(dict[str, Builder]):
    """Operator name, without `aten::` and a trailing underscore, to what builds its layer."""

    def register(self, *operators: str) -> Callable[[Builder], Builder]:
        """Decorate the builder of some operators."""

        def decorate(builder: Builder) -> Builder:
            self.update(dict.fromkeys(operators, builder))
            return builder

        return decorate


def expanded(value: Any, length: int) -> tuple[Any, ...]:
    """One number per axis, from a number, a list of one or a list of all."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    return values * length if len(values) == 1 else values
