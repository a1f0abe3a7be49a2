"""Batched minimisers in which every row goes its own way: momentum, Adam and L-BFGS.

Each is a `step(z, gradient, ...)` or holds the state of all rows; a row's path depends on that row
alone, so it is the same in any batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Point(NamedTuple):
    """Where the rows stand: `z` and `gradient` `(N, *shape)`, `value` `(N,)`."""

    z: Tensor
    value: Tensor
    gradient: Tensor


Evaluate = Callable[[Tensor], Point]


def evaluate(objective: Callable[[Tensor], Tensor], z: Tensor) -> Point:
    """The objective `(N,)` and its gradient at `z`; zero where it does not depend on `z`."""
    leaf = z.detach().clone().requires_grad_()
    with torch.enable_grad():
        value = objective(leaf)
        gradient = torch.zeros_like(leaf)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(
                value.sum(), leaf, allow_unused=True, materialize_grads=True
            )
    return Point(leaf.detach(), value.detach(), gradient)


def _unchanged(z: Tensor) -> Tensor:
    return z


class Minimizer(ABC):
    """Moves every row of a batch to lower values, one step at a time."""

    @abstractmethod
    def step(self, at: Point, evaluate: Evaluate, rate: float) -> Point:
        """The next point, evaluated. `rate` scales the step; a change of it is a new phase."""


class Momentum(Minimizer):
    """Gradient descent with momentum, forgotten whenever the rate changes.

    Mahendran & Vedaldi's implementation resets it because momentum gathered at a large rate
    overshoots for many steps at a small one.

    Args:
        momentum: share of the last step that is kept.
        project: applied to z after each step.
    """

    def __init__(self, momentum: float, project: Callable[[Tensor], Tensor]) -> None:
        self.momentum, self.project = momentum, project
        self._rate: float | None = None
        self._velocity: Tensor | None = None

    def step(self, at: Point, evaluate: Evaluate, rate: float) -> Point:
        kept = self._velocity if rate == self._rate else None
        velocity = -rate * at.gradient
        if kept is not None:
            velocity = velocity + self.momentum * kept
        self._rate, self._velocity = rate, velocity
        return evaluate(self.project(at.z + velocity))


class Adam(Minimizer):
    """Adam (Kingma & Ba 2014, algorithm 1).

    Args:
        project: applied to z after each step.
    """

    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def __init__(self, project: Callable[[Tensor], Tensor] = _unchanged) -> None:
        self.project = project
        self._count = 0
        self._first: Tensor | None = None
        self._second: Tensor | None = None

    def step(self, at: Point, evaluate: Evaluate, rate: float) -> Point:
        return evaluate(self.project(at.z - self.move(at.gradient, rate)))

    def move(self, gradient: Tensor, rate: float) -> Tensor:
        """What the next step takes away, for the rows that are still there."""
        self._count += 1
        first = torch.zeros_like(gradient) if self._first is None else self._first
        second = torch.zeros_like(gradient) if self._second is None else self._second
        self._first = self.beta1 * first + (1 - self.beta1) * gradient
        self._second = self.beta2 * second + (1 - self.beta2) * gradient.square()
        mean = self._first / (1 - self.beta1**self._count)
        root = (self._second / (1 - self.beta2**self._count)).sqrt()
        return rate * mean / (root + self.epsilon)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows."""
        if self._first is not None and self._second is not None:
            self._first, self._second = self._first[rows], self._second[rows]


class LBFGS(Minimizer):
    """Limited-memory BFGS with a backtracking line search for each row (Nocedal & Wright 2006,
    algorithms 7.4 and 3.1).

    A row stays where it is from the step on at which the predicted decrease is below rounding, or
    not even steepest descent lowers its value.

    Nothing is projected: a clamp inside the line search would break its model of the objective.

    Args:
        first_step: Euclidean length of the very first trial step, times the rate.
        memory: pairs kept.
    """

    armijo, halvings = 1e-4, 20

    def __init__(self, first_step: float, memory: int = 10) -> None:
        self.first_step, self.memory = first_step, memory
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # step, change of gradient, 1/product
        self._scale: Tensor | None = None
        self._moving: Tensor | None = None

    def step(self, at: Point, evaluate: Evaluate, rate: float) -> Point:
        direction = self._direction(at.gradient, rate)
        slope = _dot(at.gradient, direction)
        size, best = torch.ones_like(at.value), at
        pending = -slope > torch.finfo(slope.dtype).eps * at.value.abs()
        if self._moving is not None:
            pending = pending & self._moving
        self._moving = pending
        if not pending.any():
            return at
        for _ in range(self.halvings):
            trial = evaluate(at.z + _rows(size, at.z) * direction)
            enough = trial.value <= at.value + self.armijo * size * slope
            best = _select(pending & enough, trial, best)
            pending = pending & ~enough
            if not pending.any():
                break
            size = torch.where(pending, size / 2, size)
        self._remember(at, best)
        return best

    def _direction(self, gradient: Tensor, rate: float) -> Tensor:
        tiny = torch.finfo(gradient.dtype).tiny
        plain = rate * self.first_step / _dot(gradient, gradient).sqrt().clamp_min(tiny)
        scale = plain if self._scale is None else torch.where(self._scale > 0, self._scale, plain)
        rest, weights = gradient, []
        for step, change, inverse in reversed(self._pairs):
            weights.append(inverse * _dot(step, rest))
            rest = rest - _rows(weights[-1], rest) * change
        rest = _rows(scale, rest) * rest
        for step, change, inverse in self._pairs:
            rest = rest + _rows(weights.pop() - inverse * _dot(change, rest), rest) * step
        return -rest

    def _remember(self, old: Point, new: Point) -> None:
        step, change = new.z - old.z, new.gradient - old.gradient
        scale = torch.zeros_like(old.value) if self._scale is None else self._scale
        fresh = scale == 0  # the step went down the plain gradient
        product, norm = _dot(step, change), _dot(change, change)
        stuck = (step == 0).flatten(1).all(1)
        if self._moving is not None:
            self._moving = self._moving & ~(stuck & fresh)
        useful = (product > torch.finfo(norm.dtype).eps * norm) & ~stuck
        inverse = torch.where(useful, 1 / product.where(useful, 1), 0)
        scale = torch.where(useful, product / norm.where(useful, 1), scale)
        self._scale = torch.where(stuck, 0, scale)
        self._pairs = [(s, y, torch.where(stuck, 0, i)) for s, y, i in self._pairs]
        self._pairs = [*self._pairs, (step, change, inverse)][-self.memory :]


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.dim() - 1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _select(rows: Tensor, first: Point, second: Point) -> Point:
    pairs = zip(first, second, strict=True)
    return Point(*(torch.where(_rows(rows, a), a, b) for a, b in pairs))


def better(first: Point, second: Point) -> Point:
    """Row by row the point of lower value; `second` where `first` is not a number."""
    return _select(first.value < second.value, first, second)
