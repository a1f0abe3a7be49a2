"""Projected gradient ascent, which PGD, BIM and MI-FGSM are forms of."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch

from interpret_server.plugin import Job

from .attack import Attempt
from .norms import per_row


@dataclass(frozen=True)
class Ascent:
    """How the steps go.

    Args:
        steps: of each restart.
        step_size: in the norm, in the units of the bounds; None: `travel` reaches in all steps.
        travel: how far all default steps lead together, in units of the region's reach.
        restarts: from new random starts.
        random_start: start from a random point of the region, not from the input.
        decay: share of the gathered gradients that each step keeps; None: steps follow the last
            gradient alone.
    """

    steps: int
    step_size: float | None
    travel: float
    restarts: int = 1
    random_start: bool = False
    decay: float | None = None

    @property
    def passes(self) -> int:
        """Most passes through the model."""
        return self.restarts * self.steps


def projected_ascent(attempt: Attempt, ascent: Ascent, job: Job) -> Iterator[None]:
    """The steps, one pass through the model each, on the rows that have not succeeded."""
    model, rows = attempt.model, attempt.open
    x = attempt.best[rows]
    region, goal = attempt.region.take(rows), attempt.goal.take(rows)
    gathered = torch.zeros_like(x)
    attempt.follow(rows)
    for restart, step in product(range(ascent.restarts), range(ascent.steps)):
        if not len(rows):
            return
        if step == 0 and ascent.random_start:
            x = region.random([attempt.batch.seeds[row] for row in rows.tolist()], restart)
            gathered = torch.zeros_like(x)
        gradient, logits = goal.ascend(model, x)
        attempt.queries[rows] += 2
        attempt.saw(rows, gradient)
        attempt.offer(rows, x, logits)
        if ascent.step_size is None:
            size = region.reach * (ascent.travel / ascent.steps)
        else:
            size = torch.full_like(region.reach, ascent.step_size)
        if ascent.decay is not None:
            length = gradient.flatten(1).abs().mean(1)
            unit = gradient / per_row(torch.where(length > 0, length, 1), gradient)
            gradient = gathered = ascent.decay * gathered + unit
        x = region.project(region.move(x, gradient, size))
        won = attempt.clear(rows, logits)
        if step == ascent.steps - 1 and not won.all():
            left = torch.nonzero(~won).squeeze(1)
            with torch.no_grad():
                logits = model(x[left])
            attempt.queries[rows[left]] += 1
            attempt.offer(rows[left], x[left], logits)
            won[left] = attempt.clear(rows[left], logits)
        if won.any():
            still = ~won
            rows, x, gathered = rows[still], x[still], gathered[still]
            region, goal = region.take(still), goal.take(still)
        job.preview(adversarial=attempt.best.clone)
        yield
