"""Operators that pick or place elements."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..call import Call
from ..registry import operator
from ..values import Maybe, Numbers, Output, Value
from .convolution import frozen


def slice_along(
    x: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Tensor:
    """Slices along some axes, with steps of either sign."""
    along = range(len(starts)) if axes is None else axes
    by = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, along, by, strict=True):
        length = x.shape[axis]
        if step < 0 and end < -length:
            picks = range(length)[start::step]
        else:
            picks = range(length)[start:end:step]
        if step > 0:
            x = x.narrow(axis, picks.start, max(picks.stop - picks.start, 0))
            x = (
                x
                if step == 1
                else x[(slice(None),) * (axis % x.dim()) + (slice(None, None, step),)]
            )
        else:
            index = torch.arange(picks.start, picks.stop, step, device=x.device)
            x = x.index_select(axis, index)
    return x


@operator("Slice")
def slice_import(
    call: Call,
    x: Value,
    starts: Maybe = None,
    ends: Maybe = None,
    axes: Maybe = None,
    steps: Maybe = None,
) -> Output:
    if starts is None or ends is None:
        arguments: list[Any] = [call.integers(name) for name in ("starts", "ends", "axes")]
        return call.function(slice_along, x, *arguments, None)
    items = (None if bound is None else call.items(bound) for bound in (starts, ends, axes, steps))
    return call.function(slice_along, x, *items)


def take(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Entries along an axis, in the shape of `index`; negative positions count from the end."""
    axis %= x.dim()
    index = torch.where(index < 0, index + x.shape[axis], index).to(torch.int64)
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def from_start(index: Tensor, length: int) -> Tensor:
    """Positions of which negative ones count from the end, as ones from the start."""
    return torch.where(index < 0, index + length, index).to(torch.int64)


@operator("Gather")
def gather(call: Call, x: Value, index: Value) -> Output:
    axis = call.integer("axis")
    if isinstance(index, Tensor) and index.dim() == 0 and isinstance(x, fx.Node):
        return call.function(torch.select, x, axis, int(index), kind="select")
    if isinstance(index, Numbers) and index.scalar:
        return call.function(torch.select, x, axis, index.items[0], kind="select")
    if _is_table(call, x, axis) and isinstance(index, fx.Node):
        table = cast(Tensor, x)
        rows, width = table.shape
        module = nn.Embedding(rows, width, device="meta")
        module.weight = frozen(table)
        places = call.function(from_start, index, rows, kind="indices")
        return call.module(module, places, kind="embedding")
    return call.function(take, x, index, axis)


def _is_table(call: Call, x: Value, axis: int) -> bool:
    """Whether rows are read from a stored table of numbers."""
    is_matrix = isinstance(x, Tensor) and x.dim() == 2
    return is_matrix and call.is_float(x) and axis in (0, -2)


