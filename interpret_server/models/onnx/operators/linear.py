"""Matrix products."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from ..call import Call
from ..registry import operator
from ..values import Maybe, Output, Value
from .convolution import frozen
from .elementwise import aligned


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    module.weight = frozen(weight)
    if bias is not None:
        module.bias = frozen(bias)
    return module


@operator("MatMul")
def matmul(call: Call, a: Value, b: Value) -> Output:
    fits = (call.rank(a) or 0) >= 2 and call.is_float(a) and call.dtype(a) == call.dtype(b)
    if fits and isinstance(b, Tensor) and b.dim() == 2 and isinstance(a, fx.Node):
        return call.module(_linear(b.t().contiguous(), None), a, kind="linear")
    return call.function(torch.matmul, a, b)


@operator("Add")
def add(call: Call, a: Value, b: Value) -> Output:
    """Addition; of a constant to a linear layer, the layer's bias."""
    for product, bias in ((a, b), (b, a)):
        module = _bare_linear(call, product)
        row = _row(call, bias, product)
        if module is not None and row is not None and isinstance(product, fx.Node):
            source = product.args[0]
            assert isinstance(source, fx.Node)
            return call.module(_linear(module.weight, row), source, kind="linear")
    return call.function(torch.add, a, aligned(call, a, b))


def _bare_linear(call: Call, product: Value) -> nn.Linear | None:
    if not isinstance(product, fx.Node) or product.op != "call_module" or product.users:
        return None
    module = call.builder.root.get_submodule(str(product.target))
    return module if isinstance(module, nn.Linear) and module.bias is None else None


def _row(call: Call, bias: Value, product: Value) -> Tensor | None:
    shape = call.shape(product)
    if not isinstance(bias, Tensor) or not shape or bias.dim() > len(shape) or not bias.dim():
        return None
    return bias.reshape(-1) if bias.numel() == bias.shape[-1] == shape[-1] else None


@operator("Gemm")
def gemm(call: Call, a: Value, b: Value, c: Maybe = None) -> Output:
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
    if call.integer("transA"):
        a = call.function(torch.t, a, kind="transpose")
    weight = b if call.integer("transB") else call.function(torch.t, b, kind="transpose")
    row = _bias(c, weight, beta)
    if isinstance(weight, Tensor) and isinstance(a, fx.Node) and (c is None or row is not None):
        scaled = weight if alpha == 1 else weight * alpha
        if scaled.dtype.is_floating_point and scaled.dtype == call.dtype(a):
            return call.module(_linear(scaled.contiguous(), row), a, kind="linear")
    return call.function(general_product, a, weight, c, alpha, beta)


def _bias(c: Maybe, weight: Value, beta: float) -> Tensor | None:
    if not isinstance(c, Tensor) or not isinstance(weight, Tensor):
        return None
    width = weight.shape[0]
    if c.numel() not in (1, width) or (c.dim() and c.shape[-1] not in (1, width)):
        return None
    if c.numel() != 1 and c.shape[-1] != width:
        return None
    row = c.reshape(-1).expand(width).contiguous()
    return row if beta == 1 else row * beta


def general_product(
    a: Tensor, weight: Tensor, c: Tensor | None, alpha: float, beta: float
) -> Tensor:
    """`alpha * a @ weight.T + beta * c`, in the type of `a`."""
    y = a @ weight.t()
    if alpha != 1:
        y = (alpha * y).to(a.dtype)
    if c is None:
        return y
    return y + (c if beta == 1 else (beta * c).to(a.dtype))


def contract(equation: str, *operands: Tensor) -> Tensor:
    """A sum of products over named indices."""
    return torch.einsum(equation, *operands)


@operator("Einsum")
def einsum(call: Call, *operands: Any) -> Output:
    return call.function(contract, call.text("equation", "").replace(" ", ""), *operands)
