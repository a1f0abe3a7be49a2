"""Auto-PGD: projected gradient ascent that sets its own step sizes."""

from collections.abc import Generator
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from .attack import Attempt
from .losses import Goal
from .norms import L1, per_row
from .region import Region

_MOMENTUM = 0.75  # share of the new step
_RISING = 0.75  # share of the steps between two checkpoints that must have risen
_FIRST, _SHORTER, _LEAST = 0.22, 0.03, 0.06  # distances of checkpoints, as shares of all steps

_SPARSE = 0.2  # share of the values that the first steps in L1 move
_DENSER = 1.5  # moved values for each that the best point has changed
_FALLING = 0.95  # the number of changed values has fallen below this share
_SHRINK, _SMALLEST = 1.5, 10.0  # of a step in L1, and how far it may shrink
_PERIOD = 0.04  # of looks at it, as a share of all steps
_ROUNDING = 1e-3  # of a count that comes from a share


@dataclass
class _Climb:
    """Rows that are still attacked; every tensor has one row for each.

    Args:
        rows: their numbers in the batch.
        x, before: this point and the one before it.
        gradient, value: of the loss at `x`.
        best, slope, top: the point of the largest loss, its gradient and that loss.
        size: of a step; in units of the radius.
        risen: steps that rose since the last checkpoint.
        mark: the largest loss at the last checkpoint.
        halved: whether the step was halved there.
        share: of the values that a step in L1 moves.
        changed: how many values the best point had changed at the last look.
    """

    rows: Tensor
    x: Tensor
    before: Tensor
    gradient: Tensor
    value: Tensor
    best: Tensor
    slope: Tensor
    top: Tensor
    size: Tensor
    risen: Tensor
    mark: Tensor
    halved: Tensor
    share: Tensor
    changed: Tensor

    @classmethod
    def begin(cls, rows: Tensor, x: Tensor, gradient: Tensor, value: Tensor, size: float) -> Self:
        zeros = torch.zeros_like(value)
        return cls(
            rows=rows,
            x=x,
            before=x,
            gradient=gradient,
            value=value,
            best=x,
            slope=gradient,
            top=value,
            size=zeros + size,
            risen=zeros,
            mark=value,
            halved=zeros > 0,
            share=zeros + _SPARSE,
            changed=zeros + x[:1].numel(),
        )

    def keep(self, which: Tensor) -> Self:
        """The rows where the mask is true."""
        return type(self)(**{item.name: getattr(self, item.name)[which] for item in fields(self)})

    def arrive(self, x: Tensor, gradient: Tensor, value: Tensor) -> None:
        """Go on from `x`."""
        self.risen = self.risen + (value > self.value)
        self.before, self.x, self.gradient, self.value = self.x, x, gradient, value
        higher = value > self.top
        self.best = torch.where(per_row(higher, x), x, self.best)
        self.slope = torch.where(per_row(higher, x), gradient, self.slope)
        self.top = torch.where(higher, value, self.top)

    def return_to_best(self, which: Tensor) -> None:
        """Go on from the point of the largest loss."""
        mask = per_row(which, self.x)
        self.x = torch.where(mask, self.best, self.x)
        self.gradient = torch.where(mask, self.slope, self.gradient)
        self.value = torch.where(which, self.top, self.value)

    def check(self, steps: int) -> None:
        """Halve the step where the last `steps` have brought too little (section 3.1)."""
        stuck = ~self.halved & (self.mark >= self.top)
        reduce = (self.risen <= _RISING * steps) | stuck
        self.halved, self.mark = reduce, self.top
        self.size = torch.where(reduce, self.size / 2, self.size)
        self.return_to_best(reduce)
        self.risen = torch.zeros_like(self.risen)

    def recount(self, centre: Tensor) -> None:
        """Count the values that the best point has changed; that many a step in L1 moves."""
        self.changed = (self.best != centre).flatten(1).sum(1).to(self.size)
        self.share = self.changed / (centre[:1].numel() * _DENSER)

    def look(self, centre: Tensor) -> None:
        """Set how many values a step in L1 moves, and how far."""
        earlier = self.changed
        self.recount(centre)
        falling = self.changed < _FALLING * earlier
        smaller = (self.size / _SHRINK).clamp(min=1 / _SMALLEST)
        self.size = torch.where(falling, torch.ones_like(self.size), smaller)
        self.return_to_best(falling)


