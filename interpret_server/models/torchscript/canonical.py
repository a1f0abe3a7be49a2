"""How an operator's call becomes an `nn.Module` node: its arguments, its module, the tables."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
        """A plain argument."""
        if origin_of(self.items[name]) >= Origin.DATA:
            raise NotCanonical
        return self.recorder.static(self.items[name], f"{self.operator}'s {name}")

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
        weight: Tensor | None = item.value
        if weight is None:
            return None
        self.recorder.check(item)
        # A tensor that the walk itself made may still be written to in place.
        return weight if item.storage in self.recorder.owned else weight.clone()

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
