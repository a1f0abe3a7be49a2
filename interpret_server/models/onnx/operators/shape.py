"""Operators that change a tensor's shape or ask for it."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ...lowered import Unlowerable
from ..batch import free_concat, free_expand, free_reshape
from ..builder import full_size
from ..call import Call
from ..registry import operator
from ..values import Maybe, Output, Value


def shape_tensor(x: Tensor, start: int, end: int | None) -> Tensor:
    """The sizes of some axes, as a tensor."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


@operator("Shape")
def shape(call: Call, x: Value) -> Output:
    start = call.integer("start")
    end = call.integer("end") if "end" in call.attributes else None
    sizes = call.builder.sizes(x)
    if sizes is None:
        return call.function(shape_tensor, x, start, end)
    return call.numbers(sizes[start:end], False, torch.int64)


@operator("Size")
def count(call: Call, x: Value) -> Output:
    sizes = call.builder.sizes(x)
    if sizes is not None and not any(isinstance(length, fx.Node) for length in sizes):
        return call.numbers([math.prod(map(int, sizes))], True, torch.int64)  # type: ignore[arg-type]
    return call.numbers([call.builder.number(torch.numel, x)], True, torch.int64)


def reshape_with_zeros(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """`x` in another shape; a size of 0 stands for the input's."""
    return x.reshape([x.shape[i] if length == 0 else length for i, length in enumerate(sizes)])


@operator("Reshape")
def reshape(call: Call, x: Value, sizes: Maybe = None) -> Output:
    wanted = [*(call.integers("shape") or ())] if sizes is None else call.items(sizes)
    zeros = not call.integer("allowzero")
    if isinstance(wanted, list):
        wanted = free_reshape(call.builder, x, wanted, zeros)
        if not (zeros and 0 in wanted):
            return call.function(torch.reshape, x, wanted)
    function = reshape_with_zeros if zeros else torch.reshape
    return call.function(function, x, wanted)


def flatten_at(x: Tensor, axis: int) -> Tensor:
    """`x` as a matrix whose rows are the axes before `axis`."""
    rows = math.prod(x.shape[:axis])
    return x.reshape(rows, math.prod(x.shape[axis:]))


@operator("Flatten")
def flatten(call: Call, x: Value) -> Output:
    axis, rank = call.integer("axis", 1), call.rank(x)
    if rank is not None and axis < 0:
        axis += rank
    if axis == 1 and rank is not None and rank >= 2:
        return call.module(nn.Flatten(), x)
    return call.function(flatten_at, x, axis)


def reverse_axes(x: Tensor) -> Tensor:
    """`x` with its axes in reverse order."""
    return x.permute(tuple(reversed(range(x.dim()))))


@operator("Transpose")
def transpose(call: Call, x: Value) -> Output:
    order = call.integers("perm")
    if not order:
        return call.function(reverse_axes, x)
    return call.function(torch.permute, x, tuple(order))


@operator("Squeeze")
def squeeze(call: Call, x: Value, axes: Maybe = None) -> Output:
    along = call.integers("axes") if axes is None else call.items(axes)
    if along is None:
        known = call.shape(x)
        if known is None:
            return call.function(torch.squeeze, x)
        along = [axis for axis, length in enumerate(known) if length == 1]
    if isinstance(along, list):
        return call.function(torch.squeeze, x, tuple(along))
    return call.function(squeeze_at, x, along)


def squeeze_at(x: Tensor, axes: Sequence[int]) -> Tensor:
    """`x` without some axes of size 1."""
    return x.squeeze(tuple(axes))


def unsqueeze_at(x: Tensor, axes: Sequence[int]) -> Tensor:
    """`x` with axes of size 1 at some places of the result."""
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Unsqueeze")
def unsqueeze(call: Call, x: Value, axes: Maybe = None) -> Output:
    along = call.integers("axes") if axes is None else call.items(axes)
    if isinstance(along, list) and len(along) == 1:
        return call.function(torch.unsqueeze, x, along[0])
    return call.function(unsqueeze_at, x, along)


@operator("Concat")
def concat(call: Call, *values: Value) -> Output:
    axis = call.integer("axis", 1)
    return call.function(torch.cat, list(free_concat(call, values, axis)), axis, kind="cat")


def split_evenly(x: Tensor, parts: int, axis: int) -> list[Tensor]:
    """`parts` pieces, the last one smaller where the size does not divide."""
    width = -(-x.shape[axis] // parts)
    rest = [max(min(width, x.shape[axis] - i * width), 0) for i in range(parts)]
    return list(torch.split(x, rest, axis))


def split_by(x: Tensor, sizes: Sequence[int], axis: int) -> list[Tensor]:
    """Pieces of given sizes."""
    return list(torch.split(x, list(sizes), axis))


@operator("Split")
def split(call: Call, x: Value, sizes: Maybe = None) -> Output:
    axis, parts = call.integer("axis"), len(call.outputs)
    given = call.integers("split") if sizes is None else call.items(sizes)
    if given is None:
        parts = call.integer("num_outputs", parts)
        return call.several(split_evenly, x, parts, axis, count=parts)
    return call.several(split_by, x, given, axis, count=parts)


def expand_to(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """`x` broadcast against a shape."""
    rank = max(x.dim(), len(sizes))
    own = (*(1,) * (rank - x.dim()), *x.shape)
    wanted = (*(1,) * (rank - len(sizes)), *sizes)
    return x.expand([a if b == 1 else b for a, b in zip(own, wanted, strict=True)])


@operator("Expand")
def expand(call: Call, x: Value, sizes: Value) -> Output:
    wanted = call.items(sizes)
    if isinstance(wanted, list):
        x, wanted = free_expand(call.builder, x, wanted)
    return call.function(expand_to, x, wanted)


def tile_by(x: Tensor, repeats: Sequence[int]) -> Tensor:
    """`x` repeated along each axis."""
    return x.repeat(*repeats)


@operator("Tile")
def tile(call: Call, x: Value, repeats: Value) -> Output:
    return call.function(tile_by, x, call.items(repeats))


def filled(sizes: Sequence[int], value: float, dtype: torch.dtype, like: Tensor) -> Tensor:
    """A tensor of one value on the device of `like`."""
    return torch.full(tuple(sizes), value, dtype=dtype, device=like.device)


@operator("ConstantOfShape")
def constant_of_shape(call: Call, sizes: Value) -> Output:
    fill = call.attributes.get("value", torch.zeros(1))
    wanted = call.items(sizes)
    value, dtype = fill.reshape(-1)[0].item(), fill.dtype
    if isinstance(wanted, fx.Node) or any(isinstance(item, fx.Node) for item in wanted):
        return call.function(filled, wanted, value, dtype, call.builder.anchor, kind="constant")
    call.builder.claim(full_size(wanted, dtype) or 0)
    lengths = [int(item) for item in wanted if not isinstance(item, fx.Node)]
    return torch.full(lengths, value, dtype=dtype)


def steps(
    start: Sequence[float],
    end: Sequence[float],
    step: Sequence[float],
    dtype: torch.dtype,
    like: Tensor,
) -> Tensor:
    """Numbers from `start` to before `end` on the device of `like`."""
    length = max(math.ceil((end[0] - start[0]) / step[0]), 0)
    return torch.arange(length, device=like.device).to(dtype) * step[0] + start[0]


@operator("Range")
def numbers(call: Call, start: Value, end: Value, step: Value) -> Output:
    dtype = call.dtype(start) or torch.int64
    items = [call.items(bound) for bound in (start, end, step)]
    known = [item[0] for item in items if isinstance(item, list)]
    if len(known) < 3 or any(isinstance(item, fx.Node) for item in known):
        like = call.builder.anchor
        values: Value = call.function(steps, *items, dtype, like, kind="constant")
        return values
    first, last, by = (float(item) for item in known if not isinstance(item, fx.Node))
    if by == 0:
        raise Unlowerable("Range with a step of 0")
    length = max(math.ceil((last - first) / by), 0)
    call.builder.claim(length * 8)
    return (torch.arange(length).to(dtype) * cast(float, known[2]) + cast(float, known[0])).to(
        dtype
    )


_VALUES: dict[str, torch.dtype] = {
    "value_float": torch.float32,
    "value_floats": torch.float32,
    "value_int": torch.int64,
    "value_ints": torch.int64,
}


@operator("Constant")
def constant(call: Call) -> Output:
    for name, value in call.attributes.items():
        if name == "value":
            tensor: Tensor = value
            return tensor
        if name in _VALUES:
            return torch.tensor(value, dtype=_VALUES[name])
    raise Unlowerable(f"Constant with {', '.join(call.attributes) or 'no value'}")


def depth_to_space(x: Tensor, block: int, depth_first: bool) -> Tensor:
    """Channels rearranged into `block` x `block` squares of pixels."""
    n, c, h, w = x.shape
    inner = c // block**2
    if depth_first:
        x = x.reshape(n, block, block, inner, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, inner, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, inner, h * block, w * block)


@operator("DepthToSpace")
def depth_to_space_import(call: Call, x: Value) -> Output:
    depth_first = call.text("mode", "DCR") == "DCR"
    return call.function(depth_to_space, x, call.integer("blocksize", 1), depth_first)


def space_to_depth(x: Tensor, block: int, depth_first: bool) -> Tensor:
    """Squares of `block` x `block` pixels rearranged into channels."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block)
    order: tuple[int, ...] = (0, 3, 5, 1, 2, 4) if depth_first else (0, 1, 3, 5, 2, 4)
    return x.permute(order).reshape(n, c * block**2, h // block, w // block)


@operator("SpaceToDepth")
def space_to_depth_import(call: Call, x: Value) -> Output:
    depth_first = call.text("mode", "DCR") == "DCR"
    return call.function(space_to_depth, x, call.integer("blocksize", 1), depth_first)


def pad_with(
    x: Tensor, pads: Sequence[int], axes: Sequence[int] | None, mode: str, value: Any
) -> Tensor:
    """Padding before and after some axes; negative padding crops."""
    along = range(len(pads) // 2) if axes is None else [axis % x.dim() for axis in axes]
    pairs = list(zip(along, pads[: len(along)], pads[len(along) :], strict=True))
    if mode == "constant":
        sides = [0] * 2 * x.dim()
        for axis, before, after in pairs:
            position = 2 * (x.dim() - 1 - axis)
            sides[position : position + 2] = before, after
        return torch.nn.functional.pad(x, sides, value=value[0])
    for axis, before, after in pairs:
        length = x.shape[axis]
        index = torch.arange(-before, length + after, device=x.device)
        if mode == "edge":
            index = index.clamp(0, length - 1)
        elif mode == "wrap":
            index = index % length
        else:
            period = max(2 * length - 2, 1)
            index = (length - 1) - (index % period - (length - 1)).abs()
        x = x.index_select(axis, index)
    return x


@operator("Pad")
def pad(
    call: Call, x: Value, pads: Maybe = None, value: Maybe = None, axes: Maybe = None
) -> Output:
    given = call.integers("pads") or call.integers("paddings")
    sides = (given or []) if pads is None else call.items(pads)
    fill = [call.real("value", 0.0)] if value is None else call.items(value)
    along = None if axes is None else call.items(axes)
    return call.function(pad_with, x, sides, along, call.text("mode", "constant"), fill)
