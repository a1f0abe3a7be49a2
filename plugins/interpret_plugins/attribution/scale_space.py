"""Inputs blurred to any scale."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class ScaleSpace:
    """What Gaussian blur of any standard deviation makes of some inputs.

    The edges are mirrored with their own value repeated. The blur is that of the continuous
    kernel, by a cosine transform in which frequency w of an axis fades as `exp(-(sigma w)^2 / 2)`:
    blurs add up exactly, and as sigma grows a row becomes the mean over its spatial axes.

    Args:
        x: `(N, ...)`.
        axes: that are blurred.
    """

    def __init__(self, x: Tensor, axes: Sequence[int]) -> None:
        self._x, self._axes = x, tuple(axes)
        self._cosines = {length: _cosines(length).to(x) for length in {x.shape[a] for a in axes}}
        spectrum = x
        for axis in self._axes:
            spectrum = _along(spectrum, axis, self._cosines[x.shape[axis]])
        self._spectrum = spectrum

    def at(self, sigma: float) -> Tensor:
        """Like `x`, blurred with this standard deviation, in values of an axis; 0 is `x` itself."""
        if sigma == 0:
            return self._x
        blurred = self._spectrum
        for axis in self._axes:
            length = self._x.shape[axis]
            order = torch.arange(length, dtype=torch.float64)
            fading = torch.exp(-((sigma * math.pi * order / length) ** 2) / 2).to(blurred)
            blurred = _along(blurred, axis, self._cosines[length].T * fading)
        return blurred


def _cosines(length: int) -> Tensor:
    """The orthonormal cosine transform of an axis, `(length, length)` float64."""
    order = torch.arange(length, dtype=torch.float64)
    waves = torch.cos(math.pi * (order + 0.5) * order[:, None] / length)
    waves *= math.sqrt(2 / length)
    waves[0] /= math.sqrt(2)
    return waves


def _along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    return (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
