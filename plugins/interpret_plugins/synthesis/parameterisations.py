"""What an optimiser moves in place of an image: its pixels, or their decorrelated spectrum."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .centred import Centred
from .spatial import Axes, amplitudes

# Square root of the covariance of colours in natural images, as in the code published with
# Olah et al. 2017; its columns are brightness and two contrasts.
_COLOURS = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
_AMPLITUDE = 0.25  # of an image over its spectrum, so that one rate suits all sizes
_MARGIN = 0.01  # share of the bounds' width that a start keeps from them


class Parameterisation(ABC):
    """Values that stand for inputs; both have one row per image."""

    @abstractmethod
    def values(self, x: Tensor) -> Tensor:
        """Values of which `image` makes `x`, or what comes nearest to it."""

    @abstractmethod
    def image(self, values: Tensor) -> Tensor:
        """Inputs `(N, *shape)` in the model's units; differentiable."""

    def project(self, values: Tensor) -> Tensor:
        """The nearest values that stand for an input within the bounds."""
        return values


@dataclass(frozen=True)
class Pixels(Parameterisation):
    """The centred inputs themselves."""

    space: Centred

    def values(self, x: Tensor) -> Tensor:
        return self.space.from_input(x)

    def image(self, values: Tensor) -> Tensor:
        return self.space.to_input(values)

    def project(self, values: Tensor) -> Tensor:
        return self.space.clip(values)


@dataclass(frozen=True)
class Fourier(Parameterisation):
    """Fourier coefficients over the spatial axes, each divided by its frequency to a power.

    So a step moves all frequencies of an image alike, as those of natural images have it (Olah,
    Mordvintsev & Schubert 2017, "Feature visualization", section on preconditioning). The image is
    squashed into the bounds by a logistic function; without bounds it is the centred input.

    Args:
        sizes: of the spatial axes.
        decay: exponent of the frequency; 1 is that of natural images.
        colours: mix three channels by the colours of natural images; others are left as they are.
    """

    space: Centred
    axes: Axes
    sizes: tuple[int, ...]
    decay: float = 1.0
    colours: bool = True

    def values(self, x: Tensor) -> Tensor:
        if self.space.limits is None:
            y = self.space.from_input(x)
        else:
            lower, upper = self.space.limits
            y = ((x - lower) / (upper - lower)).clamp(_MARGIN, 1 - _MARGIN).logit()
        y = self._mixed(y, inverse=True) / _AMPLITUDE
        if not self.sizes:
            return y
        spectrum = torch.fft.rfftn(y, dim=self.axes.spatial, norm="ortho")
        return torch.view_as_real(spectrum / amplitudes(y, self.axes, self.sizes, self.decay))

    def image(self, values: Tensor) -> Tensor:
        if self.sizes:
            spectrum = torch.view_as_complex(values)
            plane = values.select(-1, 0)
            spectrum = spectrum * amplitudes(plane, self.axes, self.sizes, self.decay)
            y = torch.fft.irfftn(spectrum, s=self.sizes, dim=self.axes.spatial, norm="ortho")
        else:
            y = values
        y = self._mixed(_AMPLITUDE * y)
        if self.space.limits is None:
            return self.space.to_input(y)
        lower, upper = self.space.limits
        return lower + (upper - lower) * y.sigmoid()

    def _mixed(self, y: Tensor, *, inverse: bool = False) -> Tensor:
        if not self.colours or len(self.axes.channels) != 1:
            return y
        (axis,) = self.axes.channels
        if y.shape[axis] != len(_COLOURS):
            return y
        matrix = torch.tensor(_COLOURS, dtype=torch.float64)
        matrix = matrix / matrix.norm(dim=0).max()
        if inverse:
            matrix = torch.linalg.inv(matrix)
        mixed: Tensor = (y.movedim(axis, -1) @ matrix.to(y).T).movedim(-1, axis)
        return mixed
