"""Adam on the loss less a penalty on the change."""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import Batch, Classifier, Job, Plugin

from ..synthesis.descent import Adam
from .attack import Attack, AttackResult, GoalParams, drive
from .losses import Goal, LossName
from .minimal import MinimalAttempt, Unlimited
from .norms import NORMS, ConvexName, per_row


class PenaltyAdamParams(GoalParams):
    norm: ConvexName = Field(
        "l2", description="What is penalised: the square of the change in l2, its size in others."
    )
    loss: LossName = Field(
        "cross_entropy",
        description="What is ascended, on logits: cross-entropy as the log of the odds against the "
        "label, the margin between the label's logit and the largest other one, or dlr, that "
        "margin over the spread of the largest logits (three classes or more, targeted four).",
    )
    penalty: float = Field(
        1.0,
        ge=0,
        le=1e6,
        description="Weight lambda of the penalty; the change counts as a share of the bounds' "
        "width.",
    )
    steps: int = Field(200, ge=1, le=10_000, description="Gradient steps.")
    learning_rate: float = Field(
        0.02, gt=0, le=1, description="Adam's step, as a share of the bounds' width."
    )

    def goal(self, labels: Tensor) -> Goal:
        return Goal(labels, self.targeted, self.loss)


class PenaltyAdam(Unlimited, Attack, Plugin[PenaltyAdamParams, AttackResult]):
    """Adam on `loss(f(x*), y) - penalty * d(x, x*)`, clipped to the bounds.

    `d` is `||x* - x||^2` in `l2`, the norm itself in `l1` and `linf`, of changes as shares of the
    bounds' width. The penalty is never negative, so that distance is never rewarded. The nearest
    success in the norm is returned.

    Source: the penalised form of Szegedy, Zaremba, Sutskever, Bruna, Erhan, Goodfellow & Fergus
    2013, "Intriguing properties of neural networks", section 4.1, with a fixed weight and Adam
    (Kingma & Ba 2014) in place of L-BFGS.
    """

    name = "penalty_adam"

    def run(
        self, model: Classifier, batch: Batch, params: PenaltyAdamParams, job: Job
    ) -> AttackResult:
        attempt = MinimalAttempt.begin(model, batch, params, job)
        drive(job, params.steps, _steps(attempt, params, job))
        return attempt.finish(job)


def _steps(attempt: MinimalAttempt, params: PenaltyAdamParams, job: Job) -> Iterator[None]:
    model, rows, adam = attempt.model, attempt.open, Adam()
    if not len(rows):
        return
    region, goal = attempt.region.take(rows), attempt.goal.take(rows)
    start = x = attempt.best[rows]
    attempt.follow(rows)
    for _ in range(params.steps):
        gradient, logits = goal.ascend(model, x)
        attempt.queries[rows] += 2
        attempt.saw(rows, gradient)
        attempt.offer(rows, x, logits)
        pull = params.penalty * _slope(params.norm, (x - start) / model.scale)
        move = adam.move(pull - gradient * model.scale, params.learning_rate * model.scale)
        x = (x - move).clamp(region.lower, region.upper)
        job.preview(adversarial=attempt.best.clone)
        yield
    with torch.no_grad():
        attempt.offer(rows, x, model(x))
    attempt.queries[rows] += 1


def _slope(norm: ConvexName, delta: Tensor) -> Tensor:
    """The penalty differentiated by the change."""
    if norm == "l2":
        return 2 * delta
    if norm == "l1":
        return delta.sign()
    size = NORMS["linf"].size(delta)
    return torch.where(delta.abs() == per_row(size, delta), delta.sign(), 0)
