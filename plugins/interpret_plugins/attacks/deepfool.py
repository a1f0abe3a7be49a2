"""DeepFool."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field

from interpret_server.plugin import Batch, Classifier, Job, Plugin

from .attack import Attack, AttackResult, Attempt, GoalParams, drive
from .minimal import MinimalAttempt, Unlimited
from .norms import per_row
from .planes import candidates, dual_size, nearest_plane

_TINY = 1e-30
_BEYOND = 2e-4  # that a step goes further, as a share of the way so far: or it never arrives


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

    `x_{i+1} = x + (1 + overshoot) sum_{j <= i} r_j`, clipped to the bounds, where `r_i` is the
    smallest step from `x_i` onto the hyperplane of the nearest of the boundaries to `classes` other
    classes. What the bounds take away, later steps make up for. A row stops at its first success. A
    row that is misclassified to begin with is returned unchanged.

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
    total = torch.zeros_like(x)
    for _ in range(params.steps):
        if not len(rows):
            return
        region, goal = attempt.region.take(rows), attempt.goal.take(rows)
        norm, ones = region.norm, torch.ones_like(x)
        plane = nearest_plane(model, x, goal, others[rows], norm, ones)
        attempt.saw(rows, plane.normal)
        slope = dual_size(norm, plane.normal, ones).clamp(min=_TINY)
        size = (-plane.value).clamp(min=0) / slope + _BEYOND * norm.size(total)
        total = total + per_row(size, x) * norm.direction(plane.normal)
        x = (region.centre + (1 + params.overshoot) * total).clamp(region.lower, region.upper)
        with torch.no_grad():
            logits = model(x)
        attempt.queries[rows] += 2 + (1 if goal.targeted else others.shape[1])
        attempt.offer(rows, x, logits)
        left = ~attempt.clear(rows, logits)
        rows, x, total = rows[left], x[left], total[left]
        yield
