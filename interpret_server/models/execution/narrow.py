"""Convolutions of few channels on the CPU: the gradient by their input as a matrix product.

oneDNN works on blocks of channels, most of which an image with 1 to 4 leaves empty. The product of
the weights and the output's gradient, added up where windows overlap, is rounded otherwise and
takes 0.2 to 0.7 of its time for 1 channel; for more it depends on how much windows overlap, and on
threads, which the adding up hardly uses: 0.6 to 1.0 for strides of 3 and more, for a stride of 2
0.7 to 1.1 with one thread and 0.6 to 1.6 with two, for a stride of 1 1.0 to 1.8.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .draft import Draft
from .steady import Convolve, SteadyConv2d, replace_convolutions

_CHANNELS = 4  # of the input, at most; with 8 there is nothing to be gained
_APART = 3  # a stride from which on windows overlap little
_BLOCK_BYTES = 1 << 22  # of the products that exist at once


class _Convolve(Convolve):
    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        stride, padding, dilation = ctx.settings
        columns = gradient.flatten(2)
        if not gradient.is_contiguous():  # channels-last, which a product reads as it is
            columns = gradient.movedim(1, -1).flatten(1, 2).mT
        product = weight.flatten(1).T
        bytes_of_row = product.shape[0] * columns.shape[2] * gradient.element_size()
        parts = [
            F.fold(product @ part, ctx.size, weight.shape[2:], dilation, padding, stride)
            for part in torch.split(columns, max(1, _BLOCK_BYTES // max(1, bytes_of_row)))
        ]
        return torch.cat(parts), None, None, *(None for _ in ctx.settings)


class NarrowConv2d(SteadyConv2d):
    """A convolution with the same values, whose gradient by its input is a matrix product."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name that it has in torch
        usual = not input.requires_grad or self.weight.requires_grad or input.dim() != 4
        reduced = torch.is_autocast_enabled(input.device.type)  # products in another type
        crowded = self.in_channels > 1 and min(self.stride) < _APART
        if usual or reduced or (crowded and torch.get_num_threads() > 1):
            return super().forward(input)
        settings = (self.stride, self.padding, self.dilation)
        found: Tensor = _Convolve.apply(input, self.weight, self.bias, *settings)  # type: ignore[no-untyped-call]
        return found


def narrow_convolutions(draft: Draft) -> None:
    """Let convolutions of few channels be differentiated so."""
    replace_convolutions(draft, NarrowConv2d, _suits)


def _suits(layer: nn.Conv2d) -> bool:
    several = 1 < layer.in_channels <= _CHANNELS and min(layer.stride) > 1
    return layer.in_channels == 1 or several
