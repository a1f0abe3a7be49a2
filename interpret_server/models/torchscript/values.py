"""What a TorchScript value is while its graph is walked: an example beside its symbolic form."""

from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import fx

from ..lowered import Unlowerable

if TYPE_CHECKING:
    from .memory import View

DTYPES: dict[int, torch.dtype] = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    8: torch.complex32,
    9: torch.complex64,
    10: torch.complex128,
    11: torch.bool,
    15: torch.bfloat16,
}  # TorchScript writes a dtype as its number in c10/core/ScalarType.h
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}
MEMORY_FORMATS: dict[int, torch.memory_format] = {
    0: torch.contiguous_format,
    1: torch.preserve_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
}


class Origin(IntEnum):
    """What a value depends on; a result depends on the most that any argument does."""

    CONSTANT = 0
    SHAPE = 1  # the shapes of the inputs
    DATA = 2  # the elements of the inputs
    RAGGED = 3  # a tensor whose very shape depends on the elements of the inputs


class Value:
    """A tensor or a plain value. One instance per TorchScript object, so that every alias of a
    tensor sees an in-place operation on it.

    Args:
        value: what it is for the example.
        origin: what it depends on.
        node: the FX node that computes it; None for a constant that no node has needed yet.
        path: of the archive's attribute that it is, or empty.
        number: the number that this zero-dimensional tensor was made from (`prim::NumToTensor`).
    """

    __slots__ = (
        "__weakref__",
        "node",
        "number",
        "origin",
        "outdated",
        "path",
        "stale",
        "value",
        "view",
        "views",
    )

    def __init__(
        self,
        value: Any,
        origin: Origin = Origin.CONSTANT,
        node: fx.Node | None = None,
        *,
        path: str = "",
        number: "Value | None" = None,
    ) -> None:
        self.value, self.origin, self.node = value, origin, node
        self.path, self.number = path, number
        self.stale = ""  # the operation that changed memory which no graph keeps track of
        self.view: View | None = None  # what it was made from, where that shares its memory
        self.views: WeakSet[Value] = WeakSet()
        self.outdated = False  # a view whose memory was written to through another one

    @property
    def is_tensor(self) -> bool:
        """Whether it holds a tensor."""
        return isinstance(self.value, torch.Tensor)

    @property
    def storage(self) -> int:
        """The address of the example's memory; 0 for anything but a strided tensor with memory."""
        if not self.is_tensor or self.value.layout is not torch.strided:
            return 0
        return int(self.value.untyped_storage().data_ptr())


class Part:
    """A module of the archive, with its path from the root."""

    __slots__ = ("module", "path")

    def __init__(self, module: torch._C.ScriptModule, path: str) -> None:
        self.module, self.path = module, path


class Quantised:
    """A quantised tensor, by the numbers that it stands for.

    Args:
        values: floating point, on the grid `scale * (q - zero)`.
        scale: of one step.
        zero: the integer that stands for 0.
        dtype: of the integers.
    """

    __slots__ = ("dtype", "scale", "values", "zero")

    def __init__(self, values: Any, scale: float, zero: int, dtype: torch.dtype) -> None:
        self.values, self.scale, self.zero, self.dtype = values, scale, zero, dtype


class Instance(dict[str, Any]):
    """An object of a TorchScript class: its attributes by name."""


Item = Any  # Value | Part | Instance | list[Item] | tuple[Item, ...] | dict[key, Item]


def leaves(item: Item) -> Iterator[Value]:
    """Every `Value` in an item, depth first."""
    if isinstance(item, Value):
        yield item
    elif isinstance(item, Quantised):
        yield from leaves(item.values)
    elif isinstance(item, (list, tuple)):
        for element in item:
            yield from leaves(element)
    elif isinstance(item, dict):
        for element in item.values():
            yield from leaves(element)


def concrete(item: Item) -> Any:
    """The example's value of an item, containers rebuilt.

    Raises:
        Unlowerable: the item is a module.
    """
    if isinstance(item, Value):
        return item.value
    if isinstance(item, list):
        return [concrete(element) for element in item]
    if isinstance(item, tuple):
        return tuple(concrete(element) for element in item)
    if isinstance(item, dict) and not isinstance(item, Instance):
        return {key: concrete(element) for key, element in item.items()}
    kind = "a quantised tensor" if isinstance(item, Quantised) else "a module or class object"
    raise Unlowerable(f"{kind} is used as a value")


def lift(value: Any, path: str = "") -> Item:
    """An item from a constant of the archive."""
    if isinstance(value, list):
        return [lift(element, path) for element in value]
    if isinstance(value, tuple):
        return tuple(lift(element, path) for element in value)
    if isinstance(value, dict):
        return {key: lift(element, path) for key, element in value.items()}
    if isinstance(value, torch.Tensor):
        return Value(value.detach(), path=path)
    return Value(value)


def origin_of(items: Item) -> Origin:
    """The most that any leaf depends on."""
    return max((leaf.origin for leaf in leaves(items)), default=Origin.CONSTANT)
