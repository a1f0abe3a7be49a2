"""Centred inputs `z = (x - centre) / scale`, the space in which inputs are optimised and sampled.

The centre is the manifest's mean, else mid-range, else 0; the scale is the width of the bounds,
else 1. So z runs over about [-1/2, 1/2] whatever the model's units are, and is x itself for a
model without bounds and mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpret_server.plugin import Capability, Classifier

from .spatial import Axes, resize


@dataclass(frozen=True)
class Centred:
    """The map between inputs `x` and centred inputs `z`, both `(N, *input_shape)`.

    Args:
        centre: broadcasts to a row.
        scale: width of the bounds.
        lower, upper: the bounds in z, broadcasting to a row; None without bounds.
        limits: the bounds in x; None without bounds.
    """

    centre: Tensor
    scale: float
    lower: Tensor | None
    upper: Tensor | None
    limits: tuple[float, float] | None

    @classmethod
    def of(cls, model: Classifier) -> "Centred":
        """The centred space of a model's input."""
        bounded = Capability.BOUNDS in model.capabilities
        return cls.around(model.centre, model.scale, model.bounds if bounded else None)

    @classmethod
    def around(cls, centre: Tensor, scale: float, limits: tuple[float, float] | None) -> "Centred":
        """The space around a centre, with the bounds in x where there are any."""
        if limits is None:
            return cls(centre, scale, None, None, None)
        lower, upper = ((limit - centre) / scale for limit in limits)
        return cls(centre, scale, lower, upper, limits)

    def resized(self, shape: Sequence[int], axes: Axes, sizes: Sequence[int]) -> "Centred":
        """The same space for rows of `shape` resized to the spatial `sizes`."""
        if self.centre.numel() == 1 or axes.sizes((1, *shape)) == tuple(sizes):
            return self
        centre = resize(self.centre.expand(1, *shape), axes, sizes)
        return Centred.around(centre, self.scale, self.limits)

    def from_input(self, x: Tensor) -> Tensor:
        """z of x."""
        return (x - self.centre) / self.scale

    def to_input(self, z: Tensor, *, clip: bool = False) -> Tensor:
        """x of z; with `clip`, inside the model's bounds to the last bit where it has bounds."""
        x = self.centre + self.scale * z
        return self.limited(x) if clip else x

    def limited(self, x: Tensor) -> Tensor:
        """x moved to the nearest point inside the bounds; unchanged without bounds."""
        return x if self.limits is None else x.clamp(*self.limits)

    def clip(self, z: Tensor) -> Tensor:
        """z moved to the nearest point inside the bounds; unchanged without bounds."""
        if self.lower is None or self.upper is None:
            return z
        return torch.minimum(torch.maximum(z, self.lower), self.upper)
