"""Spectra, as audio networks compute them inside the file, and windows put back together."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...lowered import Unlowerable
from ..call import Call
from ..registry import operator
from ..values import Maybe, Output, Value


def spectrum(
    x: Tensor, length: Sequence[int] | None, axes: Sequence[int], inverse: bool, onesided: bool
) -> Tensor:
    """The discrete Fourier transform along an axis; the last axis holds real and imaginary parts.

    One-sided, only the first half of the bins is given; an inverse transform takes that half and
    gives real numbers.
    """
    axis = int(axes[0]) % x.dim()
    number = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
    count = None if length is None else int(length[0])
    if inverse and onesided:
        real: Tensor = torch.fft.irfft(number, count, axis)
        return real.unsqueeze(-1)
    if onesided and not number.is_complex():
        return torch.view_as_real(torch.fft.rfft(number, count, axis))
    bins = (torch.fft.ifft if inverse else torch.fft.fft)(number, count, axis)
    if onesided:
        bins = bins.narrow(axis, 0, bins.shape[axis] // 2 + 1)
    return torch.view_as_real(bins.resolve_conj())


@operator("DFT", since=20)
def dft(call: Call, x: Value, length: Maybe = None, axis: Maybe = None) -> Output:
    return _spectrum(call, x, length, [-2] if axis is None else call.items(axis))


@operator("DFT")
def dft_along(call: Call, x: Value, length: Maybe = None) -> Output:
    """Before opset 20, the axis is an attribute."""
    return _spectrum(call, x, length, [call.integer("axis", 1)])


def _spectrum(call: Call, x: Value, length: Maybe, axes: Any) -> Value:
    return call.function(
        spectrum,
        x,
        None if length is None else call.items(length),
        axes,
        bool(call.integer("inverse")),
        bool(call.integer("onesided")),
    )


def frames(
    x: Tensor,
    step: Sequence[int],
    window: Tensor | None,
    length: Sequence[int] | None,
    onesided: bool,
) -> Tensor:
    """The spectrum of each window of a signal `(N, length, 1 or 2)`, `(N, windows, bins, 2)`."""
    width = int(length[0]) if length is not None else 0
    if window is not None:
        width = width or len(window)
    pieces = x.unfold(1, width, int(step[0])).transpose(2, 3)
    if window is not None:
        pieces = pieces * window[:, None]
    return spectrum(pieces, None, [2], False, onesided)


@operator("STFT")
def stft(call: Call, x: Value, step: Value, window: Maybe = None, length: Maybe = None) -> Output:
    if window is None and length is None:
        raise Unlowerable("STFT with neither a window nor a length")
    width = None if length is None else call.items(length)
    onesided = bool(call.integer("onesided", 1))
    return call.function(frames, x, call.items(step), window, width, onesided)


def mel_filters(
    bins: Sequence[int],
    length: Sequence[int],
    rate: Sequence[int],
    lower: Tensor,
    upper: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Triangular filters, evenly spaced on the mel scale, `(length // 2 + 1, bins)`."""
    count, width = int(bins[0]), int(length[0])
    low, high = (2595 * torch.log10(1 + edge.double().reshape(()) / 700) for edge in (lower, upper))
    steps = torch.arange(count + 2, dtype=torch.float64, device=lower.device)
    mel = low + steps * (high - low) / (count + 2)
    edges = ((width + 1) * 700 * (10 ** (mel / 2595) - 1) / int(rate[0])).floor()
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    row = torch.arange(width // 2 + 1, dtype=torch.float64, device=lower.device)[:, None]
    rising = (row - left) / (centre - left).clamp(min=1) * (row >= left)
    rising = torch.where(centre > left, rising, (row == centre).double())
    falling = (right - row) / (right - centre).clamp(min=1) * (row < right)
    return torch.where(row <= centre, rising, falling).to(dtype)


@operator("MelWeightMatrix")
def mel_weights(
    call: Call, bins: Value, length: Value, rate: Value, lower: Value, upper: Value
) -> Output:
    sizes = (call.items(value) for value in (bins, length, rate))
    dtype = call.target_dtype(call.integer("output_datatype", 1))
    return call.function(mel_filters, *sizes, lower, upper, dtype, kind="constant")


def put_together(
    x: Tensor,
    image: Sequence[int],
    block: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
) -> Tensor:
    """Images `(N, C, *image)` as the sums of their windows `(N, C * block, windows)`."""
    count = len(image)
    strides, dilations = strides or [1] * count, dilations or [1] * count
    pads = pads or [0] * 2 * count
    padded = [size + pads[i] + pads[count + i] for i, size in enumerate(image)]
    index = torch.zeros(1, 1, dtype=torch.int64, device=x.device)
    for axis, size in enumerate(padded):
        span = (block[axis] - 1) * dilations[axis] + 1
        windows = torch.arange(0, size - span + 1, strides[axis], device=x.device)
        within = torch.arange(block[axis], device=x.device) * dilations[axis]
        places = within[:, None] + windows
        index = (index[:, None, :, None] * size + places[None, :, None]).flatten(2).flatten(0, 1)
    x = x.reshape(x.shape[0], -1, index.numel())
    whole = x.new_zeros(*x.shape[:2], math.prod(padded)).index_add(2, index.reshape(-1), x)
    whole = whole.reshape(*x.shape[:2], *padded)
    for axis, size in enumerate(image):
        whole = whole.narrow(axis + 2, pads[axis], size)
    return whole


@operator("Col2Im")
def column_to_image(call: Call, x: Value, image: Value, block: Value) -> Output:
    sizes = (call.items(value) for value in (image, block))
    options = (call.integers(name) for name in ("strides", "dilations", "pads"))
    return call.function(put_together, x, *sizes, *options, kind="fold")
