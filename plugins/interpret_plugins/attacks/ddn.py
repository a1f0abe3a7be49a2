"""The decoupled direction and norm attack."""

import math
from collections.abc import Iterator

import torch
from pydantic import Field

from interpret_server.plugin import Batch, Classifier, Job, Plugin

from .attack import AimParams, Attack, AttackResult, drive
from .minimal import MinimalAttempt, Unlimited
from .norms import NORMS, per_row

_SLOWEST = 0.01  # the last step, as a share of the first


class DDNParams(AimParams):
    steps: int = Field(100, ge=1, le=10_000, description="Gradient steps.")
    step_size: float = Field(
        1.0, gt=0, le=100, description="Length of the first step in L2, as a share of the bounds' "
        "width; it falls to a hundredth along a cosine.",
    )  # fmt: skip
    initial_radius: float = Field(
        1.0, gt=0, le=1000, description="First radius in L2, as a share of the bounds' width."
    )
    gamma: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Share by which a success shrinks the radius and a failure widens it.",
    )


class DDN(Unlimited, Attack, Plugin[DDNParams, AttackResult]):
    """The smallest change in L2, by steps on a sphere that shrinks while they succeed.

    A step along the unit gradient sets the direction, `d = delta + step_size * grad loss / ||grad
    loss||_2`; the radius alone sets the length, `delta = radius * d / ||d||_2`, clipped to the
    bounds, where `radius` is multiplied by `1 - gamma` after a success and `1 + gamma` after a
    failure. There is no penalty to be weighed, so a hundred steps go far. The nearest success is
    returned.

    Source: Rony, Hafemann, Oliveira, Ben Ayed, Sabourin & Granger 2019, "Decoupling Direction and
    Norm for Efficient Gradient-Based L2 Adversarial Attacks and Defenses", algorithm 1, without its
    rounding to pixel values.
    """

    name = "ddn"

    def run(self, model: Classifier, batch: Batch, params: DDNParams, job: Job) -> AttackResult:
        goal = params.goal(batch.targets.labels)
        attempt = MinimalAttempt.seek(model, batch, goal, NORMS["l2"], job)
        drive(job, params.steps, _steps(attempt, params, job))
        return attempt.finish(job)


def _steps(attempt: MinimalAttempt, params: DDNParams, job: Job) -> Iterator[None]:
    model, rows = attempt.model, attempt.open
    if not len(rows):
        return
    region, goal, norm = attempt.region.take(rows), attempt.goal.take(rows), attempt.norm
    start = attempt.best[rows]
    delta = torch.zeros_like(start)
    radius = torch.full_like(attempt.margin[rows], params.initial_radius * model.scale)
    attempt.follow(rows)
    for step in range(params.steps):
        x = (start + delta).clamp(region.lower, region.upper)
        gradient, logits = goal.ascend(model, x)
        attempt.queries[rows] += 2
        attempt.saw(rows, gradient)
        attempt.offer(rows, x, logits)
        slow = (1 + math.cos(math.pi * step / params.steps)) / 2
        size = params.step_size * model.scale * (_SLOWEST + (1 - _SLOWEST) * slow)
        ahead = x - start + size * norm.direction(gradient)
        won = attempt.clear(rows, logits)
        radius = radius * torch.where(won, 1 - params.gamma, 1 + params.gamma)
        delta = per_row(radius, ahead) * norm.direction(ahead)
        job.preview(adversarial=attempt.best.clone)
        yield
    x = (start + delta).clamp(region.lower, region.upper)
    with torch.no_grad():
        attempt.offer(rows, x, model(x))
    attempt.queries[rows] += 1
