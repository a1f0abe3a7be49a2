"""Auto-PGD as an attack of its own."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from pydantic import Field
from torch import Tensor

from interpret_server.plugin import Batch, Classifier, InvalidRequest, Job, Plugin

from .attack import AscentParams, Attack, AttackResult, Attempt, drive
from .auto_pgd import climb
from .losses import Goal, LossName, classes_needed
from .norms import L1, NormName
from .planes import candidates

_RADII = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # in L1: times epsilon, and shares of the steps


class APGDParams(AscentParams):
    loss: LossName = Field(
        "cross_entropy",
        description="What is ascended, on logits: cross-entropy, the margin between the label's "
        "logit and the largest other one, or dlr, that margin over the spread of the largest "
        "logits (three classes or more; targeted or with `target_classes` four).",
    )
    steps: int = Field(100, ge=1, le=10_000, description="Gradient steps of each restart.")
    restarts: int = Field(
        1, ge=1, le=1000, description="How often a row that has not succeeded starts anew."
    )
    target_classes: int = Field(
        0,
        ge=0,
        le=1000,
        description="0: the loss leads away from the label. Else every restart is run towards each "
        "of that many other classes, the likeliest of the input first, while leaving the label is "
        "enough (the targeted form of AutoAttack).",
    )


class APGD(Attack, Plugin[APGDParams, AttackResult]):
    """Projected gradient ascent with momentum whose step size is halved where progress stalls.

    The step starts at `2 epsilon`. At checkpoints that come ever closer it is halved, and the
    search resumes at the best point, where fewer than three quarters of the steps have risen or
    the best loss has stood still since a checkpoint without halving. In `l1` steps follow the signs
    of the largest gradients, as many as the best point needs, and the search begins in balls of
    three and two times the radius. Only `steps` and `restarts` have to be chosen. A row stops at
    its first success and leaves the batch. A box given by `lower` and `upper` replaces the ball.

    Source: Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks", section 3 and algorithm 1; losses: section 4; L1: Croce & Hein
    2021, "Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers".
    """

    name = "apgd"

    def check(self, model: Classifier, params: APGDParams) -> None:
        super().check(model, params)
        if params.target_classes and params.targeted:
            raise InvalidRequest.field(
                "params.target_classes", "a targeted attack has its one class already"
            )
        needed = classes_needed(params.loss, towards=True)
        if params.target_classes and model.classes < needed:
            raise InvalidRequest.field(
                "params.target_classes",
                f"{params.loss} towards a class takes {needed} classes, and {model.name} has "
                f"{model.classes}",
            )

    def run(self, model: Classifier, batch: Batch, params: APGDParams, job: Job) -> AttackResult:
        attempt = Attempt.begin(model, batch, params, job)
        runs = params.restarts * max(1, params.target_classes)
        passes = runs * most_passes(params.norm, params.steps)
        targets = params.target_classes
        drive(job, passes, auto_pgd(attempt, params.loss, params.steps, params.restarts, targets))
        return attempt.finish(job)


def most_passes(norm: NormName, steps: int) -> int:
    """Passes through the model that one run of so many steps takes at most."""
    return steps + (len(_RADII) if norm == "l1" else 1)


def auto_pgd(
    attempt: Attempt,
    loss: LossName,
    steps: int,
    restarts: int = 1,
    target_classes: int = 0,
    passes: int = 1,
) -> Iterator[None]:
    """The steps of all runs, each on the rows that are still open.

    Args:
        attempt: under way.
        loss: that is ascended.
        steps: of each run.
        restarts: runs, or runs towards each class.
        target_classes: as in `APGDParams`.
        passes: that are averaged at every point.
    """
    attempt.follow(attempt.open)
    goal = replace(attempt.goal, loss=loss)
    others = candidates(attempt.logits, goal.labels, target_classes)
    towards: list[Tensor | None] = [*others.unbind(1)] or [None]
    for draw, (_, classes) in enumerate(product(range(restarts), towards)):
        rows = attempt.open
        if not len(rows):
            return
        aim = replace(goal, towards=classes).take(rows)
        yield from _run(attempt, rows, aim, steps, draw, passes)


def _run(
    attempt: Attempt, rows: Tensor, goal: Goal, steps: int, draw: int, passes: int
) -> Iterator[None]:
    """One run from a random start; in L1 it approaches the ball from larger ones."""
    seeds = [attempt.batch.seeds[row] for row in rows.tolist()]
    region = attempt.region.take(rows)
    if not isinstance(region.norm, L1):
        yield from climb(attempt, rows, goal, steps, region.random(seeds, draw), passes=passes)
        return
    start, left = region.widened(_RADII[0][0]).random(seeds, draw), steps
    for times, share in _RADII[:-1]:
        count = int(share * steps)
        start = yield from climb(attempt, rows, goal, count, start, times=times, passes=passes)
        left -= count
    yield from climb(attempt, rows, goal, left, start, passes=passes)
