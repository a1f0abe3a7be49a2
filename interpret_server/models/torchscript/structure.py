"""TorchScript's operators on lists, tuples, dictionaries, shapes and numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..lowered import Unlowerable
from .attention import Nested
from .recorder import Recorder
from .scalars import SCALARS, TRUNCATED, element, formatted, plain
from .values import (
    DTYPE_CODES,
    Instance,
    Item,
    Origin,
    Part,
    Value,
    concrete,
    leaves,
    origin_of,
)

_aten = torch.ops.aten


class Structure:
    """Operators that compute no tensor from tensors.

    Args:
        recorder: where nodes go.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._checked = False
        self.nested = False  # whether rows of unequal length are on their way
        self.own: set[int] = set()  # lists and dictionaries that belong to the archive

    def run(self, kind: str, items: Sequence[Item]) -> Item:
        """What an operator gives; NotImplemented where it is not one of these."""
        handler = _HANDLERS.get(kind)
        if handler is not None:
            result = handler(self, items)
            if result is not NotImplemented:
                return result
        if kind in SCALARS:
            return self._scalar(kind, items)
        return NotImplemented

    def _scalar(self, kind: str, items: Sequence[Item]) -> Item:
        numbers = [item.number or item if isinstance(item, Value) else item for item in items]
        boxed = any(isinstance(item, Value) and item.number is not None for item in items)
        if boxed:
            numbers = [_unboxed(item) for item in numbers]
        if any(leaf.is_tensor for leaf in leaves(numbers)):
            return NotImplemented
        if boxed and kind == "aten::div" and len(numbers) == 3 and isinstance(numbers[2], Value):
            kind = _ROUNDED.get(numbers[2].value, kind)
            numbers = numbers[:2]
        if any(isinstance(item, Part | Instance) for item in items):
            return NotImplemented
        if boxed and kind in ("aten::add", "aten::sub"):
            numbers = numbers[:2] if numbers[2:] and numbers[2].value == 1 else numbers
        if boxed and not (
            kind in _INTEGRAL
            and len(numbers) == 2
            and all(type(leaf.value) is int for leaf in leaves(numbers))
        ):
            return NotImplemented
        number = self.python(SCALARS[kind], numbers)
        return self.box(number) if boxed else number

    def python(self, function: Callable[..., Any], items: Sequence[Item]) -> Item:
        """A Python function of plain values, folded where they are constant."""
        try:
            result = function(*[concrete(item) for item in items])
        except (ArithmeticError, TypeError, ValueError) as error:
            raise Unlowerable(
                f"arithmetic on sizes fails for the example{self.recorder.where()}"
            ) from error
        origin = origin_of(list(items))
        if origin is Origin.CONSTANT:
            return Value(result)
        arguments = tuple(self.recorder.argument(item) for item in items)
        node = self.recorder.graph.call_function(function, arguments)
        return Value(result, Origin.DATA if origin is Origin.RAGGED else origin, node)

    def box(self, number: Item) -> Value:
        """`prim::NumToTensor`: a zero-dimensional tensor that remembers its number."""
        if not isinstance(number, Value) or number.is_tensor:
            raise Unlowerable(f"prim::NumToTensor takes a number{self.recorder.where()}")
        tensor = torch.ops.aten.scalar_tensor(
            number.value, dtype=torch.float64 if isinstance(number.value, float) else torch.int64
        )
        return Value(tensor, number.origin, number=number)

    def _number(self, function: Callable[[Any], Any], items: Sequence[Item]) -> Item:
        """A number from a zero-dimensional tensor."""
        (item, *_) = items
        if not isinstance(item, Value) or not item.is_tensor:
            return NotImplemented
        if item.number is not None:
            same = function is plain or type(item.number.value) is function
            return item.number if same else self.python(function, [item.number])
        return self.python(function, [item])

    def size(self, items: Sequence[Item]) -> Item:
        """`aten::size`, symbolic, with or without an axis."""
        item = items[0]
        if not isinstance(item, Value) or not item.is_tensor:
            return NotImplemented
        if len(items) == 1:
            return [self._extent(item, axis) for axis in range(item.value.dim())]
        axis = self.recorder.static(items[1], "aten::size's axis")
        return self._extent(item, axis % max(item.value.dim(), 1))

    def _extent(self, item: Value, axis: int) -> Value:
        extent = int(item.value.shape[axis])
        if item.origin is Origin.CONSTANT:
            return Value(extent)
        self.recorder.argument(item)
        node = self.recorder.graph.call_function(_aten.sym_size.int, (item.node, axis))
        return Value(extent, Origin.DATA if item.origin is Origin.RAGGED else Origin.SHAPE, node)

    def numel(self, items: Sequence[Item]) -> Item:
        """The number of elements, symbolic."""
        (item,) = items
        if not item.is_tensor:
            return NotImplemented
        if item.origin is Origin.CONSTANT:
            return Value(item.value.numel())
        node = self.recorder.graph.call_function(_aten.sym_numel.default, (item.node,))
        origin = Origin.DATA if item.origin is Origin.RAGGED else Origin.SHAPE
        return Value(item.value.numel(), origin, node)

    def length(self, items: Sequence[Item]) -> Item:
        """`len` of a list, a string or a tensor."""
        (item,) = items
        if isinstance(item, Value):
            return self.size([item, Value(0)]) if item.is_tensor else Value(len(item.value))
        return Value(len(item))

    def message(self, items: Sequence[Item]) -> Item:
        """A text for people: no graph needs it to be exact where it shows tensors."""
        try:
            return Value(formatted(*(concrete(item) for item in items)))
        except Unlowerable:
            return Value("")

    def position(self, item: Item, what: str) -> Any:
        """An index or key, which the structure of the graph depends on."""
        return self.recorder.static(item, what)

    def get_item(self, items: Sequence[Item]) -> Item:
        """`list[index]`, `dict[key]`."""
        container, index = items
        if isinstance(container, Value):
            return self.python(element, items)
        return container[self.position(index, "aten::__getitem__'s index")]

    def set_item(self, items: Sequence[Item]) -> Item:
        """`list[index] = value`, `dict[key] = value`."""
        container, index, value = items
        self._writable(container)
        container[self.position(index, "aten::_set_item's index")] = value
        return container

    def _writable(self, container: Item) -> None:
        if id(container) in self.own:
            raise Unlowerable(f"the model changes a list of its own{self.recorder.where()}")

    def _mutate(self, method: str, items: Sequence[Item]) -> Item:
        container, *rest = items
        if not isinstance(container, (list, dict)):
            return NotImplemented
        self._writable(container)
        if method in ("pop", "insert"):
            rest = [self.position(rest[0], f"aten::{method}'s index"), *rest[1:]]
        result = getattr(container, method)(*rest)
        return container if result is None else result

    def _slice(self, items: Sequence[Item]) -> Item:
        container, *limits = items
        if not isinstance(container, (list, tuple)):
            return NotImplemented
        return container[slice(*(self.position(limit, "aten::slice") for limit in limits))]

    def _concatenate(self, items: Sequence[Item]) -> Item:
        if not isinstance(items[0], list) or not isinstance(items[1], list):
            return NotImplemented
        return [*items[0], *items[1]]

    def _extend(self, items: Sequence[Item]) -> Item:
        if not isinstance(items[0], list):
            return NotImplemented
        return self._mutate("extend", items)

    def _repeat(self, items: Sequence[Item]) -> Item:
        if not isinstance(items[0], list):
            return NotImplemented
        return items[0] * self.position(items[1], "the length of a list")

    def _contains(self, items: Sequence[Item]) -> Item:
        container, element = items
        if isinstance(container, dict):
            return Value(self.position(element, "a key") in container)
        return Value(
            self.position(element, "a test for an element")
            in self.position(container, "a test for an element")
        )

    def _identical(self, items: Sequence[Item], same: bool) -> Item:
        first, second = (item.value if isinstance(item, Value) else item for item in items)
        return Value((first is second) is same)

    def _default(self, items: Sequence[Item]) -> Item:
        container, key, *rest = items
        return container.get(self.position(key, "a key"), rest[0] if rest else Value(None))

    def _about(self, items: Sequence[Item], function: Callable[[torch.Tensor], Any]) -> Item:
        item = items[0].padded if isinstance(items[0], Nested) else items[0]
        if not isinstance(item, Value) or not item.is_tensor:
            return NotImplemented
        return Value(function(item.value))

    def _nest(self, items: Sequence[Item]) -> Item:
        self.nested = True
        return Nested(items[0], items[1], self._checked)

    def _left_aligned(self) -> Item:
        """The file asks whether all rows are padded at their end alone; here each row decides."""
        self._checked = True
        self.recorder.note(
            "nn.TransformerEncoder treats a batch as one where a row is padded elsewhere than at "
            "its end; every row is served as it would be alone"
        )
        return Value(True)

    def _grad_enabled(self) -> Item:
        """Outside gradients, nn.TransformerEncoder sets what is padding to 0."""
        return Value(not self.nested and self.recorder.type_name != "TransformerEncoder")


