"""SimBA: one direction of an orthonormal basis after the other, by scores alone."""

from collections.abc import Iterator, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from interpret_server.noise import generator
from interpret_server.plugin import Batch, Classifier, Job, Plugin

from .attack import Attack, AttackResult, Attempt, drive
from .norms import per_row
from .scores import BudgetParams, ByScores
from .windows import Grid

Basis = Literal["pixel", "dct"]

_FREQUENCIES = 0.25  # share of those of each axis


class SimBAParams(BudgetParams):
    norm: Literal["linf", "l2", "l1"] = Field("l2", description="Norm that epsilon is measured in.")
    basis: Basis = Field(
        "dct",
        description="Directions: single values, or the cosines of low frequencies of one channel.",
    )
    frequencies: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the frequencies of each axis that `dct` uses, the lowest; null: a "
        "quarter.",
    )
    step_size: float = Field(
        0.2, gt=0, le=10, description="Length of a step, as a share of the width of the bounds."
    )

    @model_validator(mode="after")
    def _pixels_have_no_frequencies(self) -> Self:
        if self.basis == "pixel" and self.frequencies is not None:
            raise ValueError("frequencies are of the basis dct alone")
        return self


class SimBA(ByScores, Attack, Plugin[SimBAParams, AttackResult]):
    """A step along a random direction, or else against it, is kept where the loss rises.

    The directions are those of an orthonormal basis in random order, none twice before all had
    their turn. A step is projected onto the ball and the bounds; one that changes nothing costs no
    query. A row stops at its first success and leaves the batch; each row walks on its own.

    Source: Guo, Gardner, You, Wilson & Weinberger 2019, "Simple Black-box Adversarial Attacks",
    section 3 and algorithm 1; without its bound the change would have L2 norm `step_size` times
    the root of the steps kept.
    """

    name = "simba"

    def run(self, model: Classifier, batch: Batch, params: SimBAParams, job: Job) -> AttackResult:
        attempt = Attempt.begin(model, batch, params, job)
        grid = Grid.of(model, tuple(batch.inputs.shape[1:]))
        share = (params.frequencies or _FREQUENCIES) if params.basis == "dct" else None
        basis = _Basis(grid, batch.seeds, params.budget, share)
        walk = _walk(attempt, basis, params.budget, params.step_size * model.scale)
        drive(job, 2 * params.budget + 1, walk)
        return attempt.finish(job)


def _walk(attempt: Attempt, basis: "_Basis", queries: int, size: float) -> Iterator[None]:
    """The steps of the open rows; each has its own place in its order of directions."""
    rows = attempt.open
    region, goal, x = attempt.region.take(rows), attempt.goal.take(rows), attempt.best[rows]
    top = goal.values(attempt.logits[rows])
    # A start that is not the input itself is judged by a query of its own.
    elsewhere = (x != attempt.batch.inputs[rows]).flatten(1).any(1)
    top = torch.where(elsewhere, -torch.inf, top)
    turn, back = torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool)
    spent = torch.zeros_like(rows)
    while len(rows):
        trial = basis.directions(rows, turn).to(x) * size
        trial = region.project(x + torch.where(per_row(back, x), -trial, trial))
        first = torch.isinf(top)
        trial = torch.where(per_row(first, x), x, trial)
        moved = first | (trial != x).flatten(1).any(1)
        better = torch.zeros_like(moved)
        won = torch.zeros_like(moved)
        if moved.any():
            asked = torch.nonzero(moved).squeeze(1)
            with torch.no_grad():
                logits = attempt.model(trial[asked])
            attempt.queries[rows[asked]] += 1
            spent[asked] += 1
            attempt.offer(rows[asked], trial[asked], logits)
            value = goal.take(asked).values(logits)
            better[asked] = value > top[asked]
            top[asked] = torch.maximum(value, top[asked])
            won[asked] = attempt.clear(rows[asked], logits)
        x = torch.where(per_row(better, x), trial, x)
        # Kept, or tried both ways: the next direction. The first query has tried none.
        over = (better | back) & ~first
        back = ~over & ~first
        turn = turn + over
        left = torch.nonzero(~won & (spent < queries) & (turn < basis.turns)).squeeze(1)
        rows, x, top, turn, back, spent = (part[left] for part in (rows, x, top, turn, back, spent))
        region, goal = region.take(left), goal.take(left)
        yield


class _Basis:
    """An orthonormal basis of the inputs, in an order of each row's own.

    Args:
        grid: of a row.
        seeds: of the rows.
        turns: how many directions are asked for, at most.
        share: of the frequencies of each axis; None: single values.
    """

    def __init__(self, grid: Grid, seeds: Sequence[int], turns: int, share: float | None) -> None:
        self._grid, self.turns = grid, turns
        self._waves: list[Tensor] | None = None
        counts = [grid.positions]
        if share is not None:
            counts = [max(1, round(share * size)) for size in grid.sizes]
            self._waves = [_cosines(*pair) for pair in zip(grid.sizes, counts, strict=True)]
        self._counts = (grid.channels, *counts)
        self._orders = torch.stack([self._order(seed) for seed in seeds])

    def _order(self, seed: int) -> Tensor:
        total = torch.Size(self._counts).numel()
        source = generator(seed, 0)
        rounds = -(-self.turns // total)
        orders = [torch.randperm(total, generator=source) for _ in range(rounds)]
        return torch.cat(orders)[: self.turns].to(torch.int32)

    def directions(self, rows: Tensor, turn: Tensor) -> Tensor:
        """The directions `(n, *input_shape)` of unit length that rows try at their turns."""
        numbers = self._orders[rows.cpu(), turn.cpu()].long()
        channel, *places = torch.unravel_index(numbers, self._counts)
        flat = torch.zeros(len(rows), self._grid.channels, self._grid.positions)
        row = torch.arange(len(rows))
        if self._waves is None:
            flat[row, channel, places[0]] = 1
        else:
            wave = torch.ones(len(rows), 1)
            for axis, place in zip(self._waves, places, strict=True):
                wave = (wave.unsqueeze(2) * axis[place].unsqueeze(1)).flatten(1)
            flat[row, channel] = wave
        return self._grid.rows(flat)


def _cosines(size: int, count: int) -> Tensor:
    """The first vectors `(count, size)` of the orthonormal discrete cosine transform (DCT-II)."""
    frequency = torch.arange(count, dtype=torch.float64).unsqueeze(1)
    place = torch.arange(size, dtype=torch.float64) + 0.5
    waves: Tensor = torch.cos(torch.pi / size * frequency * place) * (2 / size) ** 0.5
    waves[0] /= 2**0.5
    return waves.to(torch.float32)
