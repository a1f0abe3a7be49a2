"""The Square attack: random search over windows of the input, by scores alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from interpret_server.noise import generator, uniform_rows
from interpret_server.plugin import Batch, Classifier, Job, Plugin, Window

from .attack import Attack, AttackResult, Attempt, drive
from .losses import Goal
from .norms import per_row
from .region import Region
from .scores import BudgetParams, ByScores, ScoreLoss, score_loss
from .windows import Grid, twin_peaks

_SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # halvings, in 10,000 queries
_LENGTH = 10_000
_CHUNK = 64  # steps that are drawn at once


class SquareParams(BudgetParams):
    restarts: int = Field(
        1,
        ge=1,
        le=1000,
        description="Searches from new starts, which share the queries evenly.",
    )
    p: float = Field(
        0.8, gt=0, le=1, description="Share of the positions that the first windows cover."
    )

    @model_validator(mode="after")
    def _restarts_can_begin(self) -> Self:
        if self.restarts > self.budget:
            raise ValueError(f"{self.queries} queries are too few for {self.restarts} restarts")
        return self


class Square(ByScores, Attack, Plugin[SquareParams, AttackResult]):
    """Random search: changes of ever smaller windows are kept where the loss rises.

    `linf`: every channel of a window goes to the lowest or highest value allowed; the first point
    has stripes of them. `l2`, `l1`: the change that another window has is spent on this one, as a
    peak beside its negative; the first point is tiled with them. Windows are squares of pictures
    and segments of signals and vectors; they cover a share `p` of the positions at first, halved
    after 0.1, 0.5, 2, 5, 10, 20, 40, 60 and 80% of the queries. One query a step; a row stops at
    its first success and leaves the batch. A box given by `lower` and `upper` replaces the ball.

    Source: Andriushchenko, Croce, Flammarion & Hein 2020, "Square Attack: a query-efficient
    black-box adversarial attack via random search", section 3; L1: Croce & Hein 2021, "Mind the
    Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers".
    """

    name = "square"

    def run(self, model: Classifier, batch: Batch, params: SquareParams, job: Job) -> AttackResult:
        attempt = Attempt.begin(model, batch, params, job)
        drive(
            job,
            params.budget,
            square(attempt, params.budget, params.restarts, params.p, params.loss),
        )
        return attempt.finish(job)


def square(
    attempt: Attempt,
    queries: int,
    restarts: int = 1,
    p: float = 0.8,
    loss: ScoreLoss | None = None,
) -> Iterator[None]:
    """The steps of all searches, at most `queries`, each on the rows that are still open.

    Args:
        attempt: under way.
        queries: of a row, at most; shared evenly by the restarts.
        restarts: searches.
        p: share of the positions that the first windows cover.
        loss: that is ascended; see `BudgetParams`.
    """
    goal = attempt.goal
    goal = replace(goal, loss=loss or score_loss(targeted=goal.targeted))
    grid = Grid.of(attempt.model, tuple(attempt.batch.inputs.shape[1:]))
    moves = _MOVES[attempt.region.norm.name](grid)
    for restart in range(restarts):
        rows = attempt.open
        if not len(rows):
            return
        yield from _search(attempt, rows, goal.take(rows), moves, queries // restarts, p, restart)


def _search(
    attempt: Attempt,
    rows: Tensor,
    goal: Goal,
    moves: "_Moves",
    steps: int,
    p: float,
    restart: int,
) -> Iterator[None]:
    """One search of some rows, from a random start."""
    seeds = [attempt.batch.seeds[row] for row in rows.tolist()]
    region = attempt.region.take(rows)
    draws = _Draws(seeds, 2 * restart + 1, moves.width)
    nearby = attempt.model.nearby()
    trial, window = moves.start(region, seeds, 2 * restart), None
    best = trial.clone()
    top = torch.full_like(attempt.margin[rows], -torch.inf)
    for step in range(steps):
        if step:
            share = p / 2 ** _halvings((step - 1) / steps)
            trial, window = moves.propose(region, best, draws.next().to(best), share)
        logits = nearby.logits(trial, window, best)
        attempt.queries[rows] += 1
        value = goal.values(logits)
        better = torch.nonzero(value > top).squeeze(1)
        # A margin that has not grown has not won either.
        told = better if goal.loss == "margin" else torch.arange(len(rows), device=rows.device)
        if len(told):
            attempt.offer(rows[told], trial[told], logits[told])
            best[better], top[better] = trial[better], value[better]
            nearby.keep(better)
            won = torch.zeros_like(rows, dtype=torch.bool)
            won[told] = attempt.clear(rows[told], logits[told])
            if won.any():
                left = torch.nonzero(~won).squeeze(1)
                rows, best, top = rows[left], best[left], top[left]
                region, goal = region.take(left), goal.take(left)
                draws.keep(left.tolist())
                nearby.take(left)
        yield
        if not len(rows):
            return


def _halvings(done: float) -> int:
    """How often the windows have been halved after a share of the queries."""
    return sum(done * _LENGTH > begin for begin in _SCHEDULE)


class _Draws:
    """Uniform numbers of every row, from a generator of its own, drawn for many steps at once."""

    def __init__(self, seeds: Sequence[int], step: int, width: int) -> None:
        self._generators = [generator(seed, step) for seed in seeds]
        self._width, self._used = width, 0
        self._drawn = torch.empty(len(seeds), 0, width)

    def next(self) -> Tensor:
        """The numbers `(n, width)` of the next step."""
        if self._used == self._drawn.shape[1]:
            parts = [torch.rand(_CHUNK, self._width, generator=each) for each in self._generators]
            self._drawn, self._used = torch.stack(parts), 0
        self._used += 1
        return self._drawn[:, self._used - 1]

    def keep(self, rows: list[int]) -> None:
        """Go on with some rows alone."""
        self._generators = [self._generators[row] for row in rows]
        self._drawn = self._drawn[rows]


class Proposal(NamedTuple):
    """Points `(n, *input_shape)`, and the window that they differ in from those before, if one."""

    points: Tensor
    window: Window | None


class _Moves(ABC):
    """How points are made, for one geometry.

    Args:
        grid: of a row.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    @property
    def width(self) -> int:
        """Numbers that a proposal takes."""
        return 2 * len(self.grid.sizes) + self.grid.channels + 1

    @abstractmethod
    def start(self, region: Region, seeds: Sequence[int], step: int) -> Tensor:
        """The first points of a search."""

    @abstractmethod
    def propose(self, region: Region, x: Tensor, uniform: Tensor, share: float) -> Proposal:
        """Changes of `x` in windows that cover a share of the positions.

        Args:
            region: of the rows.
            x: `(n, *input_shape)`.
            uniform: `(n, width)` in [0, 1).
            share: in (0, 1].
        """


