"""Operators of com.microsoft whose inputs and outputs are quantised.

Those that onnxruntime looks up in a table are the plain operator between a dequantisation and a
quantisation, which is what the table holds.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...lowered import Unlowerable
from ..call import Call
from ..carried import carried, form_of, integer_type
from ..grid import dequantise, onto_grid, quantise
from ..registry import MICROSOFT, operator
from ..values import Maybe, Output, Value
from .activation import flattened_softmax, leaky_relu, sigmoid, softmax
from .microsoft import channels_first, channels_last
from .pooling import average_pool


def _numbers(call: Call, x: Value, scale: Value, zero: Maybe) -> Value:
    return call.function(dequantise, x, scale, zero, 1, 0, None, kind="dequantize_linear")


def _quantised(call: Call, y: Any, scale: Value, zero: Maybe, x: Value) -> Value:
    grid = integer_type(call, x if zero is None else zero)
    result = call.function(
        quantise, y, scale, zero, 1, 0, grid, None, form_of(call, x), kind="quantize_linear"
    )
    return carried(result, grid)


def _between(
    call: Call,
    function: Callable[[Call, Value], Any],
    x: Value,
    x_scale: Value,
    x_zero: Maybe,
    y_scale: Value,
    y_zero: Maybe,
) -> Value:
    y = function(call, _numbers(call, x, x_scale, x_zero))
    return _quantised(call, y, y_scale, y_zero, x)


@operator("QLinearSigmoid", domain=MICROSOFT)
def qlinear_sigmoid(call: Call, *inputs: Any) -> Output:
    return _between(call, sigmoid, *inputs)


@operator("QLinearLeakyRelu", domain=MICROSOFT)
def qlinear_leaky_relu(call: Call, *inputs: Any) -> Output:
    return _between(call, leaky_relu, *inputs)


@operator("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(call: Call, *inputs: Any) -> Output:
    plain = replace(call, operator="Softmax", domain="", opset=call.integer("opset", 13))
    function = softmax if plain.opset >= 13 else flattened_softmax
    return _between(plain, function, *inputs)


@operator("QLinearAveragePool", domain=MICROSOFT)
def qlinear_average_pool(
    call: Call,
    x: Value,
    x_scale: Value,
    x_zero: Maybe,
    y_scale: Value,
    y_zero: Maybe = None,
) -> Output:
    y = _pool_channels_first(call, _numbers(call, x, x_scale, x_zero))
    grid = integer_type(call, x if y_zero is None else y_zero)
    inputs = (y, y_scale, y_zero, grid, form_of(call, x))
    return carried(call.function(quantise_moved, *inputs, kind="quantize_linear"), grid)


def quantise_moved(
    x: Tensor, scale: Tensor, zero: Tensor | None, grid: torch.dtype, form: str
) -> Tensor:
    """`x / scale + zero` rounded half to even, which for halves is not `x / scale` rounded."""
    return onto_grid(x / scale + _zero(zero, scale), None, grid, form)


def _pool_channels_first(call: Call, x: Value) -> Any:
    if not call.integer("channels_last"):
        return average_pool(call, x)
    return channels_last(call, average_pool(call, channels_first(call, x)))


@operator("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(call: Call, y_scale: Value, y_zero: Value, *inputs: Any) -> Output:
    parts = [_numbers(call, *inputs[i : i + 3]) for i in range(0, len(inputs), 3)]
    joined = call.function(torch.cat, parts, call.integer("axis", 1), kind="concat")
    form = form_of(call, *inputs)
    grid = integer_type(call, y_zero)
    result = call.function(quantise, joined, y_scale, y_zero, 1, 0, grid, None, form)
    return carried(result, grid)


@operator("QLinearWhere", domain=MICROSOFT)
def qlinear_where(
    call: Call,
    condition: Value,
    a: Value,
    a_scale: Value,
    a_zero: Maybe,
    b: Value,
    b_scale: Value,
    b_zero: Maybe,
    y_scale: Value,
    y_zero: Maybe,
) -> Output:
    numbers = _numbers(call, a, a_scale, a_zero), _numbers(call, b, b_scale, b_zero)
    chosen = call.function(torch.where, condition, *numbers, kind="where")
    return _quantised(call, chosen, y_scale, y_zero, a if form_of(call, a) != "integers" else b)


def add_quantised(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None,
    grid: torch.dtype,
    form: str,
) -> Tensor:
    """The sum of two quantised tensors, in the order of operations of onnxruntime."""
    left, right = a_scale / y_scale, b_scale / y_scale
    offset = -(left * _zero(a_zero, left) + right * _zero(b_zero, right)) + _zero(y_zero, left)
    values = a.to(left.dtype) * left + (b.to(right.dtype) * right + offset)
    return onto_grid(values, None, grid, form)


def multiply_quantised(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None,
    grid: torch.dtype,
    form: str,
) -> Tensor:
    """The product of two quantised tensors, in the order of operations of onnxruntime."""
    ratio = a_scale * b_scale / y_scale
    left = a.to(ratio.dtype) - _zero(a_zero, ratio)
    right = b.to(ratio.dtype) - _zero(b_zero, ratio)
    return onto_grid(left * right * ratio + _zero(y_zero, ratio), None, grid, form)


def _zero(zero: Tensor | None, like: Tensor) -> Tensor:
    return like.new_zeros(()) if zero is None else zero.reshape(()).to(like.dtype)


@operator("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def qlinear_arithmetic(
    call: Call,
    a: Value,
    a_scale: Value,
    a_zero: Maybe,
    b: Value,
    b_scale: Value,
    b_zero: Maybe,
    y_scale: Value,
    y_zero: Maybe = None,
) -> Output:
    function = add_quantised if call.operator == "QLinearAdd" else multiply_quantised
    inputs = (a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero)
    grid = integer_type(call, a if y_zero is None else y_zero)
    return carried(call.function(function, *inputs, grid, form_of(call, a, b)), grid)


def average_quantised(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor | None,
    y_scale: Tensor,
    y_zero: Tensor | None,
    axes: Sequence[int],
    grid: torch.dtype,
    form: str,
) -> Tensor:
    """The mean over `axes`, from an exact sum."""
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    wide = x.double()
    sums = wide.sum(tuple(axes), keepdim=True) - count * _zero(x_zero, wide)
    ratio = x_scale / (y_scale * count)
    zero = None if y_zero is None else y_zero.reshape(())
    return onto_grid(sums.to(ratio.dtype) * ratio, zero, grid, form)


@operator("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_average_pool(
    call: Call, x: Value, x_scale: Value, x_zero: Maybe, y_scale: Value, y_zero: Maybe = None
) -> Output:
    rank = call.rank(x)
    if rank is None:
        raise Unlowerable("QLinearGlobalAveragePool on a value of unknown rank")
    first = 1 if call.integer("channels_last") else 2
    axes = list(range(first, first + rank - 2))
    grid = integer_type(call, x if y_zero is None else y_zero)
    inputs = (x, x_scale, x_zero, y_scale, y_zero)
    return carried(call.function(average_quantised, *inputs, axes, grid, form_of(call, x)), grid)
