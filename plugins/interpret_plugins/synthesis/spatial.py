"""Operators over the spatial axes of an input of any layout and any number of dimensions.

Batches are `(N, *shape)`. The axes of a row are its channel axes and its spatial axes; a flat
vector has no spatial axes, so there blur and resize change nothing and its total variation
is 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from interpret_server.plugin import Classifier


@dataclass(frozen=True)
class Axes:
    """Which axes of a batch `(N, *shape)` are spatial and which hold channels (0 is the batch).

    A pixel is the set of values at one spatial position; every value of a flat vector is a pixel.
    """

    spatial: tuple[int, ...]
    channels: tuple[int, ...]

    @classmethod
    def of(cls, model: Classifier) -> "Axes":
        """The axes of a model's input: by its layout, else channels first (torch's convention)."""
        rank = len(model.input_shape)
        if rank == 1:
            return cls((), ())
        if model.input_layout == "HWC" and rank == 3:
            return cls((1, 2), (3,))
        return cls(tuple(range(2, rank + 1)), (1,))

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The spatial sizes of a batch of this shape."""
        return tuple(shape[axis] for axis in self.spatial)

    def channel_count(self, shape: Sequence[int]) -> int:
        """How many channels a batch of this shape has; 1 without channel axes."""
        return math.prod(shape[axis] for axis in self.channels)


def blur(x: Tensor, axes: Axes, sigma: float) -> Tensor:
    """Gaussian blur over the spatial axes.

    Args:
        sigma: standard deviation in pixels; 0 leaves `x` as it is. The kernel ends at 4 sigma and
            the edge is mirrored with its own pixel repeated, as in `scipy.ndimage`.
    """
    if sigma <= 0:
        return x
    for axis in axes.spatial:
        x = _along(x, axis, _blur_matrix(x.shape[axis], sigma))
    return x


def resize(x: Tensor, axes: Axes, sizes: Sequence[int]) -> Tensor:
    """Linear interpolation of the spatial axes to `sizes`; differentiable."""
    for axis, size in zip(axes.spatial, sizes, strict=True):
        if x.shape[axis] != size:
            x = _along(x, axis, _resize_matrix(x.shape[axis], size))
    return x


def resample(x: Tensor, axes: Axes, windows: Tensor, sizes: Sequence[int]) -> Tensor:
    """A window of every row, by linear interpolation at `sizes`; differentiable.

    Beyond the edges the row is mirrored with its own edge pixel repeated. A window from 0 to the
    size of an axis is `resize`.

    Args:
        windows: `(N, number of spatial axes, 2)`, the edges at which row i's window starts and
            ends in pixels of `x`, not whole ones necessarily; one that ends before it starts is
            seen in a mirror.
        sizes: of the spatial axes of the result.
    """
    for number, (axis, size) in enumerate(zip(axes.spatial, sizes, strict=True)):
        matrices = _window_matrices(x.shape[axis], size, windows[:, number].to(x))
        rows = x.movedim(axis, -1)
        seen = rows.flatten(1, -2) @ matrices.mT
        x = seen.reshape(*rows.shape[:-1], size).movedim(-1, axis)
    return x


def total_variation(x: Tensor, axes: Axes, beta: float = 2.0) -> Tensor:
    """`TV_beta(x) = sum over channels and positions of (sum over axes of d^2)^(beta/2)`, `(N,)`.

    `d` is the forward difference along a spatial axis, 0 at the far edge (Mahendran & Vedaldi
    2014, section 2, here over any number of axes). With beta 2 it is the
    plain sum of squared differences. Its gradient is 0 where every difference is 0.
    """
    if not axes.spatial:
        return x.flatten(1).sum(1) * 0
    squares = torch.zeros_like(x)
    for axis in axes.spatial:
        difference = x.diff(dim=axis)
        edge = torch.zeros_like(x.narrow(axis, 0, 1))
        squares = squares + torch.cat([difference, edge], axis).square()
    if beta != 2:
        positive = squares > 0
        squares = torch.where(positive, squares.where(positive, 1) ** (beta / 2), 0)
    return squares.flatten(1).sum(1)


def total_variation_gradient(x: Tensor, axes: Axes) -> Tensor:
    """The gradient of `total_variation(x, axes, beta=2)` by `x`, like `x`."""
    gradient = torch.zeros_like(x)
    for axis in axes.spatial:
        difference = 2 * x.diff(dim=axis)
        count = difference.shape[axis]
        gradient.narrow(axis, 0, count).sub_(difference)
        gradient.narrow(axis, 1, count).add_(difference)
    return gradient


def pixels(x: Tensor, axes: Axes) -> Tensor:
    """Sum over the channel axes, kept as size 1: one value per pixel."""
    return x.sum(axes.channels, keepdim=True) if axes.channels else x


def pink(x: Tensor, axes: Axes, power: float, lowest: float = 1.0) -> Tensor:
    """Fourier amplitudes over the spatial axes times `1 / f^power`, f in cycles per pixel.

    Frequencies below `lowest` cycles per largest axis count as that. An ascent along gradients
    filtered so with `2 p` is an ascent in Fourier coefficients scaled by `1 / f^p`, the
    decorrelated parameterisation of Olah et al. 2017, "Feature visualization"; natural images have
    p = 1.
    """
    if not axes.spatial or power == 0:
        return x
    sizes = axes.sizes(x.shape)
    spectrum = torch.fft.rfftn(x, dim=axes.spatial) * amplitudes(x, axes, sizes, power, lowest)
    filtered: Tensor = torch.fft.irfftn(spectrum, s=sizes, dim=axes.spatial)
    return filtered


