"""Quantisation: to integers, and back."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx

from ..call import Call
from ..carried import carried, form_of, integer_type
from ..grid import dequantise, dynamic_scale, quantise
from ..registry import MICROSOFT, operator
from ..rows import keep_rows, range_axes
from ..values import Maybe, Output, Value, dtype_of
from .indexing import gather, take


@operator("QuantizeLinear")
@operator("QuantizeLinear", domain=MICROSOFT)
def quantize_linear(call: Call, x: Value, scale: Value, zero: Maybe = None) -> Output:
    grid = torch.uint8
    if zero is not None:
        grid = integer_type(call, zero)
    elif call.integer("output_dtype"):
        grid = dtype_of(call.integer("output_dtype"))
    precision = call.integer("precision")
    result = call.function(
        quantise,
        x,
        scale,
        zero,
        call.integer("axis", 1),
        call.integer("block_size"),
        grid,
        call.target_dtype(precision) if precision else None,
        form_of(call, x),
    )
    return carried(result, grid)


@operator("DequantizeLinear")
@operator("DequantizeLinear", domain=MICROSOFT)
def dequantize_linear(call: Call, x: Value, scale: Value, zero: Maybe = None) -> Output:
    wanted = call.integer("output_dtype")
    table = None if wanted else _table(call, x)
    if table is not None and all(_is_number(item) for item in (scale, zero)):
        numbers = call.function(dequantise, table, scale, zero, 0, 0, None)
        return gather(replace(call, attributes={}), numbers, cast(Any, x).args[1])
    return call.function(
        dequantise,
        x,
        scale,
        zero,
        call.integer("axis", 1),
        call.integer("block_size"),
        call.target_dtype(wanted) if wanted else None,
    )


def _table(call: Call, x: Value) -> Tensor | None:
    """The stored matrix of integers that a value's rows are read from."""
    if not isinstance(x, fx.Node) or x.target is not take or x.args[2] != 0:
        return None
    source = x.args[0]
    if not isinstance(source, fx.Node) or source.op != "get_attr":
        return None
    table: Tensor = call.builder.root.get_buffer(str(source.target))
    return table if table.dim() == 2 else None


def _is_number(x: Maybe) -> bool:
    return x is None or (isinstance(x, Tensor) and x.numel() == 1)


def dynamic(call: Call, x: Value) -> tuple[Value, Value, Value]:
    """A value on the integers from 0 to 255, with the scale and zero point that fit its range."""
    axes, form = range_axes(call, x), form_of(call, x)
    scale, zero = call.several(
        dynamic_scale, x, axes, call.faithful, count=2, kind="quantization_range"
    )
    for parameter in (scale, zero):
        keep_rows(parameter, axes)
    values = call.function(
        quantise, x, scale, zero, 1, 0, torch.uint8, None, form, kind="quantize_linear"
    )
    return carried(values, torch.uint8), scale, carried(zero, torch.uint8)


def as_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Whole numbers as integers; those out of range wrap around."""
    return x.to(torch.int64).to(dtype)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(call: Call, x: Value) -> Output:
    values, scale, zero = dynamic(call, x)
    if call.faithful:
        zero = call.function(as_type, zero, torch.uint8, kind="cast")
    return [values, scale, zero]
