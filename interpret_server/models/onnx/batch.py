"""Makes a batch size that a file fixes free, where shapes prove which axis is the batch."""

import itertools
import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from .builder import Builder, size
from .call import Call
from .values import Number, Value


def _batch_axis(builder: Builder, x: Value) -> int | None:
    both = builder.examples(x)
    if builder.fixed_batch is None or both is None or both[0].dim() != both[1].dim():
        return None
    varying = [
        axis for axis, (a, b) in enumerate(zip(both[0].shape, both[1].shape, strict=True)) if a != b
    ]
    return varying[0] if len(varying) == 1 else None


def free_reshape(builder: Builder, x: Value, sizes: list[Number], zeros: bool) -> list[Number]:
    """The sizes of a Reshape, with the one that holds the fixed batch made to follow the input."""
    axis, both, batch = _batch_axis(builder, x), builder.examples(x), builder.fixed_batch
    if axis is None or both is None or batch is None or not isinstance(x, fx.Node):
        return sizes
    if any(isinstance(item, fx.Node) for item in sizes) or (
        zeros and sizes[axis : axis + 1] == [0]
    ):
        return sizes
    shape = both[0].shape
    known = [int(item) for item in sizes if not isinstance(item, fx.Node)]
    if zeros:
        known = [shape[i] if length == 0 else length for i, length in enumerate(known)]
    rest = math.prod(length for length in known if length != -1)
    full = [shape.numel() * batch // rest if length == -1 else length for length in known]
    place = _place(full, shape, axis, batch)
    if place is None or known[place] == -1:
        return sizes
    freed: list[Number] = list(known)
    if -1 not in known:
        freed[place] = -1
    elif known[place] == batch and shape[axis] == 1:
        freed[place] = builder.number(size, x, axis)
    else:
        return sizes
    builder.freed = True
    return freed


def _place(sizes: Sequence[int], shape: torch.Size, axis: int, batch: int) -> int | None:
    """Which size of a Reshape holds the batch, which lies within `axis` of `shape`.

    Of the sizes that share elements with that axis, or touch it, the one that is the batch alone;
    else the one to the left where axes are merged, and to the right where one is split.
    """
    first = shape[:axis].numel()
    last = first * shape[axis] * batch
    ends = list(itertools.accumulate(sizes, operator.mul))
    starts = [1, *ends[:-1]]
    places = [
        place
        for place, (start, end) in enumerate(zip(starts, ends, strict=True))
        if start <= last and end >= first
    ]
    inside = [place for place in places if starts[place] < last and ends[place] > first]
    alone = [place for place in places if sizes[place] == batch]
    if not places:
        return None
    if alone:
        return alone[0]
    if inside:
        return inside[0]
    return places[0] if len(sizes) < len(shape) else places[-1]


def free_expand(builder: Builder, x: Value, sizes: list[Number]) -> tuple[Value, list[Number]]:
    """The input and sizes of an Expand without the fixed batch.

    It leaves the sizes where the input has the batch itself, and a constant input where its rows
    are alike and the sizes follow the batch.
    """
    if isinstance(x, Tensor):
        return _one_row(builder, x, sizes), sizes
    axis, both = _batch_axis(builder, x), builder.examples(x)
    if axis is None or both is None:
        return x, sizes
    place = axis + len(sizes) - both[0].dim()
    if place < 0 or sizes[place] != builder.fixed_batch:
        return x, sizes
    builder.freed = True
    return x, [*sizes[:place], 1, *sizes[place + 1 :]]


def _one_row(builder: Builder, x: Tensor, sizes: Sequence[Number]) -> Tensor:
    for axis, item in enumerate(sizes, start=x.dim() - len(sizes)):
        follows = isinstance(item, fx.Node) and item.meta.get("examples") == builder.batches
        fixed = builder.fixed_batch is not None and follows and axis >= 0
        if not fixed or x.shape[axis] != builder.fixed_batch:
            continue
        row = x.narrow(axis, 0, 1)
        if bool((x == row).all()):
            builder.freed = True
            return row
    return x


def repeat_rows(x: Tensor, axis: int, count: int) -> Tensor:
    """`x` with its sole entry along an axis repeated."""
    return x.expand(*(count if i == axis else -1 for i in range(x.dim())))


def free_concat(call: Call, values: Sequence[Value], along: int) -> Sequence[Value]:
    """The inputs of a Concat, those that have the fixed batch of 1 repeated to the others' size."""
    builder = call.builder
    found = [(x, axis) for x in values if (axis := _batch_axis(builder, x)) is not None]
    if not found or builder.fixed_batch != 1:
        return values
    source, axis = found[0]
    rank = call.rank(source)
    if rank is None or along % rank == axis or not isinstance(source, fx.Node):
        return values
    count = builder.number(size, source, axis)
    freed = []
    for x in values:
        shape = call.shape(x)
        if shape is not None and len(shape) == rank and shape[axis] == 1:
            x = call.function(repeat_rows, x, axis, count, kind="expand")
            builder.freed = True
        freed.append(x)
    return freed
