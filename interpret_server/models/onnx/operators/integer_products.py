"""Matrix products and convolutions of integers.

Sums of products are exact: float32 is used where no sum can leave the integers that it holds,
float64 elsewhere.
"""

from typing import Any, cast

import torch
from torch import Tensor, fx

from ...lowered import Unlowerable
from ..call import Call
from ..carried import carried, form_of, integer_type
from ..grid import centred, limits, requantise, spread
from ..registry import MICROSOFT, operator
from ..values import Maybe, Output, Value
from .convolution import add_channels, conv
from .linear import add, matmul
from .microsoft import channels_first, channels_last
from .quantised import as_type, dynamic

_EXACT = 2**24  # float32 holds all integers up to here
_ROW, _COLUMN, _CHANNEL = -2, -1, 1


def _factors(
    call: Call,
    a: Value,
    a_zero: Maybe,
    b: Value,
    b_zero: Maybe,
    axis: int,
    bias: Maybe = None,
) -> tuple[Value, Value]:
    """Two factors less their zero points, in a type that holds their sums of products.

    Args:
        axis: of `b` that its zero point, and the sums, are along.
        bias: added to the sums.
    """
    right = call.function(centred, b, b_zero, axis, True, kind="subtract")
    wide = True
    if isinstance(right, Tensor) and right.dim() and (bias is None or isinstance(bias, Tensor)):
        lower, upper = limits(integer_type(call, a))
        kept = axis % right.dim()
        sums = right.abs().sum([i for i in range(right.dim()) if i != kept])
        largest = (upper - lower) * float(sums.max()) if sums.numel() else 0.0
        wide = largest + (0.0 if bias is None else float(bias.abs().max())) >= _EXACT
        right = right if wide else right.float()
    return call.function(centred, a, a_zero, _ROW, wide, kind="subtract"), right


def _sums(call: Call, y: Any) -> Value:
    """Sums of products as the file's int32."""
    if call.faithful or not isinstance(y, fx.Node):
        return call.function(as_type, y, torch.int32, kind="cast")
    return carried(y, torch.int32)


@operator("MatMulInteger")
def matmul_integer(
    call: Call, a: Value, b: Value, a_zero: Maybe = None, b_zero: Maybe = None
) -> Output:
    return _sums(call, _product(call, a, a_zero, b, b_zero))


def _product(call: Call, a: Value, a_zero: Maybe, b: Value, b_zero: Maybe) -> Value:
    left, right = _factors(call, a, a_zero, b, b_zero, _COLUMN)
    return cast(Value, matmul(call, left, right))


@operator("ConvInteger")
def conv_integer(
    call: Call, x: Value, weight: Value, x_zero: Maybe = None, weight_zero: Maybe = None
) -> Output:
    return _sums(call, conv(call, *_factors(call, x, x_zero, weight, weight_zero, 0)))


def single(x: Tensor) -> Tensor:
    """A scale in float32, as products of integers are scaled."""
    return x if x.dtype is torch.float64 else x.float()


def along_rows(x: Tensor) -> Tensor:
    """Numbers that belong to the rows of a matrix, in a shape that broadcasts to it."""
    return x.unsqueeze(-1) if x.dim() == 1 and x.numel() > 1 else x


def scale_ratio(a: Tensor, b: Tensor, y: Tensor | None) -> Tensor:
    """The scale of a product, over that of the result."""
    product = single(along_rows(a)) * single(b)
    return product if y is None else product / single(y)


@operator("QLinearMatMul")
def qlinear_matmul(
    call: Call,
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    y_scale: Value,
    y_zero: Value,
) -> Output:
    grid = integer_type(call, y_zero)
    ratio = call.function(scale_ratio, a_scale, b_scale, y_scale, kind="mul")
    sums = _product(call, a, a_zero, b, b_zero)
    result = call.function(
        requantise, sums, ratio, y_zero, _COLUMN, grid, form_of(call, a, b), kind="quantize_linear"
    )
    return carried(result, grid)


@operator("QLinearConv")
@operator("QLinearConv", domain=MICROSOFT)
def qlinear_conv(
    call: Call,
    x: Value,
    x_scale: Value,
    x_zero: Value,
    weight: Value,
    weight_scale: Value,
    weight_zero: Value,
    y_scale: Value,
    y_zero: Value,
    bias: Maybe = None,
) -> Output:
    grid = integer_type(call, y_zero)
    ratio = call.function(scale_ratio, x_scale, weight_scale, y_scale, kind="mul")
    last = call.integer("channels_last")
    if last:
        x = channels_first(call, x)
    left, right = _factors(call, x, x_zero, weight, weight_zero, 0, bias)
    if isinstance(bias, Tensor):
        sums = conv(call, left, right, bias.to(call.dtype(right) or torch.float64))
    else:
        sums = conv(call, left, right)
        if bias is not None:
            sums = call.function(add_channels, sums, bias, kind="add")
    result = call.function(
        requantise, sums, ratio, y_zero, _CHANNEL, grid, form_of(call, x), kind="quantize_linear"
    )
    return carried(channels_last(call, result) if last else result, grid)


