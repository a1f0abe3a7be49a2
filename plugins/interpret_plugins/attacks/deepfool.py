"""DeepFool."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field

from interpret_server.plugin import Batch, Classifier, Job, Plugin

from .attack import Attack, AttackResult, Attempt, GoalParams, drive
from .hyperplanes import reach
from .minimal import MinimalAttempt, Unlimited
from .planes import candidates, nearest_plane


class DeepFoolParams(GoalParams):
    norm: Literal["linf", "l2"] = Field("l2", description="Norm of the change.")
    steps: int = Field(50, ge=1, le=10_000, description="Steps at most.")
    overshoot: float = Field(
        0.02, ge=0, le=10, description="How far the sum of all steps is lengthened, as a share."
    )
    classes: int = Field(
        9, ge=1, le=1000, description="Boundaries that a step chooses from, the likeliest classes'."
    )


class DeepFool(Unlimited, Attack, Plugin[DeepFoolParams, AttackResult]):
    """Steps onto the nearest linearised boundary until the class changes.

    `x_{i+1} = x_i + r_i`, where `r_i` is the smallest step onto the hyperplane of the nearest of
    the boundaries to `classes` other classes within the bounds; what is tried is `x + (1 +
    overshoot) sum r_i`, clipped to the bounds. A row stops at its first success. A row that is
    misclassified to begin with is returned unchanged.

    Source: Moosavi-Dezfooli, Fawzi & Frossard 2016, "DeepFool: a simple and accurate method to
    fool deep neural networks", section 3.2 and algorithm 2; other norms: section 3.3.
    """

    name = "deepfool"

    def run(
        self, model: Classifier, batch: Batch, params: DeepFoolParams, job: Job
    ) -> AttackResult:
        attempt = MinimalAttempt.begin(model, batch, params, job)
        drive(job, params.steps, _steps(attempt, params))
        return attempt.finish(job)


def _steps(attempt: Attempt, params: DeepFoolParams) -> Iterator[None]:
    model, rows = attempt.model, attempt.open
    attempt.follow(rows)
    others = candidates(attempt.logits, attempt.goal.labels, params.classes)
    x = attempt.best[rows]
    for _ in range(params.steps):
        if not len(rows):
            return
        region, goal = attempt.region.take(rows), attempt.goal.take(rows)
        ones = torch.ones_like(x)
        plane = nearest_plane(model, x, goal, others[rows], region.norm, ones)
        attempt.saw(rows, plane.normal)
        x = reach(params.norm, x, plane.normal, -plane.value, region.lower, region.upper)
        beyond = region.centre + (1 + params.overshoot) * (x - region.centre)
        tried = beyond.clamp(region.lower, region.upper)
        with torch.no_grad():
            logits = model(tried)
        attempt.queries[rows] += 2 + (1 if goal.targeted else others.shape[1])
        attempt.offer(rows, tried, logits)
        left = ~attempt.clear(rows, logits)
        rows, x = rows[left], x[left]
        yield