def _unboxed(item: Item) -> Item:
    if not isinstance(item, Value) or not item.is_tensor:
        return item
    if item.origin is Origin.CONSTANT and item.value.dim() == 0:
        return Value(item.value.item())
    return item


_INTEGRAL = frozenset(
    {
        "aten::add",
        "aten::sub",
        "aten::mul",
        "aten::floor_divide",
        "aten::remainder",
        TRUNCATED,
    }
)
_ROUNDED = {"floor": "aten::floor_divide", "trunc": TRUNCATED}  # by the rounding mode of a quotient

Handler = Callable[[Structure, Sequence[Item]], Item]

_HANDLERS: dict[str, Handler] = {
    "prim::ListConstruct": lambda s, items: list(items),
    "prim::TupleConstruct": lambda s, items: tuple(items),
    "prim::NamedTupleConstruct": lambda s, items: tuple(items),
    "prim::DictConstruct": lambda s, items: {
        s.position(key, "a dictionary's key"): value
        for key, value in zip(items[::2], items[1::2], strict=True)
    },
    "prim::TupleIndex": lambda s, items: items[0][s.position(items[1], "a tuple's index")],
    "prim::CreateObject": lambda s, items: Instance(),
    "prim::unchecked_cast": lambda s, items: items[0],
    "prim::unchecked_unwrap_optional": lambda s, items: items[0],
    "aten::_unwrap_optional": lambda s, items: items[0],
    "prim::data": lambda s, items: items[0],
    "prim::Uninitialized": lambda s, items: Value(None),
    "prim::NumToTensor": lambda s, items: s.box(items[0]),
    "prim::Print": lambda s, items: Value(None),
    "aten::warn": lambda s, items: Value(None),
    "prim::shape": lambda s, items: s.size(items),
    "aten::size": lambda s, items: s.size(items),
    "aten::numel": lambda s, items: s.numel(items),
    "aten::len": lambda s, items: s.length(items),
    "aten::dim": lambda s, items: s._about(items, torch.Tensor.dim),
    "prim::ndim": lambda s, items: s._about(items, torch.Tensor.dim),
    "prim::dtype": lambda s, items: s._about(items, lambda t: DTYPE_CODES[t.dtype]),
    "prim::device": lambda s, items: Value(torch.device("cpu")),
    "prim::is_cuda": lambda s, items: Value(False),
    "prim::layout": lambda s, items: Value(0),
    "prim::requires_grad": lambda s, items: Value(
        items[0].origin >= Origin.DATA and items[0].value.is_floating_point()
    ),
    "prim::type": lambda s, items: Value(items[0].value.type),
    "prim::is_nested": lambda s, items: Value(isinstance(items[0], Nested)),
    "prim::is_sparse": lambda s, items: Value(False),
    "prim::is_cpu": lambda s, items: Value(True),
    "prim::is_quantized": lambda s, items: s._about(items, lambda t: t.is_quantized),
    "aten::is_floating_point": lambda s, items: s._about(items, torch.is_floating_point),
    "aten::is_complex": lambda s, items: s._about(items, torch.is_complex),
    "aten::is_grad_enabled": lambda s, items: s._grad_enabled(),
    "aten::_nested_tensor_from_mask": lambda s, items: s._nest(items),
    "aten::_nested_tensor_from_mask_left_aligned": lambda s, items: s._left_aligned(),
    "aten::is_autocast_enabled": lambda s, items: Value(False),
    "aten::is_autocast_cpu_enabled": lambda s, items: Value(False),
    "aten::format": lambda s, items: s.message(items),
    "aten::percentFormat": lambda s, items: Value(""),
    "aten::__getitem__": Structure.get_item,
    "aten::_set_item": Structure.set_item,
    "aten::__contains__": lambda s, items: s._contains(items),
    "aten::__is__": lambda s, items: s._identical(items, True),
    "aten::__isnot__": lambda s, items: s._identical(items, False),
    "aten::append": lambda s, items: s._mutate("append", items),
    "aten::extend": lambda s, items: s._mutate("extend", items),
    "aten::insert": lambda s, items: s._mutate("insert", items),
    "aten::pop": lambda s, items: s._mutate("pop", items),
    "aten::clear": lambda s, items: s._mutate("clear", items),
    "aten::reverse": lambda s, items: s._mutate("reverse", items),
    "aten::update": lambda s, items: s._mutate("update", items),
    "aten::slice": lambda s, items: s._slice(items),
    "prim::TupleSlice": lambda s, items: NotImplemented,
    "aten::add": lambda s, items: s._concatenate(items),
    "aten::add_": lambda s, items: s._extend(items),
    "aten::mul": lambda s, items: s._repeat(items),
    "aten::list": lambda s, items: list(items[0]),
    "aten::copy": lambda s, items: items[0].copy(),
    "aten::keys": lambda s, items: [Value(key) for key in items[0]],
    "aten::values": lambda s, items: list(items[0].values()),
    "aten::items": lambda s, items: [(Value(key), value) for key, value in items[0].items()],
    "aten::get": lambda s, items: s._default(items),
    "aten::cuda": lambda s, items: items[0],
    "aten::cpu": lambda s, items: items[0],
    "aten::Int": lambda s, items: s._number(int, items),
    "aten::IntImplicit": lambda s, items: s._number(int, items),
    "aten::Float": lambda s, items: s._number(float, items),
    "aten::FloatImplicit": lambda s, items: s._number(float, items),
    "aten::Bool": lambda s, items: s._number(bool, items),
    "aten::is_nonzero": lambda s, items: s._number(bool, items),
    "aten::ScalarImplicit": lambda s, items: s._number(plain, items),
    "aten::item": lambda s, items: s._number(plain, items),
}
