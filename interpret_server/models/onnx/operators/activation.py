"""Activations, each a module of its own."""

import math

import torch
from torch import Tensor, nn

from ..call import Call
from ..masking import is_masked, masked_again, may_be_masked, unmasked
from ..registry import operator
from ..values import HALF, Output, Value

_SELU_ALPHA = 1.6732631921768188
_SELU_GAMMA = 1.0507010221481323


@operator("Relu")
def relu(call: Call, x: Value) -> Output:
    return call.module(nn.ReLU(), x)


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Value) -> Output:
    return call.module(nn.LeakyReLU(call.real("alpha", 0.01)), x)


def parametric(x: Tensor, slope: Tensor) -> Tensor:
    """`x` where it is not negative, else `slope * x`."""
    return torch.where(x < 0, x * slope, x)


def channel_slope(x: Tensor, slope: Tensor) -> Tensor:
    """A vector of slopes, one per channel, as it multiplies `x`."""
    return slope.reshape(-1, *[1] * (x.dim() - 2))


@operator("PRelu")
def prelu(call: Call, x: Value, slope: Value) -> Output:
    shape, of_slope = call.shape(x), call.shape(slope)
    if shape is None or of_slope is None or len(shape) < 2:
        return call.function(parametric, x, slope, kind="prelu")
    single = len(of_slope) == 1 and of_slope != (1,)
    if call.opset < 7 and single and isinstance(slope, Tensor):
        slope = slope.reshape(-1, *(1,) * (len(shape) - 2))
        of_slope = tuple(slope.shape)
    elif call.opset < 7 and single:
        slope = call.function(channel_slope, x, slope, kind="reshape")
        of_slope = call.shape(slope) or of_slope
    channels = math.prod(length or 0 for length in of_slope)
    position = len(shape) - len(of_slope)
    per_channel = (
        position <= 1 and of_slope[1 - position] == channels == shape[1]
        if len(of_slope) >= len(shape) - 1
        else False
    )
    if isinstance(slope, Tensor) and (channels == 1 or per_channel):
        module = nn.PReLU(channels, device="meta")
        module.weight = nn.Parameter(slope.reshape(-1), requires_grad=False)
        return call.module(module, x, kind="prelu")
    return call.function(parametric, x, slope, kind="prelu")


@operator("Elu")
def elu(call: Call, x: Value) -> Output:
    return call.module(nn.ELU(call.real("alpha", 1.0)), x)


@operator("Celu")
def celu(call: Call, x: Value) -> Output:
    return call.module(nn.CELU(call.real("alpha", 1.0)), x)


class ScaledElu(nn.Module):
    """`gamma * elu(x, alpha)`."""

    def __init__(self, alpha: float, gamma: float) -> None:
        super().__init__()
        self.alpha, self.gamma = alpha, gamma

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * nn.functional.elu(x, self.alpha)


@operator("Selu")
def selu(call: Call, x: Value) -> Output:
    alpha, gamma = call.real("alpha", _SELU_ALPHA), call.real("gamma", _SELU_GAMMA)
    usual = math.isclose(alpha, _SELU_ALPHA, rel_tol=1e-6) and math.isclose(
        gamma, _SELU_GAMMA, rel_tol=1e-6
    )
    if usual and call.dtype(x) is not torch.float64:  # there, the file's own rounding shows
        return call.module(nn.SELU(), x)
    return call.module(ScaledElu(alpha, gamma), x, kind="selu")


@operator("Gelu")
@operator("Gelu", domain="com.microsoft")
def gelu(call: Call, x: Value) -> Output:
    return call.module(nn.GELU(call.text("approximate", "none")), x)


@operator("Sigmoid")
def sigmoid(call: Call, x: Value) -> Output:
    return call.module(nn.Sigmoid(), x)


@operator("Tanh")
def tanh(call: Call, x: Value) -> Output:
    return call.module(nn.Tanh(), x)


@operator("Softplus")
def softplus(call: Call, x: Value) -> Output:
    return call.module(nn.Softplus(threshold=40.0), x)


@operator("Softsign")
def softsign(call: Call, x: Value) -> Output:
    return call.module(nn.Softsign(), x)


