"""Projected gradient descent on the classifier's mistakes."""

from collections.abc import Iterator
from itertools import product
from typing import Self

import torch
from pydantic import Field, model_validator

from interpret_server.plugin import Batch, Classifier, Job, Plugin

from .attack import Attack, AttackParams, AttackResult, Attempt, drive


class PGDParams(AttackParams):
    steps: int = Field(40, ge=1, le=10_000, description="Gradient steps of each restart.")
    step_size: float | None = Field(
        None,
        gt=0,
        description="Length of a step in the norm, in the units of the bounds; null: 2.5 epsilon "
        "/ steps, or in a box 2.5 times half its width / steps, value by value.",
    )
    restarts: int = Field(
        1, ge=1, le=1000, description="How often a row that has not succeeded starts anew."
    )
    random_start: bool = Field(
        True, description="Start from a random point of the ball or box, not from the input."
    )

    @model_validator(mode="after")
    def _restarts_differ(self) -> Self:
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts above 1 need random_start, or all of them are the same")
        return self


class PGD(Attack, Plugin[PGDParams, AttackResult]):
    """Steps of steepest ascent on the loss, each projected back onto the ball and the bounds.

    `x_{t+1} = project(x_t + step_size * direction(grad loss(x_t)))`, where the direction of unit
    norm is the sign (`linf`), the unit vector (`l2`), or the signs of the hundredth of the values
    with the largest gradients (`l1`). Projections are exact on the ball cut with the bounds. A row
    stops at its first success and leaves the batch, so that later steps cost less; the point
    returned is that success, else the point with the largest margin of all steps and restarts. A
    row that is misclassified to begin with is returned unchanged, as a success that
    `initially_correct` excludes. Random starts come from the row's seed and the restart's number.

    Source: Madry, Makelov, Schmidt, Tsipras & Vladu 2017, "Towards Deep Learning Models Resistant
    to Adversarial Attacks", section 2.1; the default step size is that of its CIFAR-10
    experiments; L1: Tramèr & Boneh 2019 and Croce & Hein 2021.
    """

    name = "pgd"

    def run(self, model: Classifier, batch: Batch, params: PGDParams, job: Job) -> AttackResult:
        attempt = Attempt.begin(model, batch, params, job)
        drive(job, params.restarts * params.steps, _steps(attempt, params, job))
        return attempt.finish(job)


def _steps(attempt: Attempt, params: PGDParams, job: Job) -> Iterator[None]:
    model, rows = attempt.model, attempt.open
    x = attempt.best[rows]
    attempt.flat[rows] = True
    for restart, step in product(range(params.restarts), range(params.steps)):
        if not len(rows):
            return
        region = attempt.region.take(rows)
        if step == 0 and params.random_start:
            x = region.random([attempt.batch.seeds[row] for row in rows.tolist()], restart)
        gradient, logits = attempt.goal.take(rows).ascend(model, x)
        attempt.queries[rows] += 2
        attempt.flat[rows] &= ~gradient.flatten(1).any(1)
        attempt.offer(rows, x, logits)
        if params.step_size is None:
            size = region.reach * (2.5 / params.steps)
        else:
            size = torch.full_like(region.reach, params.step_size)
        x = region.project(region.move(x, gradient, size))
        still = ~attempt.clear(rows, logits)
        rows, x = rows[still], x[still]
        if step == params.steps - 1 and len(rows):
            with torch.no_grad():
                logits = model(x)
            attempt.queries[rows] += 1
            attempt.offer(rows, x, logits)
            rows = rows[~attempt.clear(rows, logits)]
        job.preview(adversarial=attempt.best.clone())
        yield
