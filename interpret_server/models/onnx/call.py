"""One ONNX node during import, as an operator's function sees it."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ..lowered import Unlowerable
from .builder import Builder, item_at, literal, to_numbers
from .subgraph import Subgraphs
from .values import HALF, Number, Numbers, Value, dtype_of

Items = list[Number]


@dataclass(frozen=True)
class Call:
    """What an operator's function needs: attributes, facts about the inputs, and the graph.

    Args:
        operator: the ONNX name, `Conv` say.
        domain: empty for the default one.
        opset: the version of the domain that the file asks for.
        attributes: by name; tensors as torch tensors, strings as str, graphs as GraphProto.
        outputs: the names of the outputs, empty where one is not wanted.
        name: the layer's name.
        builder: the graph under construction.
        subgraphs: imports the graphs among the attributes.
        faithful: keep float16 and training mode as the file has them.
        straight_through: rounding to integers passes gradients on.
    """

    operator: str
    domain: str
    opset: int
    attributes: Mapping[str, Any]
    outputs: tuple[str, ...]
    name: str
    builder: Builder
    subgraphs: Subgraphs
    faithful: bool = False
    straight_through: bool = False

    # Attributes.

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        return int(self.attributes.get(name, default))

    def integers(self, name: str) -> list[int] | None:
        """A list of integers, None where it is left out."""
        value = self.attributes.get(name)
        return None if value is None else [int(item) for item in value]

    def real(self, name: str, default: float) -> float:
        """A floating-point attribute."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        return str(self.attributes.get(name, default))

    def target_dtype(self, code: int) -> torch.dtype:
        """The torch dtype for an ONNX type code; half precision becomes float32."""
        dtype = dtype_of(code)
        return torch.float32 if dtype in HALF and not self.faithful else dtype

    # Facts about inputs.

    def rank(self, x: Value) -> int | None:
        """Number of axes, None where it is unknown."""
        shape = self.shape(x)
        return None if shape is None else len(shape)

    def shape(self, x: Value) -> tuple[int | None, ...] | None:
        """Sizes, None where one depends on the batch; None for an unknown rank."""
        return self.builder.shape(x)

    def dtype(self, x: Value) -> torch.dtype | None:
        """Element type, None where it is unknown."""
        return self.builder.dtype(x)

    def is_float(self, x: Value) -> bool:
        """Whether the elements are known to be floating-point numbers."""
        dtype = self.dtype(x)
        return dtype is not None and dtype.is_floating_point

    def items(self, x: Value) -> Items | fx.Node:
        """The elements as Python numbers, a scalar as a list of one.

        A node, where the elements are known only at run time; reading them waits for the device.
        """
        if isinstance(x, Numbers):
            return list(x.items)
        if isinstance(x, Tensor):
            return cast(Items, x.reshape(-1).tolist())
        flat = self.builder.function(torch.flatten, x, name=self.name, kind="reshape")
        return cast(fx.Node, self.builder.number(to_numbers, flat))

    def literals(self, x: Value | None, what: str) -> list[int]:
        """The elements as Python integers.

        Raises:
            Unlowerable: they are known only at run time.
        """
        items = [] if x is None else self.items(x)
        if isinstance(items, fx.Node) or any(isinstance(item, fx.Node) for item in items):
            raise Unlowerable(f"{self.operator} with {what} that are computed from the input")
        return [int(item) for item in items if not isinstance(item, fx.Node)]

    # Emission.

    @property
    def kind(self) -> str:
        """The operator's name in lowercase words."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.operator).lower()

    def module(
        self,
        module: nn.Module,
        *args: Any,
        kind: str | None = None,
        **options: Any,
    ) -> Value:
        """Call a module of its own, with the options of `Builder.module`."""
        result: Value = self.builder.module(
            module, *args, name=self.name, kind=kind or self.kind, **options
        )
        return result

    def function(
        self, target: Callable[..., Any], *args: Any, kind: str | None = None, **kwargs: Any
    ) -> Value:
        """Call a function; constants and numbers among the arguments become tensors."""
        result: Value = self.builder.function(
            target, *args, name=self.name, kind=kind or self.kind, **kwargs
        )
        return result

    def several(
        self, target: Callable[..., Any], *args: Any, count: int, **kwargs: Any
    ) -> list[Value]:
        """Call a function that gives a sequence; its first `count` items."""
        return self.items_of(self.function(target, *args, **kwargs), count, kwargs.get("kind"))

    def items_of(self, results: Any, count: int, kind: str | None = None) -> list[Value]:
        """The first `count` items of a sequence that a node, or import, gives."""
        if not isinstance(results, fx.Node):
            return list(cast(Sequence[Value], results))[:count]
        return [self.function(item_at, results, index, kind=kind) for index in range(count)]

    def numbers(self, items: Sequence[Number], scalar: bool, dtype: torch.dtype) -> Value:
        """Python numbers as a value."""
        return literal(items, scalar, dtype)