@operator("Mish")
def mish(call: Call, x: Value) -> Output:
    return call.module(nn.Mish(), x)


def swish_with(x: Tensor, alpha: float) -> Tensor:
    """`x * sigmoid(alpha * x)`."""
    return x * torch.sigmoid(alpha * x)


@operator("Swish")
def swish(call: Call, x: Value) -> Output:
    if (alpha := call.real("alpha", 1.0)) == 1:
        return call.module(nn.SiLU(), x, kind="silu")
    return call.function(swish_with, x, alpha, kind="silu")


@operator("ThresholdedRelu")
def thresholded_relu(call: Call, x: Value) -> Output:
    return call.module(nn.Threshold(call.real("alpha", 1.0), 0.0), x, kind="threshold")


def linear_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`alpha * x + beta`, clipped to [0, 1]."""
    return (alpha * x + beta).clamp(0, 1)


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Value) -> Output:
    alpha, beta = call.real("alpha", 0.2), call.real("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return call.module(nn.Hardsigmoid(), x, kind="hardsigmoid")
    return call.function(linear_sigmoid, x, alpha, beta, kind="hardsigmoid")


@operator("HardSwish")
def hard_swish(call: Call, x: Value) -> Output:
    return call.module(nn.Hardswish(), x, kind="hardswish")


def shrunk(x: Tensor, bias: float, limit: float) -> Tensor:
    """`x` moved by `bias` towards 0 outside `[-limit, limit]`, and 0 inside."""
    below = torch.where(x < -limit, x + bias, torch.zeros_like(x))
    return torch.where(x > limit, x - bias, below).to(x.dtype)


@operator("Shrink")
def shrink(call: Call, x: Value) -> Output:
    return call.function(shrunk, x, call.real("bias", 0.0), call.real("lambd", 0.5))


@operator("Softmax", "LogSoftmax", since=13)
def softmax(call: Call, x: Value) -> Output:
    return _softmax(call, x, call.integer("axis", -1))


@operator("Softmax", "LogSoftmax")
def flattened_softmax(call: Call, x: Value) -> Output:
    """Before opset 13, everything from `axis` on is one axis."""
    axis, shape = call.integer("axis", 1), call.shape(x)
    if shape is not None:
        axis %= len(shape)
        if all(length == 1 for length in shape[axis + 1 :]):
            return _softmax(call, x, axis)
    flat = call.function(torch.flatten, x, axis, kind="flatten")
    return call.function(Tensor.reshape_as, _softmax(call, flat, -1), x, kind="reshape")


class HalfSoftmax(nn.Softmax):
    """Softmax in half precision, every step of it rounded, as the standard defines it."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        axis = -1 if self.dim is None else self.dim
        powers = (input - input.amax(axis, keepdim=True)).exp()
        return powers / powers.sum(axis, keepdim=True)


def _softmax(call: Call, x: Value, axis: int) -> Value:
    module = nn.Softmax(axis) if call.operator == "Softmax" else nn.LogSoftmax(axis)
    if call.operator == "Softmax" and call.dtype(x) in HALF:
        module = HalfSoftmax(axis)
    kind = "softmax" if call.operator == "Softmax" else "log_softmax"
    if not may_be_masked(call.builder, x):
        return call.module(module, x, kind=kind)
    masked = call.function(is_masked, x, axis, kind="equal")
    y = call.module(module, call.function(unmasked, x, masked, kind="where"), kind=kind)
    return call.function(masked_again, y, masked, kind="where")


def largest_is_one(x: Tensor, axis: int) -> Tensor:
    """1 at the first largest element along an axis, else 0."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


@operator("Hardmax", since=13)
def hardmax(call: Call, x: Value) -> Output:
    return call.function(largest_is_one, x, call.integer("axis", -1))


@operator("Hardmax")
def flattened_hardmax(call: Call, x: Value) -> Output:
    flat = call.function(torch.flatten, x, call.integer("axis", 1), kind="flatten")
    return call.function(
        Tensor.reshape_as, call.function(largest_is_one, flat, -1), x, kind="reshape"
    )