@operator("QGemm", domain=MICROSOFT)
def qgemm(
    call: Call,
    a: Value,
    a_scale: Value,
    a_zero: Value,
    b: Value,
    b_scale: Value,
    b_zero: Value,
    c: Maybe = None,
    y_scale: Maybe = None,
    y_zero: Maybe = None,
) -> Output:
    if call.integer("transA"):
        a = call.function(torch.t, a, kind="transpose")
    if call.integer("transB"):
        b = call.function(torch.t, b, kind="transpose")
    ratio = call.function(scale_ratio, a_scale, b_scale, y_scale, kind="mul")
    if (alpha := call.real("alpha", 1.0)) != 1:
        ratio = call.function(torch.mul, ratio, alpha, kind="mul")
    sums = _product(call, a, a_zero, b, b_zero)
    if c is not None:
        sums = call.function(add_wide, sums, c, kind="add")
    if y_scale is None:
        return call.function(rescale, sums, ratio, None, kind="mul")
    grid = integer_type(call, y_zero)
    result = call.function(
        requantise, sums, ratio, y_zero, _COLUMN, grid, form_of(call, a, b), kind="quantize_linear"
    )
    return carried(result, grid)


def add_wide(x: Tensor, y: Tensor) -> Tensor:
    """The sum of whole numbers, in float64."""
    return x.double() + y.double()


def rescale(sums: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Sums of integer products as the numbers that they stand for, in the type of the scale."""
    y = sums.to(scale.dtype) * spread(scale, sums, _COLUMN)
    return y if bias is None else y + bias


@operator("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(
    call: Call,
    a: Value,
    b: Value,
    a_scale: Value,
    b_scale: Value,
    a_zero: Maybe = None,
    b_zero: Maybe = None,
    bias: Maybe = None,
) -> Output:
    scale = call.function(scale_ratio, a_scale, b_scale, None, kind="mul")
    return call.function(rescale, _product(call, a, a_zero, b, b_zero), scale, bias, kind="mul")


@operator("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(
    call: Call, a: Value, b: Value, b_scale: Value, b_zero: Maybe = None, bias: Maybe = None
) -> Output:
    values, a_scale, a_zero = dynamic(call, a)
    return matmul_integer_to_float(call, values, b, a_scale, b_scale, a_zero, b_zero, bias)


def unpacked(
    packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int, block: int, columns: int
) -> Tensor:
    """A weight stored in blocks of a few bits per number.

    Args:
        packed: uint8 `(N, blocks, bytes)`, the lowest bits first.
        scales: one per block, `(N, blocks)` or flat.
        zeros: packed as the weight, or floating-point numbers, one per block; the middle of the
            range where it is None.
        bits: per number.
        block: numbers per block.
        columns: of the result, `(N, columns)`.
    """
    rows, blocks = packed.shape[:2]
    values = _split(packed, bits)[..., :block].to(scales.dtype)
    if zeros is None:
        offsets = torch.full_like(scales, 2 ** (bits - 1))
    elif zeros.is_floating_point():
        offsets = zeros
    else:
        offsets = _split(zeros.reshape(rows, -1), bits)[:, :blocks]
    offsets = offsets.reshape(rows, blocks, 1).to(scales.dtype)
    weight = (values - offsets) * scales.reshape(rows, blocks, 1)
    return weight.reshape(rows, -1)[:, :columns]


def _split(packed: Tensor, bits: int) -> Tensor:
    shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.int32)
    parts: Tensor = (packed.to(torch.int32)[..., None] >> shifts) & (2**bits - 1)
    return parts.flatten(-2)


@operator("MatMulNBits", domain=MICROSOFT)
def matmul_n_bits(
    call: Call,
    a: Value,
    packed: Value,
    scales: Value,
    zeros: Maybe = None,
    groups: Maybe = None,
    bias: Maybe = None,
) -> Output:
    bits = call.integer("bits", 4)
    if groups is not None or bits not in (2, 4, 8):
        raise Unlowerable(f"MatMulNBits of {bits} bits, or with the input g_idx")
    weight = call.function(
        unpacked, packed, scales, zeros, bits, call.integer("block_size"), call.integer("K")
    )
    transposed = call.function(torch.t, weight, kind="transpose")
    product = cast(Value, matmul(call, a, transposed))
    return product if bias is None else add(call, product, bias)
