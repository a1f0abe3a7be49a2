"""Where adversarial inputs may lie: a norm ball within the bounds, or a box of the caller's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interpret_server.models.classifier import Bounds
from interpret_server.noise import uniform_rows
from interpret_server.plugin import InvalidRequest

from .norms import NORMS, Norm, NormName, RoundNorm, per_row

_SLACK = 2.0**-20  # left inside a ball's surface, for the rounding of a sum to float32


def _round_up(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest value of `dtype` that is not below a float64 value."""
    rounded = exact.to(dtype)
    above = torch.nextafter(rounded, torch.full_like(rounded, math.inf))
    return torch.where(rounded.double() < exact, above, rounded)


def _least(x: Tensor, radius: Tensor, bound: float) -> Tensor:
    """The smallest values within `radius` of `x`, by a float64 measurement, and not below `bound`.

    Radii `(N, 1, ...)` are the rows'. Where `x` itself is below the bound, it is its own limit.
    """
    exact = x.double()
    least = torch.minimum(_round_up((exact - radius).clamp(min=bound), x.dtype), x)
    return torch.where(exact - least.double() > radius, torch.nextafter(least, x), least)


@dataclass(frozen=True)
class Region:
    """The inputs that an attack may return, row by row.

    Args:
        norm: the geometry of steps.
        centre: `(N, *input_shape)`, the inputs.
        lower: `(N, *input_shape)`; the smallest values allowed, exact in the inputs' type.
        upper: the largest.
        radius: `(N,)` float64, of the ball around `centre` in `norm`; infinite where the box tells
            all.
        reach: `(N, *input_shape)`; what a step size is measured by: epsilon, in L0 the width of
            the bounds, or half the width of the caller's box.
        middle: `(N, *input_shape)`; what distances to the region's edge are measured from: the
            inputs, or the middle of the caller's box.
    """

    norm: Norm
    centre: Tensor
    lower: Tensor
    upper: Tensor
    radius: Tensor
    reach: Tensor
    middle: Tensor

    @classmethod
    def ball(
        cls, x: Tensor, norm: NormName | Norm, epsilon: float | Tensor, bounds: Bounds
    ) -> "Region":
        """The inputs within `epsilon` of `x` in a norm, and within the bounds.

        Args:
            x: `(N, *input_shape)`.
            norm: by name, or itself.
            epsilon: of all rows, or `(N,)`.
            bounds: of the model.
        """
        strategy = norm if isinstance(norm, Norm) else NORMS[norm]
        radius = torch.as_tensor(epsilon, dtype=torch.float64, device=x.device).expand(len(x))
        reach = strategy.reach(radius, bounds.upper - bounds.lower)
        reach = per_row(reach, x).to(x).expand_as(x)
        side = free = torch.full_like(radius, math.inf)
        if not isinstance(strategy, RoundNorm):
            side, radius = radius, free
        lower = _least(x, per_row(side, x), bounds.lower)
        upper = -_least(-x, per_row(side, x), -bounds.upper)
        return cls(strategy, x, lower, upper, radius, reach, x)

    @classmethod
    def everywhere(cls, x: Tensor, norm: NormName | Norm, bounds: Bounds) -> "Region":
        """All inputs within the bounds."""
        return cls.ball(x, norm, math.inf, bounds)

    @classmethod
    def box(cls, x: Tensor, lower: Tensor, upper: Tensor, bounds: Bounds) -> "Region":
        """The inputs in a box and within the bounds.

        Raises:
            InvalidRequest: a row's box is empty.
        """
        least = _round_up(torch.full_like(x, bounds.lower, dtype=torch.float64), x.dtype)
        most = -_round_up(torch.full_like(x, -bounds.upper, dtype=torch.float64), x.dtype)
        lower, upper = torch.maximum(lower, least), torch.minimum(upper, most)
        empty = ~(lower <= upper).flatten(1).all(1)
        if empty.any():
            raise InvalidRequest.field(
                "tensors.lower",
                f"the box of row {int(empty.nonzero()[0])} is empty: lower is above upper, or the "
                "box lies outside the model's bounds",
            )
        reach = (upper - lower) / 2
        radius = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
        return cls(NORMS["linf"], x, lower, upper, radius, reach, lower + reach)

    def take(self, rows: Tensor) -> "Region":
        """The region of some rows."""
        return Region(
            self.norm,
            self.centre[rows],
            self.lower[rows],
            self.upper[rows],
            self.radius[rows],
            self.reach[rows],
            self.middle[rows],
        )

    def widened(self, times: float) -> "Region":
        """The region with a ball of so many times the radius, in the same box."""
        return replace(self, radius=self.radius * times, reach=self.reach * times)

    def random(self, seeds: Sequence[int], step: int) -> Tensor:
        """A random point: uniform in a box; of a ball, uniform there and projected onto bounds."""
        if isinstance(self.norm, RoundNorm):
            delta = self.norm.random(seeds, step, self.centre) * self.reach
            return self.project(self.centre + delta)
        share = uniform_rows(seeds, 2 * step, self.centre)
        return self.project(self.lower + share * (self.upper - self.lower))

    def move(self, x: Tensor, gradient: Tensor, size: Tensor) -> Tensor:
        """One step of steepest ascent from `x`, not yet projected."""
        free = None
        if self.norm.sparse:
            free = ((gradient > 0) & (x < self.upper)) | ((gradient < 0) & (x > self.lower))
        return x + size * self.norm.direction(gradient, free)

    def project(self, x: Tensor) -> Tensor:
        """The nearest point of the region, to the rounding of the inputs' type."""
        if not isinstance(self.norm, RoundNorm):
            return x.clamp(self.lower, self.upper)
        delta = self.norm.project(
            x - self.centre,
            self.radius.to(x) * (1 - _SLACK),
            self.lower - self.centre,
            self.upper - self.centre,
        )
        return (self.centre + delta).clamp(self.lower, self.upper)

    def confine(self, x: Tensor) -> Tensor:
        """`x` moved into the region exactly, as measured in float64 on what is returned."""
        x = x.clamp(self.lower, self.upper)
        centre = self.centre.double()
        slack = _SLACK
        while (outside := (size := self.norm.size(x.double() - centre)) > self.radius).any():
            share = (self.radius / size * (1 - slack)).clamp(min=0)
            shorter = (centre + (x.double() - centre) * per_row(share, x)).to(x.dtype)
            x = torch.where(per_row(outside, x), shorter.clamp(self.lower, self.upper), x)
            slack *= 2
        return x

    def holds(self, x: Tensor) -> Tensor:
        """Whether each row lies in the region, `(N,)`, measured in float64."""
        inside = ((x >= self.lower) & (x <= self.upper)).flatten(1).all(1)
        return inside & (self.norm.size(x.double() - self.centre.double()) <= self.radius)
