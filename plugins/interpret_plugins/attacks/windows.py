"""Windows of an input of any layout: squares of pictures, segments of signals and vectors."""

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from interpret_plugins.attribution.perturbation import channel_axis
from interpret_server.plugin import Classifier, Window

_FALLS = {1: 4, 2: 2}  # how steeply a peak falls, by the order of the norm


@dataclass(frozen=True)
class Grid:
    """A row as channels and positions.

    Args:
        shape: of a row.
        axis: of the channels, or None.
        sizes: of the axes that windows have a side in; at least one.
    """

    shape: tuple[int, ...]
    axis: int | None
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, model: Classifier, shape: tuple[int, ...]) -> "Grid":
        """The grid of rows of a shape; of a single position, the channels are the positions."""
        axis = channel_axis(model, shape)
        sizes = [size for place, size in enumerate(shape) if place != axis and size > 1]
        if not sizes and axis is not None:
            return cls(shape, None, (shape[axis],))
        return cls(shape, axis, tuple(sizes) or (1,))

    @property
    def channels(self) -> int:
        """How many channels a position has."""
        return 1 if self.axis is None else self.shape[self.axis]

    @property
    def positions(self) -> int:
        """How many positions there are."""
        return math.prod(self.sizes)

    def flat(self, x: Tensor) -> Tensor:
        """Rows `(n, *shape)` as `(n, channels, positions)`."""
        x = x.unsqueeze(1) if self.axis is None else x.movedim(self.axis + 1, 1)
        return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)

    def rows(self, flat: Tensor) -> Tensor:
        """The inverse of `flat`."""
        if self.axis is None:
            return flat.reshape(-1, *self.shape)
        rest = [size for place, size in enumerate(self.shape) if place != self.axis]
        return flat.reshape(-1, self.channels, *rest).movedim(1, self.axis + 1)

    def window(self, share: float, *, least: int = 1, odd: bool = False) -> tuple[int, ...]:
        """The sides of a cube that covers a share of the positions, no longer than the axes."""
        side = max(least, round((share * self.positions) ** (1 / len(self.sizes))))
        side += odd and side % 2 == 0
        return tuple(min(side, size) for size in self.sizes)

    def places(self, sides: tuple[int, ...], corner: Tensor) -> Tensor:
        """The positions `(..., prod(sides))` of windows.

        Args:
            sides: of the windows.
            corner: `(..., axes)` int64, where they begin.
        """
        strides, within, _ = _steps(self.sizes, sides, corner.device)
        return (corner * strides).sum(-1, keepdim=True) + within

    def anywhere(self, sides: tuple[int, ...], uniform: Tensor) -> Tensor:
        """Corners of windows, all as likely, by uniform draws `(..., axes)`."""
        room = _steps(self.sizes, sides, uniform.device)[2]
        return torch.minimum((uniform * (room + 1)).long(), room)

    def seen(self, sides: tuple[int, ...], corner: Tensor) -> Window | None:
        """Windows `(n, axes)` of pictures, as a classifier knows them; None of other rows."""
        if self.axis != 0 or len(self.shape) != 3 or len(sides) != 2:
            return None
        return Window(corner, (sides[0], sides[1]))

    def tiles(self) -> tuple[tuple[int, ...], Tensor]:
        """Sides of about a fifth of each axis, and the places of windows that tile the grid."""
        sides = tuple(max(1, size // 5) for size in self.sizes)
        corners = [
            range(size % side // 2, size - side + 1, side)
            for size, side in zip(self.sizes, sides, strict=True)
        ]
        return sides, self.places(sides, torch.tensor(list(itertools.product(*corners))))


@lru_cache(maxsize=64)
def _steps(
    sizes: tuple[int, ...], sides: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Of windows: the steps along each axis, their positions at the origin, how far they can go."""
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    steps = [range(0, side * stride, stride) for side, stride in zip(sides, strides, strict=True)]
    within = [sum(step) for step in itertools.product(*steps)]
    room = [size - side for size, side in zip(sizes, sides, strict=True)]
    found = [torch.tensor(numbers, device=device) for numbers in (strides, within, room)]
    return found[0], found[1], found[2]


def twin_peaks(sides: tuple[int, ...], order: int) -> Tensor:
    """Changes of unit norm in a window: a peak in one half, its negative in the other.

    A half falls from its middle as `sum_{m=d+1}^{M} m^(-f)`, with d the distance in steps, and f 2
    for L2 and 4 for L1.

    Args:
        sides: of the window.
        order: of the norm, 1 or 2.

    Returns:
        `(axes, prod(sides))` float64: for each axis the change whose halves lie along it.
    """
    found = []
    for axis, side in enumerate(sides):
        halves = [
            _peak((*sides[:axis], length, *sides[axis + 1 :]), order) * sign
            for length, sign in ((side // 2, 1), (side - side // 2, -1))
            if length
        ]
        whole = torch.cat(halves, axis).flatten()
        found.append(whole / torch.linalg.vector_norm(whole, ord=order))
    return torch.stack(found)


def _peak(sides: tuple[int, ...], order: int) -> Tensor:
    away = [(torch.arange(side) - side // 2).abs() for side in sides]
    distance = torch.stack(torch.meshgrid(*away, indexing="ij")).amax(0)
    falls = torch.arange(1, max(sides) // 2 + 2, dtype=torch.float64) ** -_FALLS[order]
    height = falls.flip(0).cumsum(0).flip(0)[distance]
    size: Tensor = torch.linalg.vector_norm(height.flatten(), ord=order)
    return height / size
