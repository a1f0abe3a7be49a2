"""Convolutions of few rows on the CPU by the kernels that many rows get.

Torch leaves oneDNN aside for one row of at most 20,480 values, and where one thread computes for
fewer than 16 rows of a convolution by single positions; its own product rounds otherwise. A row
would then have other bits alone than among others, and near a tie of a rectifier another gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .draft import Draft
from .folding import with_weights

_SMALL = 20_480  # values of a single row
_FEW = 16  # rows, for one thread
_LARGE_PRODUCTS = 3_000_000  # multiplications; oneDNN takes 40 microseconds longer to begin
_LARGE_KERNEL = 3  # windows that are longer both ways are oneDNN's in any case

Pair = tuple[int, int]


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The convolution of `(N, C, H, W)`, where a row has the same bits among any others."""
    if not left_aside(x, weight, stride, dilation):
        return torch.conv2d(x, weight, bias, stride, padding, dilation)
    found: Tensor = torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, dilation, 1)
    return found


def left_aside(x: Tensor, weight: Tensor, stride: Pair, dilation: Pair) -> bool:
    """Whether torch would convolve these rows by other kernels than many of them."""
    if x.dim() != 4 or x.dtype is not torch.float32 or x.device.type != "cpu" or not available():
        return False
    single = x.shape[0] == 1 and min(weight.shape[2:]) <= _LARGE_KERNEL and x.numel() <= _SMALL
    pointwise = tuple(weight.shape[2:]) == stride == dilation == (1, 1)
    few = pointwise and x.shape[0] < _FEW and torch.get_num_threads() == 1
    return (single or few) and x.numel() > 0


def available() -> bool:
    """Whether this build of torch has oneDNN's operators."""
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_convolution_transpose_pointwise")


class Convolve(torch.autograd.Function):
    """`convolve` of a weight that needs no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        ctx.size, ctx.settings = x.shape[2:], settings
        ctx.save_for_backward(weight)
        return convolve(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        stride, padding, dilation = ctx.settings
        axes = zip(ctx.size, weight.shape[2:], stride, padding, dilation, strict=True)
        unread = [
            (size + 2 * pad - reach * (kernel - 1) - 1) % step
            for size, kernel, step, pad, reach in axes
        ]
        if gradient.requires_grad:  # the other operator has no derivative
            found = F.conv_transpose2d(
                gradient, weight, None, stride, padding, unread, dilation=dilation
            )
        else:
            found = torch.ops.mkldnn._convolution_transpose_pointwise(
                gradient, weight, None, padding, unread, stride, dilation, 1, "none", [], ""
            )
        return found, None, None, *(None for _ in ctx.settings)


def replace_convolutions(
    draft: Draft, kind: "type[SteadyConv2d]", suits: Callable[[nn.Conv2d], bool]
) -> None:
    """Let twins stand for plain convolutions without groups that suit."""
    for node in draft.graph.nodes:
        module: Any = draft.module(node)
        if type(module) is not nn.Conv2d or not (_is_plain(module) and suits(module)):
            continue
        if module not in draft.derived.values():
            draft.copied.append(module)
        draft.put(node, (str(node.target), kind.__name__), partial(kind.of, module))


def _is_plain(layer: nn.Conv2d) -> bool:
    padded = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return padded and layer.groups == 1


class SteadyConv2d(nn.Conv2d):
    """A convolution whose value and gradient for a row have the same bits among others."""

    @classmethod
    def of(cls, layer: nn.Conv2d) -> nn.Module:
        """One with a layer's own weights."""
        twin = with_weights(layer)
        twin.__class__ = cls
        return twin

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name that it has in torch
        if input.shape[0] != 1 and torch.get_num_threads() > 1:  # nearly all there are
            return super().forward(input)
        usual = not left_aside(input, self.weight, self.stride, self.dilation)  # type: ignore[arg-type]
        if usual or self.weight.requires_grad or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        settings = (self.stride, self.padding, self.dilation)
        found: Tensor = Convolve.apply(input, self.weight, self.bias, *settings)  # type: ignore[no-untyped-call]
        return found


class LargeConv2d(SteadyConv2d):
    """One that leaves small convolutions to torch, whose own product starts sooner."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name that it has in torch
        weights = self.weight.numel() // self.weight.shape[1]
        products = input.numel() * weights // (self.stride[0] * self.stride[1])
        small = products < _LARGE_PRODUCTS
        return nn.Conv2d.forward(self, input) if small else super().forward(input)


def steady_convolutions(draft: Draft, *, large: bool = False) -> None:
    """Let convolutions of few rows be those of many, or only where that is faster."""
    replace_convolutions(draft, LargeConv2d if large else SteadyConv2d, is_float32_on_cpu)


def is_float32_on_cpu(layer: Any) -> bool:
    """Whether a layer's weights are so."""
    return bool(layer.weight.dtype is torch.float32 and layer.weight.device.type == "cpu")
