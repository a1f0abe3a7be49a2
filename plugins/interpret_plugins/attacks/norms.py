"""Norms as strategies: how an attack starts, steps and stays within a radius, for one norm each.

All methods act on each row alone; `rows` of shape `(N, *input_shape)` count as flat vectors.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from interpret_server.noise import normal_rows, uniform_rows

ConvexName = Literal["linf", "l2", "l1"]
NormName = Literal["linf", "l2", "l1", "l0"]

_BISECTIONS = 24  # the resolution of float32
_SPARSITY = 100  # an L1 step moves one coordinate in this many


def per_row(values: Tensor, rows: Tensor) -> Tensor:
    """`(N,)` values shaped to broadcast over `(N, *input_shape)` rows."""
    return values.reshape(-1, *[1] * (rows.dim() - 1))


class Norm(ABC):
    """One norm: how changes are measured, and which step ascends most."""

    name: ClassVar[NormName]
    customary: ClassVar[float]  # the usual radius on CIFAR-10, as a share of the bounds' width
    sparse: ClassVar[bool] = False  # a step moves few values, of those that can still move

    def usual(self, width: float) -> float:
        """The customary radius, where the bounds are so far apart."""
        return self.customary * width

    def reach(self, radius: Tensor, width: float) -> Tensor:
        """What step sizes are measured by, in balls of radii `(N,)` within bounds of some width."""
        return radius

    @abstractmethod
    def size(self, delta: Tensor) -> Tensor:
        """The norm `(N,)` of each row."""

    @abstractmethod
    def direction(self, gradient: Tensor, free: Tensor | None = None) -> Tensor:
        """The step of unit norm that ascends most; zero where the gradient is.

        Args:
            gradient: `(N, *input_shape)`.
            free: where a step along the gradient can still move; None: everywhere. Sparse steps
                alone depend on it.
        """


class Linf(Norm):
    """Largest change of a single value; its ball is a box."""

    name = "linf"
    customary = 8 / 255

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)

    def direction(self, gradient: Tensor, free: Tensor | None = None) -> Tensor:
        return gradient.sign()


class RoundNorm(Norm):
    """A norm whose ball is not a box."""

    @abstractmethod
    def random(self, seeds: Sequence[int], step: int, like: Tensor) -> Tensor:
        """A random point of the unit ball; row i depends on seed i and `step` alone."""

    @abstractmethod
    def project(self, delta: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """The nearest point (Euclidean) of balls of radii `(N,)`, cut with boxes around 0."""


class ConvexNorm(RoundNorm):
    """A norm whose ball is convex."""

    @abstractmethod
    def shrink(self, delta: Tensor, share: Tensor) -> Tensor:
        """`delta` projected onto ever smaller balls, as `share` goes from 1 to 0."""

    def project(self, delta: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        """As in `RoundNorm`.

        The point is the clipped `shrink(delta, share)` for the largest share inside the ball,
        by the optimality conditions of both constraints (for L1: Croce & Hein 2021, "Mind the
        Box", section 2.2); the share is found by bisection.
        """
        clipped = delta.clamp(lower, upper)
        outside = self.size(clipped) > radius
        if not outside.any():
            return clipped
        low = torch.zeros_like(outside, dtype=delta.dtype)
        high = torch.ones_like(low)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            shorter = self.shrink(delta, per_row(middle, delta)).clamp(lower, upper)
            fits = self.size(shorter) <= radius
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        nearest = self.shrink(delta, per_row(low, delta)).clamp(lower, upper)
        return torch.where(per_row(outside, delta), nearest, clipped)


class L2(ConvexNorm):
    """Euclidean length of the change."""

    name = "l2"
    customary = 0.5

    def size(self, delta: Tensor) -> Tensor:
        size: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return size

    def direction(self, gradient: Tensor, free: Tensor | None = None) -> Tensor:
        # Scaled first, so that squares neither vanish nor overflow.
        largest = gradient.flatten(1).abs().amax(1)
        scaled = gradient / per_row(torch.where(largest > 0, largest, 1), gradient)
        return scaled / per_row(self.size(scaled).clamp(min=1), gradient)

    def random(self, seeds: Sequence[int], step: int, like: Tensor) -> Tensor:
        normal = normal_rows(seeds, 2 * step, like)
        return normal / per_row(self.size(normal), like) * _distance(seeds, step, like)

    def shrink(self, delta: Tensor, share: Tensor) -> Tensor:
        return delta * share


class L1(ConvexNorm):
    """Sum of all changes.

    A step spreads over the hundredth of the coordinates with the largest gradients that can still
    move (Tramèr & Boneh 2019, "Adversarial Training and Robustness for Multiple Perturbations",
    section 2: sparse L1 descent).
    """

    name = "l1"
    customary = 12.0
    sparse = True

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().sum(1)

    def direction(self, gradient: Tensor, free: Tensor | None = None) -> Tensor:
        flat = (gradient if free is None else torch.where(free, gradient, 0)).flatten(1)
        count = math.ceil(flat.shape[1] / _SPARSITY)
        threshold = flat.abs().topk(count, dim=1).values[:, -1:]
        signs = torch.where(flat.abs() >= threshold, flat.sign(), 0)
        return (signs / signs.abs().sum(1, keepdim=True).clamp(min=1)).reshape(gradient.shape)

    def random(self, seeds: Sequence[int], step: int, like: Tensor) -> Tensor:
        uniform = uniform_rows(seeds, 2 * step, like) * 2 - 1
        # 1 - |u| is never 0, and -log of it is exponential: signed, a Laplace variable.
        laplace = -uniform.sign() * torch.log1p(-uniform.abs().clamp(max=1 - 2**-24))
        size = self.size(laplace).clamp(min=torch.finfo(like.dtype).tiny)
        return laplace / per_row(size, like) * _distance(seeds, step, like)

    def shrink(self, delta: Tensor, share: Tensor) -> Tensor:
        largest = per_row(delta.flatten(1).abs().amax(1), delta)
        return delta.sign() * (delta.abs() - largest * (1 - share)).clamp(min=0)


class L0(RoundNorm):
    """Number of values changed, or of pixels.

    Steps are measured by the mean size of what they do to a value.

    Args:
        channels: axes of a batch along which the values of one pixel lie; none: values count.

    Source: Croce & Hein 2019, "Sparse and Imperceivable Adversarial Attacks", section 3 (PGD_0).
    """

    name = "l0"
    customary = 24.0  # a count

    def __init__(self, channels: tuple[int, ...] = ()) -> None:
        self.channels = channels

    def usual(self, width: float) -> float:
        return self.customary

    def reach(self, radius: Tensor, width: float) -> Tensor:
        return torch.full_like(radius, width)

    def size(self, delta: Tensor) -> Tensor:
        return (self._pixels(delta.abs()) != 0).flatten(1).sum(1).to(delta.dtype)

    def direction(self, gradient: Tensor, free: Tensor | None = None) -> Tensor:
        mean = gradient.flatten(1).abs().mean(1)
        return gradient / per_row(torch.where(mean > 0, mean, 1), gradient)

    def random(self, seeds: Sequence[int], step: int, like: Tensor) -> Tensor:
        return uniform_rows(seeds, 2 * step, like) * 2 - 1

    def project(self, delta: Tensor, radius: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        clipped = delta.clamp(lower, upper)
        nearer = self._pixels(delta.square() - (delta - clipped).square())
        flat = nearer.flatten(1)
        counts = radius.clamp(max=flat.shape[1]).round().long()
        kept = flat.topk(int(counts.max()) if len(counts) else 0, dim=1).indices
        few = torch.arange(kept.shape[1], device=flat.device) < counts.unsqueeze(1)
        keep = torch.zeros_like(flat, dtype=torch.bool).scatter(1, kept, few)
        return torch.where(keep.reshape(nearer.shape), clipped, 0)

    def _pixels(self, values: Tensor) -> Tensor:
        return values.sum(self.channels, keepdim=True) if self.channels else values


def _distance(seeds: Sequence[int], step: int, like: Tensor) -> Tensor:
    """Distance from the centre of a uniform draw from the unit ball, one per row."""
    dimension = like[0].numel() if len(like) else 1
    uniform = uniform_rows(seeds, 2 * step + 1, like.flatten(1)[:, :1])
    return per_row(uniform[:, 0] ** (1 / dimension), like)


NORMS: Mapping[NormName, Norm] = {"linf": Linf(), "l2": L2(), "l1": L1(), "l0": L0()}