class _Corners(_Moves):
    """Values at the ends of what is allowed (Linf, and boxes)."""

    def start(self, region: Region, seeds: Sequence[int], step: int) -> Tensor:
        """Stripes along the first axis; single values where it is the only one."""
        grid = self.grid
        first = grid.sizes[0] if len(grid.sizes) > 1 else 1
        like = region.centre.new_empty(len(seeds), grid.channels, 1, grid.positions // first)
        up = (uniform_rows(seeds, step, like) < 0.5).expand(-1, -1, first, -1).flatten(2)
        return torch.where(grid.rows(up), region.upper, region.lower)

    def propose(self, region: Region, x: Tensor, uniform: Tensor, share: float) -> Proposal:
        grid = self.grid
        axes, sides = len(grid.sizes), grid.window(share)
        corner = grid.anywhere(sides, uniform[:, :axes])
        places = grid.places(sides, corner[:, None]).expand(-1, grid.channels, -1)
        up = uniform[:, axes : axes + grid.channels, None] < 0.5
        flat = grid.flat(x)
        lower, upper, old = (
            grid.flat(values).gather(2, places) for values in (region.lower, region.upper, x)
        )
        # What would change nothing goes the other way, rather than wasting a query.
        same = (torch.where(up, upper, lower) == old).flatten(1).all(1)
        new = torch.where(up ^ per_row(same, old), upper, lower)
        return Proposal(grid.rows(flat.scatter(2, places, new)), grid.seen(sides, corner))


class _Peaks(_Moves):
    """Peaks beside their negatives, which take over what other windows have spent (L2)."""

    order = 2

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.boost = grid.channels if self.order == 1 else 1
        self._shapes: dict[tuple[int, ...], Tensor] = {}

    def start(self, region: Region, seeds: Sequence[int], step: int) -> Tensor:
        """Windows of a fifth of each axis, side by side."""
        grid, centre = self.grid, region.centre
        sides, places = grid.tiles()
        like = centre.new_empty(len(seeds), grid.channels + 1, len(places))
        uniform = uniform_rows(seeds, step, like)
        change = self._shape(sides, uniform[:, 0]).unsqueeze(1) * _signs(uniform[:, 1:, :, None])
        flat = torch.zeros_like(grid.flat(centre))
        flat[:, :, places.flatten().to(flat.device)] = change.flatten(2)
        return self._first(region, grid.rows(flat))

    def propose(self, region: Region, x: Tensor, uniform: Tensor, share: float) -> Proposal:
        grid, order = self.grid, self.order
        axes, sides = len(grid.sizes), grid.window(share, least=3, odd=True)
        here, there = (
            grid.places(sides, grid.anywhere(sides, part[:, None])).expand(-1, grid.channels, -1)
            for part in (uniform[:, :axes], uniform[:, axes : 2 * axes])
        )
        flat = grid.flat(x - region.centre)
        rest = flat.scatter(2, here, 0).scatter(2, there, 0)
        mass, left = ((change.abs() ** order).sum(2, keepdim=True) for change in (flat, rest))
        spare = (per_row(region.radius, flat).to(flat) ** order - mass.sum(1, keepdim=True)).clamp(
            min=0
        )
        length = (spare / grid.channels + (mass - left).clamp(min=0)) ** (1 / order)
        shape = self._shape(sides, uniform[:, -1]).unsqueeze(1)
        new = shape * _signs(uniform[:, 2 * axes : -1, None]) + self._unit(flat.gather(2, here))
        new = self._unit(new) * length * self.boost
        return Proposal(self._next(region, grid.rows(rest.scatter(2, here, new))), None)

    def _first(self, region: Region, change: Tensor) -> Tensor:
        return _stretched(region, change, region.radius)

    def _next(self, region: Region, change: Tensor) -> Tensor:
        return _stretched(region, change, region.radius)

    def _unit(self, change: Tensor) -> Tensor:
        """`(n, C, P)` with every channel of unit norm."""
        size = torch.linalg.vector_norm(change, ord=self.order, dim=2, keepdim=True)
        return change / torch.where(size > 0, size, 1)

    def _shape(self, sides: tuple[int, ...], uniform: Tensor) -> Tensor:
        """A change of a window for each draw `(...)`, `(..., prod(sides))`."""
        if sides not in self._shapes:
            self._shapes[sides] = twin_peaks(sides, self.order).to(uniform)
        axes = len(sides)
        return self._shapes[sides][(uniform * axes).long().clamp(max=axes - 1)]


class _SharpPeaks(_Peaks):
    """The same for L1: changes are too long, and the projection makes them sparse."""

    order = 1

    def _first(self, region: Region, change: Tensor) -> Tensor:
        return _stretched(region, change, 2 * self.grid.channels * region.radius)

    def _next(self, region: Region, change: Tensor) -> Tensor:
        return region.project(region.centre + change)


_MOVES: Mapping[str, type[_Moves]] = {"linf": _Corners, "l2": _Peaks, "l1": _SharpPeaks}


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, torch.ones_like(uniform), -1)


def _stretched(region: Region, change: Tensor, length: Tensor) -> Tensor:
    """The points at distances `(n,)` in the directions of changes, projected."""
    size = region.norm.size(change)
    change = change * per_row(length.to(size) / torch.where(size > 0, size, 1), change)
    return region.project(region.centre + change)
