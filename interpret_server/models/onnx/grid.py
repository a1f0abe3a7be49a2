"""Numbers on a grid of integers, or of 8-bit floats: rounded onto it, and read back.

A `form` says what integers are held as: `integers` as themselves, `numbers` as floating-point
numbers that let no gradient through the rounding, `straight_through` as floating-point numbers
whose rounding passes gradients unchanged, except where it saturates.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .values import INT2, INT4, UINT2, UINT4

_NARROW: Mapping[torch.dtype, tuple[torch.dtype, int, int]] = {
    INT4: (torch.int8, -8, 7),
    UINT4: (torch.uint8, 0, 15),
    INT2: (torch.int8, -2, 1),
    UINT2: (torch.uint8, 0, 3),
}


def stored(x: Tensor) -> Tensor:
    """Integers of less than 8 bits, one to a byte, as 8-bit integers."""
    return x.view(_NARROW[x.dtype][0]) if x.dtype in _NARROW else x


def limits(grid: torch.dtype) -> tuple[float, float]:
    """The smallest and the largest number of a type."""
    if grid in _NARROW:
        return _NARROW[grid][1:]
    known = torch.finfo(grid) if grid.is_floating_point else torch.iinfo(grid)
    return known.min, known.max


def spread(parameter: Tensor, like: Tensor, axis: int, block: int = 0) -> Tensor:
    """A scale or zero point in a shape that broadcasts to `like`.

    Args:
        parameter: a single number; one number per entry along `axis`; one per block of `block`
            entries along it; or already of the rank of `like`.
        like: what it belongs to.
        axis: of `like`.
        block: 0 for no blocks.
    """
    if parameter.numel() == 1 and parameter.dim() <= 1:
        return parameter.reshape(())
    if block and parameter.dim() == like.dim():
        length = like.shape[axis]
        if parameter.shape[axis] != math.ceil(length / block):
            raise ValueError("the blocks do not fill the axis")
        return parameter.repeat_interleave(min(block, length), axis).narrow(axis, 0, length)
    if parameter.dim() == 1:
        place = axis % like.dim()
        return parameter.reshape([-1 if i == place else 1 for i in range(like.dim())])
    return parameter


def onto_grid(values: Tensor, zero: Tensor | None, grid: torch.dtype, form: str) -> Tensor:
    """`values`, in units of the scale, rounded half to even, moved by `zero` and saturated.

    Args:
        values: floating-point numbers.
        zero: the zero point, which broadcasts to them; None for 0.
        grid: the type that is quantised to.
        form: of the result; see this module.
    """
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    lower, upper = limits(grid)
    if zero is None:
        clipped, offset = values.clamp(lower, upper), None
    else:
        offset = zero.to(values.dtype)
        clipped = torch.clamp(values, lower - offset, upper - offset)
    nearest = clipped.to(grid).to(clipped.dtype) if grid.is_floating_point else clipped.round()
    if form == "straight_through":
        nearest = clipped + (nearest - clipped).detach()
    moved = nearest if offset is None else nearest + offset
    if form == "integers":
        return moved.to(_NARROW[grid][0] if grid in _NARROW else grid)
    return moved if form == "straight_through" else moved.detach()


def quantise(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    axis: int,
    block: int,
    grid: torch.dtype,
    precision: torch.dtype | None,
    form: str,
) -> Tensor:
    """`x / scale` rounded half to even, plus `zero`, saturated.

    Args:
        x: any shape.
        scale: as `spread` takes it.
        zero: in the shape of the scale, or None.
        axis: that the scale is along.
        block: entries per scale along that axis, 0 for all.
        grid: the type that is quantised to.
        precision: that the division is done in; that of the scale where it is None.
        form: of the result; see this module.
    """
    dtype = precision or scale.dtype
    if not x.is_floating_point() and dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    values = x.to(dtype) / spread(scale, x, axis, block).to(dtype)
    offset = None if zero is None else spread(stored(zero), x, axis, block)
    return onto_grid(values, offset, grid, form)


def dequantise(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    axis: int,
    block: int,
    dtype: torch.dtype | None,
) -> Tensor:
    """`(x - zero) * scale`; arguments as `quantise`, `dtype` of the result."""
    values = stored(x)
    if zero is not None:
        offset = spread(stored(zero), values, axis, block)
        if values.is_floating_point():
            values = values.to(scale.dtype) - offset.to(scale.dtype)
        else:
            values = values.to(torch.int64) - offset.to(torch.int64)
    result = values.to(scale.dtype) * spread(scale, values, axis, block)
    return result if dtype is None else result.to(dtype)


def dynamic_scale(
    x: Tensor, axes: Sequence[int] | None, differentiable: bool
) -> tuple[Tensor, Tensor]:
    """The scale and zero point that fit 0 and all of `x` on the integers from 0 to 255.

    Args:
        x: any shape.
        axes: that the range is taken over, and which the results keep with a size of 1; None for
            all, which gives results of rank 0.
        differentiable: the scale follows the smallest and the largest number.
    """
    x = x if differentiable else x.detach()
    if axes is None:
        low, high = x.amin(), x.amax()
    else:
        low, high = x.amin(tuple(axes), keepdim=True), x.amax(tuple(axes), keepdim=True)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = torch.where(high == low, torch.ones_like(low), (high - low) / 255)
    return scale, (-low / scale).detach().clamp(0, 255).round()


def centred(x: Tensor, zero: Tensor | None, axis: int, wide: bool) -> Tensor:
    """`x - zero` as floating-point numbers; in float64 where `wide`."""
    if wide:
        x = x.double()
    elif not x.is_floating_point():
        x = x.float()
    return x if zero is None else x - spread(zero, x, axis).to(x.dtype)


def requantise(
    x: Tensor, multiplier: Tensor, zero: Tensor | None, axis: int, grid: torch.dtype, form: str
) -> Tensor:
    """A sum of integer products, times the ratio of the scales, on the grid of the result."""
    values = x.to(multiplier.dtype) * spread(multiplier, x, axis)
    return onto_grid(values, None if zero is None else zero.reshape(()), grid, form)
