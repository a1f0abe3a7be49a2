"""Gradients estimated from scores, and the ascent along them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from interpret_server.noise import generator
from interpret_server.plugin import Job

from .attack import Attempt
from .losses import Goal
from .region import Region


class Directions(ABC):
    """Directions in which the loss is probed on both sides.

    A row's directions are asked for in order: all of one step before the next.
    """

    @abstractmethod
    def draw(self, row: int, number: int) -> Tensor:
        """One direction.

        Args:
            row: of the batch.
            number: of the direction in its step, from 0.

        Returns:
            Of `input_shape`.
        """


class RandomDirections(Directions):
    """Directions from a generator of each row's own.

    Args:
        seeds: of the rows.
        shape: of a row.
        sample: from a shape and a generator to numbers.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        sample: Callable[[Sequence[int], torch.Generator], Tensor],
    ) -> None:
        self._generators = [generator(seed, 0) for seed in seeds]
        self._shape, self._sample = tuple(shape), sample

    def draw(self, row: int, number: int) -> Tensor:
        return self._sample(self._shape, self._generators[row])


def normal(shape: Sequence[int], source: torch.Generator) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(tuple(shape), generator=source)


def signs(shape: Sequence[int], source: torch.Generator) -> Tensor:
    """Numbers of which each is as likely 1 as -1."""
    return torch.randint(0, 2, tuple(shape), generator=source) * 2.0 - 1.0


@dataclass(frozen=True)
class Probing:
    """How an ascent spends its queries.

    Args:
        queries: of a row, at most.
        directions: of a step, at most; two queries each.
        width: how far a probe lies from its point, in lengths of the direction.
        max_rows: that go through the model at once.
    """

    queries: int
    directions: int
    width: float
    max_rows: int

    @classmethod
    def of(cls, job: Job, queries: int, directions: int, width: float) -> Self:
        """The probing of a job's size, with no more directions than the queries allow."""
        return cls(queries, max(1, min(directions, (queries - 1) // 2)), width, job.max_rows)

    @property
    def steps(self) -> int:
        """Steps of a row, at most; the last may have fewer directions."""
        whole, rest = divmod(self.queries, 2 * self.directions + 1)
        return whole + (rest > 2)

    def passes(self, rows: int) -> int:
        """Most passes through the model."""
        each = max(1, self.max_rows // 2)
        return self.steps * (1 - (-rows * self.directions // each))


Step = Callable[[Tensor, Region, Tensor, Tensor], Tensor]
"""From rows `(n,)`, their region, points and gradients `(n, *input_shape)` to the next points."""


def ascend_by_probes(
    attempt: Attempt, goal: Goal, directions: Directions, probing: Probing, step: Step
) -> Iterator[None]:
    """Ascend the loss of the open rows along estimated gradients; a yield follows each pass.

    Args:
        attempt: under way.
        goal: of the batch; its loss is ascended.
        directions: that are probed.
        probing: how the queries are spent.
        step: takes the steps.
    """
    rows = attempt.open
    x = attempt.best[rows]
    attempt.flat[rows] = True
    left = probing.queries
    while len(rows):
        count = min(probing.directions, (left - 1) // 2)
        if count < 1:
            return
        gradient = yield from _estimate(attempt, goal, rows, x, directions, count, probing)
        attempt.saw(rows, gradient)
        x = step(rows, attempt.region.take(rows), x, gradient)
        with torch.no_grad():
            logits = attempt.model(x)
        attempt.queries[rows] += 1
        left -= 2 * count + 1
        attempt.offer(rows, x, logits)
        still = ~attempt.clear(rows, logits)
        rows, x = rows[still], x[still]
        yield


def _estimate(
    attempt: Attempt,
    goal: Goal,
    rows: Tensor,
    x: Tensor,
    directions: Directions,
    count: int,
    probing: Probing,
) -> Generator[None, None, Tensor]:
    """The gradient of each row's loss by central differences.

    It is `sum_j (f(x + h u_j) - f(x - h u_j)) / (2 h) u_j / ||u_j||^2`: exact where the directions
    are an orthogonal basis and the loss is linear; the projection onto random ones otherwise, up
    to a factor.
    """
    gradient = torch.zeros_like(x)
    width, total = probing.width, len(rows) * count
    pairs = max(1, probing.max_rows // 2)
    for begin in range(0, total, pairs):
        place = torch.arange(begin, min(begin + pairs, total), device=x.device)
        which, number = place // count, place % count
        asked = zip(rows[which].tolist(), number.tolist(), strict=True)
        ways = torch.stack([directions.draw(row, each) for row, each in asked]).to(x)
        points = torch.cat([x[which] + width * ways, x[which] - width * ways])
        with torch.no_grad():
            logits = torch.cat(
                [attempt.model(part) for part in torch.split(points, probing.max_rows)]
            )
        values = goal.take(rows[which].repeat(2)).values(logits)
        ahead, behind = values.chunk(2)
        weight = (ahead - behind) / (2 * width * ways.flatten(1).square().sum(1))
        slopes = ways * weight.reshape(-1, *[1] * (x.dim() - 1))
        gradient.index_add_(0, which, slopes)
        attempt.queries.index_add_(0, rows[which], torch.full_like(which, 2))
        yield
    return gradient


class Momentum:
    """Steps of steepest ascent along a moving average of the gradients.

    Args:
        attempt: under way.
        size: of a step, in the units of the bounds; None: a share of the region's reach.
        share: of the reach.
        momentum: weight of the average so far, in [0, 1).
    """

    def __init__(self, attempt: Attempt, size: float | None, share: float, momentum: float) -> None:
        self._size, self._share, self._momentum = size, share, momentum
        self._average = torch.zeros_like(attempt.best)

    def __call__(self, rows: Tensor, region: Region, x: Tensor, gradient: Tensor) -> Tensor:
        average = torch.lerp(gradient, self._average[rows], self._momentum)
        self._average[rows] = average
        return region.project(region.move(x, average, self.length(region)))

    def length(self, region: Region) -> Tensor:
        """Of a step, value by value."""
        if self._size is None:
            return region.reach * self._share
        return torch.full_like(region.reach, self._size)
