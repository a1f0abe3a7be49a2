"""Runs one `aten` operator on tensors: for the example, and as a node of the graph."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..lowered import Stateful, Unlowerable
from .activations import PLAIN_LAYERS
from .attention import FUSED
from .bags import embedding_bag
from .canonical import Call, NotCanonical
from .kinds import KINDS
from .memory import link, reshape_in_place, write
from .recorder import Recorder
from .recurrent import GATES, pack_padded_sequence, pad_packed_sequence, recurrent
from .structure import Structure
from .values import DTYPES, MEMORY_FORMATS, Item, Origin, Value, concrete, leaves, origin_of
from .weighted import WEIGHTED_LAYERS

_LAYERS = PLAIN_LAYERS | WEIGHTED_LAYERS
_COMPOSITE = {**FUSED, "embedding_bag": embedding_bag}
_PACKING = {
    "_pack_padded_sequence": pack_padded_sequence,
    "_pad_packed_sequence": pad_packed_sequence,
}
_RANDOM = torch.Tag.nondeterministic_seeded
_RAGGED = torch.Tag.dynamic_output_shape
_METADATA_ONLY = torch.Tag.inplace_view
_STATISTICS = "num_batches_tracked"


class Operators:
    """The tensor operators of one graph.

    Args:
        recorder: where nodes go.
        structure: the operators on shapes and numbers.
    """

    def __init__(self, recorder: Recorder, structure: Structure) -> None:
        self.recorder, self.structure = recorder, structure

    def run(self, schema: Any, items: Sequence[Item]) -> Item:
        """What an operator gives for `items`, which are in the order of its schema.

        Raises:
            Unlowerable: the operator cannot be part of a differentiable graph.
        """
        namespace, name = schema.name.split("::")
        if namespace != "aten":
            raise Unlowerable(f"the operator {schema.name} is not supported{self._where()}")
        if name in _COMPOSITE:
            result = _COMPOSITE[name](self, items)
            if result is not NotImplemented:
                return result
        if name in GATES:
            return self._recurrent(name, schema, items)
        if name in _PACKING:
            return self._own(_PACKING[name], name, schema, items)
        if name in ("tensor", "as_tensor"):
            return self._tensor(schema, items)
        if name in ("to", "type_as"):
            return self._to(schema, items)
        written = [
            argument.name
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if not written:
            return self._pure(name, schema, items)
        if written != [schema.arguments[0].name] or not name.endswith("_"):
            raise Unlowerable(f"{schema.name} writes to its argument {written[0]}{self._where()}")
        return self._in_place(name, schema, items)

    def _where(self) -> str:
        return self.recorder.where()

    def _overload(self, name: str, schema: Any) -> Any:
        packet = getattr(torch.ops.aten, name, None)
        overload = schema.overload_name or "default"
        if packet is None or overload not in packet.overloads():
            raise Unlowerable(f"the operator aten::{name} is not supported{self._where()}")
        return getattr(packet, overload)

    def _functional(self, name: str, schema: Any) -> Any:
        """The schema of the operator without its write: its overload may have another name."""
        types = [str(argument.type) for argument in schema.arguments]
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            candidate = getattr(packet, overload)._schema
            if [str(argument.type) for argument in candidate.arguments] == types:
                return candidate
        raise Unlowerable(f"the operator {schema.name} is not supported{self._where()}")

    def _pure(self, name: str, schema: Any, items: Sequence[Item]) -> Item:
        result = self._computed(name, schema, items)
        link(name, items, result, lambda again: self._computed(name, schema, again))
        return result

    def _computed(self, name: str, schema: Any, items: Sequence[Item]) -> Item:
        function = self._overload(name, schema)
        origin = self._origin(function, items)
        if origin is Origin.CONSTANT:
            return self._fold(self._evaluate(function, schema, items))
        if name in _LAYERS:
            try:
                return self._canonical(name, schema, items)
            except NotCanonical:
                pass
        positional: list[Item] = []
        keywords: dict[str, Any] = {}
        for argument, item in zip(schema.arguments, self._plain(schema, items), strict=True):
            if argument.name == "device" and not _takes_tensor(schema):
                item = self.recorder.device
            if argument.kwarg_only:
                keywords[argument.name] = item
            else:
                positional.append(item)
        result = self._evaluate(function, schema, items)
        public = name.strip("_")
        return self.recorder.function(
            function,
            positional,
            keywords,
            result,
            origin,
            kind=KINDS.get(name, public),
            name=self.recorder.named(public),
        )

    def _own(self, function: Any, name: str, schema: Any, items: Sequence[Item]) -> Item:
        """A function of ours in the place of an operator."""
        origin = self._origin(self._overload(name, schema), items)
        result = self._attempt(function, schema, [concrete(self._fresh(item)) for item in items])
        return self.recorder.function(
            function, items, {}, result, origin, kind=KINDS.get(name, name.strip("_"))
        )

    def _recurrent(self, name: str, schema: Any, items: Sequence[Item]) -> Item:
        given = {
            argument.name: item for argument, item in zip(schema.arguments, items, strict=True)
        }
        if concrete(given["train"]) and concrete(given["dropout"]):
            self.recorder.note("dropout was active in the file; it is served in its inference form")
        states = [_bare(item) if key == "hx" else item for key, item in given.items()]
        arguments = [Value(name), Value(schema.overload_name), *states]
        origin = self._origin(self._overload(name, schema), items)
        values = [concrete(self._fresh(item)) for item in arguments]
        result = self._attempt(recurrent, schema, values)
        owner = self._name(name, items)
        return self.recorder.function(
            recurrent, arguments, {}, result, origin, kind=name, name=owner
        )

    def _fresh(self, item: Item) -> Item:
        for leaf in leaves(item):
            self.recorder.check(leaf)
        return item

    def _to(self, schema: Any, items: Sequence[Item]) -> Item:
        """A change of dtype, if anything: the device is the server's choice."""
        given = {
            argument.name: item for argument, item in zip(schema.arguments, items, strict=True)
        }
        value, dtype = given["self"], concrete(given.get("dtype", Value(None)))
        if "other" in given:
            target = given["other"].value.dtype
        elif isinstance(dtype, int):
            target = self.dtype(dtype)
        else:
            target = value.value.dtype
        cast = self.cast(value, target)
        if cast is value and "copy" in given and given["copy"].value:
            clone = torch.ops.aten.clone.default._schema
            return self._pure("clone", clone, [value, Value(None)])
        return cast

    def _tensor(self, schema: Any, items: Sequence[Item]) -> Item:
        """`torch.tensor(data)`: of numbers, so it carries no gradient."""
        data, dtype = items[0], None
        for argument, item in zip(schema.arguments, self._plain(schema, items), strict=True):
            if argument.name == "dtype":
                dtype = concrete(item)
        if any(leaf.is_tensor for leaf in leaves(data)):
            raise Unlowerable(f"{schema.name} copies a tensor{self._where()}")
        result = torch.tensor(concrete(data), dtype=dtype)
        origin = origin_of(data)
        if origin is Origin.CONSTANT:
            return self._fold(result)
        keywords = {"dtype": Value(dtype), "device": self.recorder.device}
        return self.recorder.function(torch.tensor, [data], keywords, result, origin, kind="tensor")

    def _fold(self, result: Any) -> Item:
        if isinstance(result, (list, tuple)):
            return type(result)(self._fold(element) for element in result)
        return Value(result)

    def _origin(self, function: Any, items: Sequence[Item]) -> Origin:
        origin = origin_of(list(items))
        computed = any(
            not leaf.is_tensor and leaf.origin >= Origin.DATA for leaf in leaves(list(items))
        )
        if computed and torch.Tag.pointwise not in function.tags:
            return Origin.RAGGED  # the number may be an extent
        if _RANDOM in function.tags:
            origin = max(origin, Origin.DATA)
        if origin >= Origin.DATA and _RAGGED in function.tags and not _gathers(function, items):
            return Origin.RAGGED
        return origin

    def _plain(self, schema: Any, items: Sequence[Item]) -> list[Item]:
        """Arguments with dtypes and formats as objects and without devices of another machine."""
        plain: list[Item] = []
        for argument, item in zip(schema.arguments, items, strict=True):
            value = item.value if isinstance(item, Value) else None
            if argument.name == "dtype" and isinstance(value, int):
                item = Value(self.dtype(value))
            elif argument.name == "memory_format" and isinstance(value, int):
                item = Value(MEMORY_FORMATS[value])
            elif argument.name == "layout" and value is not None:
                if value not in (0, torch.strided):
                    raise Unlowerable(f"{schema.name} makes a sparse tensor{self._where()}")
                item = Value(torch.strided)
            elif argument.name in ("device", "pin_memory"):
                item = Value(None)
            plain.append(item)
        return plain

    def _evaluate(self, function: Any, schema: Any, items: Sequence[Item]) -> Any:
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        for argument, item in zip(schema.arguments, self._plain(schema, items), strict=True):
            self._fresh(item)
            if argument.kwarg_only:
                keywords[argument.name] = concrete(item)
            else:
                positional.append(concrete(item))
        return self._attempt(function, schema, positional, keywords)

    def _attempt(
        self,
        function: Any,
        schema: Any,
        positional: Sequence[Any],
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        try:
            with torch.no_grad():
                return function(*positional, **(keywords or {}))
        except (RuntimeError, IndexError, ValueError, NotImplementedError) as error:
            raise Unlowerable(
                f"{schema.name} refuses the shapes or types that the example leads to"
                f"{self._where()}"
            ) from error

    def _canonical(self, name: str, schema: Any, items: Sequence[Item]) -> Item:
        arguments = {
            argument.name: item for argument, item in zip(schema.arguments, items, strict=True)
        }
        layer = _LAYERS[name](Call(self.recorder, name, arguments))
        self.recorder.check(layer.source)
        try:
            with torch.no_grad():
                result = layer.module.eval()(layer.source.value)
        except (RuntimeError, IndexError, ValueError) as error:
            raise Unlowerable(
                f"{schema.name} refuses the shapes or types that the example leads to"
                f"{self._where()}"
            ) from error
        value = self.recorder.module(
            layer.module, layer.source, result, kind=layer.kind, name=self._name(layer.kind, items)
        )
        if len(schema.returns) == 1:
            return value
        # Only the first of several results is the layer's; what reads another runs the operator.
        function = self._overload(name, schema)
        every = self._evaluate(function, schema, items)
        rest = self.recorder.function(
            function, items, {}, tuple(every), value.origin, kind=layer.kind
        )
        return (value, *rest[1:])

    def _name(self, kind: str, items: Sequence[Item]) -> str:
        """After the module that holds the weights, where the walk is not inside it."""
        for leaf in leaves(list(items)):
            owner = leaf.path.rpartition(".")[0]
            inside = self.recorder.scope
            if owner and owner != inside and owner.startswith(f"{inside}." if inside else ""):
                return owner
        return self.recorder.named(kind)

    def _in_place(self, name: str, schema: Any, items: Sequence[Item]) -> Item:
        target = items[0]
        if not isinstance(target, Value):
            raise Unlowerable(f"{schema.name} changes a list of tensors{self._where()}")
        self.recorder.check(target)
        function = self._overload(name, schema)
        metadata_only = _METADATA_ONLY in function.tags
        if name == "embedding_renorm_" and origin_of([target, *items[2:]]) is Origin.CONSTANT:
            return self._renormalised(target, *(concrete(item) for item in items[2:]))
        if target.storage and target.storage in self.recorder.owned and not metadata_only:
            if not target.path.endswith(_STATISTICS):
                what = target.path or "constants"
                raise Stateful(f"{schema.name} changes the model's own {what}{self._where()}")
            target.stale = schema.name
            return target
        result = self._written(name.removesuffix("_"), schema, items)
        if not isinstance(result, Value) or not result.is_tensor:
            raise Unlowerable(f"{schema.name} is not supported{self._where()}")
        if metadata_only:
            if result.view is None or result.view.base is not target:
                raise Unlowerable(f"{schema.name} is not supported{self._where()}")
            reshape_in_place(target, result, result.view)
            return target
        if result.value.shape != target.value.shape:
            raise Unlowerable(f"{schema.name} changes a shape{self._where()}")
        write(self, target, self.cast(result, target.value.dtype), schema.name)
        return target

    def _renormalised(self, target: Value, limit: float, order: float) -> Value:
        """An embedding shortens the rows that it looks up; here all, since the others are not read.

        The limit and the epsilon are those of `embedding_renorm_` in ATen.
        """
        table = target.value
        norms = table.norm(order, 1, keepdim=True)
        short = torch.where(norms > limit, table * (limit / (norms + 1e-7)), table)
        write(self, target, Value(short), "embedding_renorm_")
        return target

    def _written(self, name: str, schema: Any, items: Sequence[Item]) -> Item:
        """What an operator without its trailing underscore gives."""
        target, *rest = items
        if name in ("copy", "fill", "zero"):
            value = self.structure.box(Value(0)) if name == "zero" else rest[0]
            if not value.is_tensor:
                value = self.structure.box(value)
            value = self.cast(value, target.value.dtype)
            sizes = self.structure.size([target])
            filled = self.call(torch.ops.aten.expand.default, [value, sizes, Value(False)])
            # The example's memory must not look shared, since a write makes a copy.
            return Value(filled.value.clone(), filled.origin, filled.node)
        return self._pure(name, self._functional(name, schema), items)

    def call(self, function: Any, items: Sequence[Item]) -> Item:
        """Run an operator of PyTorch; `items` are in the order of its schema."""
        name = function._schema.name.removeprefix("aten::")
        return self._pure(name, function._schema, items)

    def dtype(self, code: int) -> torch.dtype:
        """The dtype of a number in TorchScript code."""
        if code not in DTYPES:
            raise Unlowerable(f"quantized tensors are not supported{self._where()}")
        return DTYPES[code]

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        """`value` in another dtype; itself where it has that already."""
        if value.value.dtype is dtype:
            return value
        if value.origin is Origin.CONSTANT:
            self.recorder.check(value)
            return Value(value.value.to(dtype))
        result: Value = self.recorder.function(
            torch.ops.aten.to.dtype,
            (value, Value(dtype)),
            {},
            value.value.to(dtype),
            value.origin,
            kind="cast",
            name=self.recorder.named("to"),
        )
        return result


def _bare(states: Item) -> Item:
    """Hidden states without the reshape that `repairs` adds to an archive for safety."""
    if isinstance(states, list):
        return [_bare(state) for state in states]
    view = states.view
    if view is None or view.operator != "reshape":
        return states
    return view.base if view.base.value.shape == states.value.shape else states


def _takes_tensor(schema: Any) -> bool:
    return any("Tensor" in str(argument.type) for argument in schema.arguments)


def _gathers(function: Any, items: Sequence[Item]) -> bool:
    """Whether this is indexing whose masks, if any, are constant."""
    if function is not torch.ops.aten.index.Tensor:
        return False
    return all(
        leaf.origin is Origin.CONSTANT or leaf.value.dtype not in (torch.bool, torch.uint8)
        for leaf in leaves(items[1])
    )