def amplitudes(
    like: Tensor, axes: Axes, sizes: Sequence[int], power: float, lowest: float = 1.0
) -> Tensor:
    """`1 / f^power` at each coefficient of `torch.fft.rfftn` over spatial axes of these sizes.

    f is in cycles per pixel, and at least `lowest` cycles per largest axis.

    Args:
        like: its number of axes, type and device are those of the result.
    """
    squares = like.new_zeros(())
    for axis, size in zip(axes.spatial, sizes, strict=True):
        half = axis == axes.spatial[-1]
        grid = torch.fft.rfftfreq if half else torch.fft.fftfreq
        view = [-1 if other == axis else 1 for other in range(like.dim())]
        squares = squares + grid(size, dtype=like.dtype, device=like.device).view(view).square()
    scale: Tensor = squares.sqrt().clamp_min(lowest / max(sizes)) ** -power
    return scale


def limited(x: Tensor, axes: Axes, deviation: float) -> Tensor:
    """No band of half an octave stronger than that of an image of 1/f amplitudes.

    That image has the standard deviation `deviation` over its pixels, and 0.3 of it is what the
    mean of a row may lie off 0, both as the root mean square over channels. Amplitudes of
    photos follow 1/f (Field 1987, "Relations between the statistics of natural images and the
    response properties of cortical cells").
    """
    if not axes.spatial:
        return x
    sizes = axes.sizes(x.shape)
    inverse = amplitudes(x, axes, sizes, 1.0)
    cycles = max(sizes) / inverse  # per largest axis, not under 1
    band = (2 * cycles.log2() + 1e-6).floor().long() + 1
    weight = torch.full_like(inverse, 2.0)  # of a coefficient and its conjugate
    last = weight.movedim(axes.spatial[-1], -1)
    last[..., 0] = 1
    if sizes[-1] % 2 == 0:
        last[..., -1] = 1
    band.view(-1)[0] = 0  # the mean
    power = weight * inverse.square()
    power.view(-1)[0] = 0
    allowed = power.new_zeros(int(band.max()) + 1).index_add(0, band.flatten(), power.flatten())
    allowed = allowed * (deviation * math.prod(sizes)) ** 2 / power.sum()
    allowed[0] = (0.3 * deviation * math.prod(sizes)) ** 2
    spectrum = torch.fft.rfftn(x, dim=axes.spatial)
    energy = weight * spectrum.abs().square()
    energy = energy.mean(axes.channels, keepdim=True) if axes.channels else energy
    found = allowed.new_zeros(len(x), len(allowed)).index_add(1, band.flatten(), energy.flatten(1))
    gain = (allowed / found.clamp_min(torch.finfo(x.dtype).tiny)).sqrt().clamp(max=1)
    spectrum = spectrum * gain[:, band.flatten()].view(energy.shape)
    kept: Tensor = torch.fft.irfftn(spectrum, s=sizes, dim=axes.spatial)
    return kept


def muted(x: Tensor, axes: Axes, share: float) -> Tensor:
    """Every pixel's mean over the channels plus `share` of each channel's difference from it."""
    if not axes.channels or share == 1:
        return x
    grey = x.mean(axes.channels, keepdim=True)
    return grey + share * (x - grey)


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    return (x.movedim(axis, -1) @ matrix.to(x).T).movedim(-1, axis)


@lru_cache(maxsize=64)
def _blur_matrix(size: int, sigma: float) -> Tensor:
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    position = (torch.arange(size)[:, None] + offsets) % (2 * size)
    position = torch.minimum(position, 2 * size - 1 - position)
    weights = (kernel / kernel.sum()).expand(size, -1)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, position, weights)


@lru_cache(maxsize=64)
def _resize_matrix(old: int, new: int) -> Tensor:
    identity = torch.eye(old, dtype=torch.float64)[None]
    return F.interpolate(identity, size=new, mode="linear", align_corners=False)[0].T.contiguous()


def _window_matrices(old: int, new: int, windows: Tensor) -> Tensor:
    """`(N, new, old)`: the weights of the old pixels in each of the new ones."""
    start, end = windows[:, :1], windows[:, 1:]
    position = start + (torch.arange(new).to(windows) + 0.5) / new * (end - start) - 0.5
    below = position.floor()
    weight = position - below
    matrices = windows.new_zeros(len(windows), new, old)
    for offset, share in ((0, 1 - weight), (1, weight)):
        pixel = (below.long() + offset) % (2 * old)
        pixel = torch.minimum(pixel, 2 * old - 1 - pixel)
        matrices.scatter_add_(2, pixel[..., None], share[..., None])
    return matrices


def octave_sizes(
    sizes: Sequence[int], octaves: int, ratio: float, smallest: int
) -> list[tuple[int, ...]]:
    """Sizes from coarse to fine, each `ratio` times the one before; the last is `sizes`.

    Octaves that would bring any axis under `smallest` pixels are left out.
    """
    levels = [
        tuple(max(1, math.floor(size / ratio**level + 0.5)) for size in sizes)
        for level in range(octaves)
    ]
    kept = [level for level in levels[1:] if level and min(level) >= smallest]
    return [*reversed(kept), levels[0]]
