"""Makes a batch size that a file fixes free, where shapes prove which axis is the batch."""

from collections.abc import Sequence

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
    axis = _batch_axis(builder, x)
    both = builder.examples(x)
    if axis is None or both is None or any(isinstance(item, fx.Node) for item in sizes):
        return sizes
    if zeros and axis < len(sizes) and sizes[axis] == 0:
        return sizes
    known = [int(item) for item in sizes if not isinstance(item, fx.Node)]
    if zeros:
        known = [both[0].shape[i] if length == 0 else length for i, length in enumerate(known)]
    place = _place(known, both[0].shape[:axis].numel(), builder.fixed_batch or 1)
    if place is None or known[place] == -1:
        return sizes
    freed: list[Number] = list(known)
    if -1 not in known:
        freed[place] = -1
    elif known[place] == builder.fixed_batch and isinstance(x, fx.Node):
        freed[place] = builder.number(size, x, axis)
    else:
        return sizes
    builder.freed = True
    return freed


def _place(sizes: Sequence[int], before: int, batch: int) -> int | None:
    """Which size of a shape holds the batch, where `before` elements stand before its axis."""
    done = 1
    for place, length in enumerate(sizes):
        if length == -1:
            return place
        if done <= before < done * length or (done == before and length == batch):
            return place
        done *= length
    return None


def free_expand(builder: Builder, x: Value, sizes: list[Number]) -> list[Number]:
    """The sizes of an Expand, without the fixed batch where the input has the batch itself."""
    axis, both = _batch_axis(builder, x), builder.examples(x)
    if axis is None or both is None:
        return sizes
    place = axis + len(sizes) - both[0].dim()
    if place < 0 or sizes[place] != builder.fixed_batch:
        return sizes
    builder.freed = True
    return [*sizes[:place], 1, *sizes[place + 1 :]]


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