def take_elements(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Elements at positions along an axis, one per element of `index`."""
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index).to(torch.int64))


@operator("GatherElements")
def gather_elements(call: Call, x: Value, index: Value) -> Output:
    return call.function(take_elements, x, index, call.integer("axis"))


def take_slices(x: Tensor, index: Tensor, batch_axes: int) -> Tensor:
    """Slices of `x` at coordinates given by the last axis of `index`."""
    depth = index.shape[-1]
    lengths = torch.tensor(x.shape[batch_axes : batch_axes + depth], device=x.device)
    index = torch.where(index < 0, index + lengths, index)
    leading = [
        torch.arange(x.shape[axis], device=x.device).reshape(
            [-1 if i == axis else 1 for i in range(index.dim() - 1)]
        )
        for axis in range(batch_axes)
    ]
    return x[(*leading, *index.unbind(-1))]


@operator("GatherND")
def gather_nd(call: Call, x: Value, index: Value) -> Output:
    return call.function(take_slices, x, index, call.integer("batch_dims"))


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def place_elements(x: Tensor, index: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    """`x` with elements replaced by, or combined with, updates."""
    index = torch.where(index < 0, index + x.shape[axis], index).to(torch.int64)
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])


@operator("ScatterElements", "Scatter")
def scatter_elements(call: Call, x: Value, index: Value, updates: Value) -> Output:
    return call.function(
        place_elements,
        x,
        index,
        updates,
        call.integer("axis"),
        call.text("reduction", "none"),
        kind="scatter",
    )


def place_slices(x: Tensor, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """`x` with slices at coordinates replaced by, or combined with, updates."""
    depth = index.shape[-1]
    rest = x.shape[depth:]
    strides = [x.shape[axis + 1 : depth].numel() for axis in range(depth)]
    lengths = torch.tensor(x.shape[:depth], device=x.device)
    index = torch.where(index < 0, index + lengths, index)
    flat = (index * torch.tensor(strides, device=x.device)).sum(-1).reshape(-1, 1)
    width = rest.numel()
    rows = x.reshape(-1, width)
    return place_elements(
        rows, flat.expand(-1, width), updates.reshape(-1, width), 0, reduction
    ).reshape(x.shape)


@operator("ScatterND")
def scatter_nd(call: Call, x: Value, index: Value, updates: Value) -> Output:
    reduction = call.text("reduction", "none")
    return call.function(place_slices, x, index, updates, reduction, kind="scatter")


def nonzero(x: Tensor) -> Tensor:
    """The coordinates of the elements that are not zero, one row per axis."""
    return x.nonzero().t()


@operator("NonZero")
def non_zero(call: Call, x: Value) -> Output:
    return call.function(nonzero, x)


def compressed(x: Tensor, condition: Tensor, axis: int | None) -> Tensor:
    """The entries along an axis (of the flattened tensor, without one) where a condition holds."""
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    return x.index_select(axis, condition.nonzero().reshape(-1))


@operator("Compress")
def compress(call: Call, x: Value, condition: Value) -> Output:
    axis = call.integer("axis") if "axis" in call.attributes else None
    return call.function(compressed, x, condition, axis)


def triangle(x: Tensor, diagonal: Sequence[int], upper: bool) -> Tensor:
    """The upper or lower triangle of matrices."""
    return x.triu(diagonal[0]) if upper else x.tril(diagonal[0])


@operator("Trilu")
def trilu(call: Call, x: Value, diagonal: Maybe = None) -> Output:
    items = [0] if diagonal is None else call.items(diagonal)
    return call.function(triangle, x, items, bool(call.integer("upper", 1)))


def identity_like(x: Tensor, diagonal: int, dtype: torch.dtype) -> Tensor:
    """Ones on a diagonal of a matrix of the shape of `x`."""
    row = torch.arange(x.shape[0], device=x.device)[:, None]
    return (torch.arange(x.shape[1], device=x.device) - row == diagonal).to(dtype)


@operator("EyeLike")
def eye_like(call: Call, x: Value) -> Output:
    dtype = call.dtype(x) or torch.float32
    if "dtype" in call.attributes:
        dtype = call.target_dtype(call.integer("dtype"))
    return call.function(identity_like, x, call.integer("k"), dtype)


def one_hot(index: Tensor, depth: Sequence[float], values: Tensor, axis: int) -> Tensor:
    """`values[1]` at the position that `index` names along a new axis, else `values[0]`."""
    count = int(depth[0])
    axis %= index.dim() + 1
    wanted = torch.where(index < 0, index + count, index).unsqueeze(axis)
    shape = [-1 if i == axis else 1 for i in range(index.dim() + 1)]
    hot = wanted == torch.arange(count, device=index.device).reshape(shape)
    return torch.where(hot, values[1], values[0])


@operator("OneHot")
def one_hot_import(call: Call, index: Value, depth: Value, values: Value) -> Output:
    return call.function(one_hot, index, call.items(depth), values, call.integer("axis", -1))


def sample(x: Tensor, grid: Tensor, mode: str, padding: str, corners: bool) -> Tensor:
    """`x` read at the positions of a grid."""
    return F.grid_sample(x, grid, mode, padding, corners)


_SAMPLING = {"linear": "bilinear", "cubic": "bicubic"}


@operator("GridSample")
def grid_sample(call: Call, x: Value, grid: Value) -> Output:
    mode = call.text("mode", "bilinear")
    return call.function(
        sample,
        x,
        grid,
        _SAMPLING.get(mode, mode),
        call.text("padding_mode", "zeros"),
        bool(call.integer("align_corners")),
    )


def reverse_sequence(x: Tensor, lengths: Tensor, time_axis: int, batch_axis: int) -> Tensor:
    """`x` with the first `lengths[i]` steps of each row in reverse order.

    Args:
        lengths: `(N,)`, or `(1,)` for all rows.
    """
    x = x.movedim((time_axis, batch_axis), (0, 1))
    steps = torch.arange(x.shape[0], device=x.device)[:, None]
    ends = lengths.to(torch.int64).clamp(0, x.shape[0])[None]
    index = torch.where(steps < ends, ends - 1 - steps, steps)
    rows = torch.arange(x.shape[1], device=x.device)[None]
    return x[index, rows].movedim((0, 1), (time_axis, batch_axis))


@operator("ReverseSequence")
def reverse_sequence_import(call: Call, x: Value, lengths: Value) -> Output:
    axes = call.integer("time_axis", 0), call.integer("batch_axis", 1)
    return call.function(reverse_sequence, x, lengths, *axes)
