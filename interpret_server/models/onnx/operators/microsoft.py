"""Operators of com.microsoft that fuse a product, a bias or an activation."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...lowered import Unlowerable
from ..call import Call
from ..registry import MICROSOFT, find, operator
from ..values import Maybe, Output, Value
from .activation import softmax, swish_with
from .convolution import conv
from .linear import add, gemm, matmul
from .pooling import max_pool

_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {  # with the attributes that parameters stand for
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": ("alpha",),
    "Clip": ("min", "max"),
    "HardSigmoid": ("alpha", "beta"),
}


def plain(call: Call, name: str, **attributes: Any) -> Call:
    """The same node as an operator of the default domain."""
    return replace(call, operator=name, domain="", opset=13, attributes=attributes)


def _biased(call: Call, x: Value, bias: Maybe) -> Any:
    return x if bias is None else add(plain(call, "Add"), x, bias)


def _activated(call: Call, x: Output, parameters: Mapping[str, Any] | list[float]) -> Output:
    name = call.text("activation", "")
    if not name:
        return x
    if name not in _ACTIVATIONS:
        raise Unlowerable(f"{call.operator} with the activation {name}")
    if not isinstance(parameters, Mapping):
        parameters = dict(zip(_ACTIVATIONS[name], parameters, strict=False))
    function = find("", name, 10)
    assert function is not None
    return function(replace(plain(call, name, **parameters), opset=10), x)


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(call: Call, x: Value, bias: Maybe = None) -> Output:
    return call.module(nn.GELU("tanh"), _biased(call, x, bias), kind="gelu")


@operator("BiasGelu", domain=MICROSOFT)
def bias_gelu(call: Call, x: Value, bias: Value) -> Output:
    return call.module(nn.GELU(), _biased(call, x, bias), kind="gelu")


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(call: Call, x: Value) -> Output:
    alpha = call.real("alpha", 1.702)
    if alpha == 1:
        return call.module(nn.SiLU(), x, kind="silu")
    return call.function(swish_with, x, alpha, kind="gelu")


@operator("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(call: Call, x: Value, bias: Value) -> Output:
    halves = call.several(torch.chunk, _biased(call, x, bias), 2, -1, count=2, kind="split")
    return call.function(torch.mul, halves[0], call.module(nn.GELU(), halves[1], kind="gelu"))


@operator("BiasAdd", domain=MICROSOFT)
def bias_add(call: Call, x: Value, bias: Value, skip: Value) -> Output:
    return call.function(torch.add, _biased(call, x, bias), skip, kind="add")


@operator("BiasDropout", domain=MICROSOFT)
def bias_dropout(
    call: Call,
    x: Value,
    bias: Value,
    residual: Maybe = None,
    ratio: Maybe = None,
    training: Maybe = None,
) -> Output:
    """As for inference, whatever the file asks for."""
    y = _biased(call, x, bias)
    if residual is not None:
        y = call.function(torch.add, y, residual, kind="add")
    return [y, None]


@operator("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(call: Call, x: Value, bias: Value) -> Output:
    rank, of_bias = call.rank(x), call.rank(bias)
    axis = call.integer("axis", 1)
    if rank is None or of_bias is None or axis % rank != rank - 1:
        raise Unlowerable("BiasSoftmax over several axes, or of an unknown rank")
    if not call.integer("is_inner_broadcast", 1) and of_bias != rank:
        raise Unlowerable("BiasSoftmax with a bias that repeats along the outer axes")
    y = call.function(torch.add, x, bias, kind="add")
    return softmax(plain(call, "Softmax", axis=-1), y)


@operator("Inverse", domain=MICROSOFT)
def inverse(call: Call, x: Value) -> Output:
    return call.function(torch.linalg.inv, x)


def transposed(x: Tensor, batch: bool, last: bool) -> Tensor:
    """`x` with its last two axes swapped, after its first axis moved before the last one."""
    if batch:
        x = x.movedim(0, -2)
    return x.transpose(-1, -2) if last else x


@operator("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(call: Call, a: Value, b: Value) -> Output:
    factors = []
    for x, side in ((a, "A"), (b, "B")):
        batch, last = call.integer(f"transBatch{side}"), call.integer(f"trans{side}")
        rank = call.rank(x)
        if rank is not None and rank > 1 and (batch or last):
            x = call.function(transposed, x, bool(batch), bool(last), kind="transpose")
        factors.append(x)
    alpha = call.real("alpha", 1.0)
    if alpha != 1 and isinstance(factors[1], Tensor):
        factors[1], alpha = factors[1] * alpha, 1.0
    product: Any = matmul(plain(call, "MatMul"), factors[0], factors[1])
    return product if alpha == 1 else call.function(torch.mul, product, alpha, kind="mul")


@operator("FusedGemm", domain=MICROSOFT)
def fused_gemm(call: Call, a: Value, b: Value, c: Maybe = None) -> Output:
    names = {key: f"activation_{key}" for key in ("alpha", "beta", "gamma")}
    given = {key: call.attributes[name] for key, name in names.items() if name in call.attributes}
    own = {key: value for key, value in call.attributes.items() if key not in names.values()}
    return _activated(call, gemm(plain(call, "Gemm", **own), a, b, c), given)


@operator("FusedConv", domain=MICROSOFT)
def fused_conv(
    call: Call, x: Value, weight: Value, bias: Maybe = None, addend: Maybe = None
) -> Output:
    y: Any = conv(call, x, weight, bias)
    if addend is not None:
        y = call.function(torch.add, y, addend, kind="add")
    return _activated(call, y, call.attributes.get("activation_params", []))


def channels_first(call: Call, x: Any) -> Value:
    """Images `(N, ..., C)` as `(N, C, ...)`."""
    return call.function(torch.movedim, x, -1, 1, kind="transpose")


def channels_last(call: Call, x: Any) -> Value:
    """Images `(N, C, ...)` as `(N, ..., C)`."""
    return call.function(torch.movedim, x, 1, -1, kind="transpose")


@operator("NhwcConv", domain=MICROSOFT)
def channels_last_conv(call: Call, x: Value, weight: Value, bias: Maybe = None) -> Output:
    y = conv(call, channels_first(call, x), channels_first(call, weight), bias)
    return channels_last(call, y)


@operator("NhwcMaxPool", domain=MICROSOFT)
def channels_last_max_pool(call: Call, x: Value) -> Output:
    y = max_pool(call, channels_first(call, x))
    return channels_last(call, y[0] if isinstance(y, list) else y)