def climb(
    attempt: Attempt,
    rows: Tensor,
    goal: Goal,
    steps: int,
    start: Tensor,
    *,
    times: float = 1.0,
    passes: int = 1,
) -> Generator[None, None, Tensor]:
    """Ascend the loss of some rows; each yield follows one pass through the model.

    A row stops at its first success. The points of the largest margin are offered to `attempt`.
    Takes `steps + 1` steps at most.

    Args:
        attempt: that the rows belong to.
        rows: `(n,)`, to attack.
        goal: of these rows; its loss is ascended.
        steps: of each row.
        start: `(n, *input_shape)`, projected first.
        times: of the radius. Beyond 1 the points are none of the attack's: nothing is offered, and
            no row stops.
        passes: whose gradients and logits are averaged at every point, for a classifier that
            answers at random; all of them belong to one step.

    Returns:
        The points of the largest loss, of those rows that did not stop.

    Source: Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks", section 3 and algorithm 1; in L1: Croce & Hein 2021, "Mind the
    Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers".
    """
    sparse, inside = isinstance(attempt.region.norm, L1), times <= 1
    region = attempt.region.take(rows).widened(times)
    x = region.project(start)
    gradient, value, won = _score(attempt, rows, goal, x, passes, offer=inside)
    state = _Climb.begin(rows, x, gradient, value, 1.0 if sparse else 2.0)
    if sparse and (x != region.centre).any():
        state.recount(region.centre)
    state, region, goal = state.keep(~won), region.take(~won), goal.take(~won)
    yield
    distance = left = max(1, int(_FIRST * steps))
    for step in range(steps):
        if not len(state.rows):
            break
        x = _sparse_step(state, region) if sparse else _step(state, region, first=step == 0)
        gradient, value, won = _score(attempt, state.rows, goal, x, passes, offer=inside)
        state.arrive(x, gradient, value)
        left -= 1
        if sparse and (step + 1) % max(1, int(_PERIOD * steps)) == 0:
            state.look(region.centre)
        elif not sparse and not left:
            state.check(distance)
            distance = max(1, int(_LEAST * steps), distance - max(1, int(_SHORTER * steps)))
            left = distance
        if won.any():
            state, region, goal = state.keep(~won), region.take(~won), goal.take(~won)
        yield
    return state.best


def _score(
    attempt: Attempt, rows: Tensor, goal: Goal, x: Tensor, passes: int, *, offer: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient, the loss, and which rows have been won; the points are offered."""
    gradient, logits = goal.ascend(attempt.model, x)
    for _ in range(passes - 1):
        again = goal.ascend(attempt.model, x)
        gradient, logits = gradient + again.gradient, logits + again.logits
    logits = logits / passes
    attempt.queries[rows] += 2 * passes
    attempt.saw(rows, gradient)
    won = torch.zeros_like(rows, dtype=torch.bool)
    if offer:
        attempt.offer(rows, x, logits)
        won = attempt.clear(rows, logits)
    return gradient, goal.values(logits), won


def _step(state: _Climb, region: Region, *, first: bool) -> Tensor:
    """One step with momentum (section 3.1)."""
    size = per_row(state.size, state.x) * region.reach
    ahead = region.project(region.move(state.x, state.gradient, size))
    share = 1.0 if first else _MOMENTUM
    onward = state.x + share * (ahead - state.x) + (1 - share) * (state.x - state.before)
    return region.project(onward)


def _sparse_step(state: _Climb, region: Region) -> Tensor:
    """One step in L1 along the signs of the largest gradients."""
    size = state.gradient.abs().flatten(1)
    moved = (state.share * size.shape[1] + _ROUNDING).long().clamp(1, size.shape[1])
    threshold = size.sort(1, descending=True).values.gather(1, moved.unsqueeze(1) - 1)
    signs = torch.where(size >= threshold, state.gradient.flatten(1).sign(), 0)
    signs = signs / signs.abs().sum(1, keepdim=True).clamp(min=1)
    length = per_row(state.size, state.x) * region.reach
    return region.project(state.x + length * signs.reshape(state.x.shape))
