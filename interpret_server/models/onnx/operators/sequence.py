"""Sequences of tensors, and optional values.

A sequence whose length import knows is `Listed` and leaves no trace in the graph; another is a node
that gives a list.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from onnx import GraphProto
from torch import Tensor, fx

from ....errors import InvalidModel
from ...lowered import Unlowerable
from ..call import Call
from ..registry import operator
from ..values import Listed, Maybe, Numbers, Output, Value
from .shape import concat, split_by

_LONGEST = 4096


@operator("SequenceEmpty")
def sequence_empty(call: Call) -> Output:
    return Listed(())


@operator("SequenceConstruct")
def sequence_construct(call: Call, *items: Value) -> Output:
    return Listed(items)


def _position(call: Call, sequence: Value, position: Value) -> int | None:
    """A known position in a known sequence."""
    items = call.items(position) if isinstance(position, Tensor) else []
    if not isinstance(sequence, Listed) or len(cast(list[Any], items)) != 1:
        return None
    return int(cast(list[Any], items)[0])


def _index(call: Call, position: Value) -> Any:
    """A position for a function that runs later."""
    items = call.items(position)
    return items if isinstance(items, fx.Node) else items[0]


def _outside(call: Call, position: int, sequence: Listed) -> InvalidModel:
    return InvalidModel(
        f"model: {call.name!r} asks for position {position} of a sequence of "
        f"{len(sequence.items)} values"
    )


def at(items: Sequence[Any], index: Any) -> Any:
    """One item of a list."""
    return items[_number(index)]


@operator("SequenceAt")
def sequence_at(call: Call, sequence: Value, position: Value) -> Output:
    where = _position(call, sequence, position)
    if where is None or not isinstance(sequence, Listed):
        return call.function(at, sequence, _index(call, position))
    if not -len(sequence.items) <= where < len(sequence.items):
        raise _outside(call, where, sequence)
    return sequence.items[where]


def inserted(items: Sequence[Any], item: Any, index: Any) -> list[Any]:
    """A list with one more item before a position; at the end without one."""
    where = len(items) if index is None else _number(index)
    if not -len(items) <= where <= len(items):
        raise IndexError(f"position {where} of a sequence of {len(items)} values")
    where += len(items) if where < 0 else 0
    return [*items[:where], item, *items[where:]]


@operator("SequenceInsert")
def sequence_insert(call: Call, sequence: Value, item: Value, position: Maybe = None) -> Output:
    if isinstance(sequence, Listed) and position is None:
        return Listed((*sequence.items, item))
    where = None if position is None else _position(call, sequence, position)
    if where is None or not isinstance(sequence, Listed):
        index = None if position is None else _index(call, position)
        return call.function(inserted, sequence, item, index)
    if not -len(sequence.items) <= where <= len(sequence.items):
        raise _outside(call, where, sequence)
    return Listed(tuple(inserted(sequence.items, item, where)))


def erased(items: Sequence[Any], index: Any) -> list[Any]:
    """A list without the item at a position; the last one without a position."""
    left = list(items)
    del left[-1 if index is None else _number(index)]
    return left


@operator("SequenceErase")
def sequence_erase(call: Call, sequence: Value, position: Maybe = None) -> Output:
    where = -1 if position is None else _position(call, sequence, position)
    if where is None or not isinstance(sequence, Listed):
        index = None if position is None else _index(call, position)
        return call.function(erased, sequence, index)
    if not -len(sequence.items) <= where < len(sequence.items):
        raise _outside(call, where, sequence)
    return Listed(tuple(erased(sequence.items, where)))


@operator("SequenceLength")
def sequence_length(call: Call, sequence: Value) -> Output:
    if isinstance(sequence, Listed):
        return torch.tensor(len(sequence.items))
    return Numbers((call.builder.number(len, sequence),), True, torch.int64)


@operator("ConcatFromSequence")
def concat_from_sequence(call: Call, sequence: Value) -> Output:
    axis, new = call.integer("axis"), bool(call.integer("new_axis"))
    if not isinstance(sequence, Listed):
        return call.function(torch.stack if new else torch.cat, sequence, axis, kind="cat")
    if not sequence.items:
        raise InvalidModel(f"model: {call.name!r} joins an empty sequence")
    numbers = _numbers(sequence, scalar=new)
    if numbers is not None:
        return call.numbers(numbers, False, cast(torch.dtype, call.dtype(sequence.items[0])))
    if new:
        return call.function(torch.stack, list(sequence.items), axis, kind="stack")
    return concat(call, *sequence.items)


def _numbers(sequence: Listed, *, scalar: bool) -> list[Any] | None:
    """The items joined, where Python knows all their elements and some are not constant."""
    found: list[Any] = []
    for item in sequence.items:
        if isinstance(item, Numbers) and item.scalar == scalar:
            found += item.items
        elif isinstance(item, Tensor) and item.dim() == (0 if scalar else 1):
            found += item.reshape(-1).tolist()
        else:
            return None
    return found if any(isinstance(item, Numbers) for item in sequence.items) else None


def split_every(x: Tensor, width: Any, axis: int, keep: bool) -> list[Tensor]:
    """Pieces of one width along an axis, the last one maybe smaller; without the axis, of 1."""
    if not keep:
        return list(x.unbind(axis))
    return list(torch.split(x, _number(width), axis))


@operator("SplitToSequence")
def split_to_sequence(call: Call, x: Value, sizes: Maybe = None) -> Output:
    axis, shape = call.integer("axis"), call.shape(x)
    length = shape[axis] if shape is not None else None
    keep = sizes is not None or bool(call.integer("keepdims", 1))
    if isinstance(sizes, Tensor) and sizes.dim() == 1:
        widths = [int(size) for size in sizes]
        pieces = call.several(split_by, x, widths, axis, count=len(widths), kind="split")
        return Listed(tuple(pieces))
    if sizes is not None and call.rank(sizes) == 1:
        return call.function(split_by, x, call.items(sizes), axis, kind="split")
    width = 1 if sizes is None else _index(call, sizes)
    if length is None or isinstance(width, fx.Node):
        return call.function(split_every, x, width, axis, keep, kind="split")
    if width < 1 or -(-length // width) > _LONGEST:
        raise Unlowerable(f"{call.operator} into pieces of {width} from an axis of {length}")
    count = -(-length // width)
    pieces = call.several(split_every, x, width, axis, keep, count=count, kind="split")
    return Listed(tuple(pieces))


@operator("SequenceMap")
def sequence_map(call: Call, sequence: Value, *others: Value) -> Output:
    graph: GraphProto = call.attributes["body"]
    if not all(isinstance(item, Listed) for item in (sequence, *others) if not _single(call, item)):
        raise Unlowerable("SequenceMap over a sequence whose length is known only at run time")
    count = len(cast(Listed, sequence).items)
    columns = [
        item.items if isinstance(item, Listed) else (item,) * count for item in (sequence, *others)
    ]
    if any(len(column) != count for column in columns):
        raise InvalidModel(f"model: {call.name!r} maps over sequences of different lengths")
    rows = [
        call.subgraphs.inline(graph, row, f"{index}.")
        for index, row in enumerate(zip(*columns, strict=True))
    ]
    if not rows:
        return [Listed(()) for _ in graph.output]
    return [Listed(tuple(items)) for items in zip(*rows, strict=True)]


def _single(call: Call, value: Value) -> bool:
    """Whether a value is known to be one tensor."""
    return not isinstance(value, Listed) and call.dtype(value) is not None


@operator("Optional")
def optional(call: Call, value: Maybe = None) -> Output:
    return [value]


@operator("OptionalHasElement")
def optional_has_element(call: Call, value: Maybe = None) -> Output:
    return torch.tensor(value is not None)


@operator("OptionalGetElement")
def optional_get_element(call: Call, value: Maybe = None) -> Output:
    if value is None:
        raise InvalidModel(f"model: {call.name!r} reads an optional value that is empty")
    return value


def _number(index: Any) -> int:
    """A Python number, or the only element of a list."""
    return int(index[0] if isinstance(index, Sequence) else index)
