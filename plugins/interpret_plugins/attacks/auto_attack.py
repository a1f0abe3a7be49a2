"""AutoAttack: several attacks in turn, each on the rows that those before have not won."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import Batch, Classifier, Job, Plugin, metric

from .apgd import auto_pgd, most_passes
from .attack import Attack, AttackResult, Attempt, RadiusParams, drive
from .fab import Walk, fab
from .fab import passes as fab_steps
from .losses import LossName
from .norms import L1
from .square import square

_STEPS = 100  # of a gradient attack
_TARGETS = 9  # classes that the targeted forms aim at, the likeliest first
_QUERIES = 5000  # of Square
_AVERAGED = 20  # passes at every point of a classifier that answers at random
_MANY = 5  # restarts, and classes that are aimed at in L1

Stage = Literal["apgd_cross_entropy", "apgd_dlr", "apgd_targeted", "fab", "fab_targeted", "square"]
Version = Literal["standard", "plus", "random"]

# Which attacks in turn; for Linf and L2, where L1 differs only in numbers.
_VERSIONS: dict[Version, tuple[Stage, ...]] = {
    "standard": ("apgd_cross_entropy", "apgd_targeted", "fab_targeted", "square"),
    "plus": (
        "apgd_cross_entropy", "apgd_dlr", "fab", "square", "apgd_targeted", "fab_targeted",
    ),
    "random": ("apgd_cross_entropy", "apgd_dlr"),
}  # fmt: skip


class AutoAttackParams(RadiusParams):
    version: Version = Field(
        "standard",
        description="standard: APGD on cross-entropy, APGD and FAB towards classes, Square; plus: "
        "also APGD on dlr and plain FAB, with 5 restarts; random: APGD on cross-entropy and dlr, "
        "each gradient the mean of 20 passes, for classifiers that answer at random.",
    )
    attacks: list[Stage] | None = Field(
        None,
        min_length=1,
        max_length=12,
        description="Which attacks in turn, instead of a version.",
    )
    restarts: int | None = Field(
        None, ge=1, le=1000, description="Of every attack; null: as published for the version."
    )
    steps: int = Field(_STEPS, ge=1, le=10_000, description="Steps of every gradient attack.")
    queries: int = Field(_QUERIES, ge=1, le=1_000_000, description="Queries of Square a restart.")


@dataclass(frozen=True)
class AutoAttackResult(AttackResult):
    won_by: Tensor = metric(
        "Position of the attack that won the row among those that were run, from 0; -1 where none "
        "did or none was needed."
    )


class _Plan(NamedTuple):
    """One attack of the series: its steps on an attempt, and how many there are at most."""

    run: Callable[[Attempt], Iterator[None]]
    most: int


class AutoAttack(Attack, Plugin[AutoAttackParams, AutoAttackResult]):
    """The customary evaluation of robustness: four attacks without settings, one after the other.

    APGD on cross-entropy (100 steps), APGD on the targeted dlr towards the 9 likeliest classes,
    FAB towards each of them, and Square (5,000 queries); a row leaves at its first success. In L1
    APGD takes 5 restarts and 5 classes. Robust accuracy is the share of all rows that are neither
    misclassified nor won. With fewer than 4 classes, for which the targeted dlr is not defined,
    the targeted form takes the difference of the two logits; dlr itself, undefined for 2 classes,
    gives way to the margin there: every classifier gets all attacks. A targeted request runs the
    same attacks towards its class. A box given by `lower` and `upper` replaces the ball.

    Source: Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks", section 6; L1: Croce & Hein 2021, "Mind the Box: l1-APGD for
    Sparse Adversarial Attacks on Image Classifiers".
    """

    name = "auto_attack"

    def run(
        self, model: Classifier, batch: Batch, params: AutoAttackParams, job: Job
    ) -> AutoAttackResult:
        attempt = Attempt.begin(model, batch, params, job)
        won_by = torch.full_like(attempt.margin, -1, dtype=torch.float64)
        plans = [_plan(stage, attempt, params) for stage in stages(params)]
        drive(job, sum(plan.most for plan in plans), _in_turn(attempt, plans, won_by))
        found = attempt.finish(job)
        won_by[~found.success] = -1
        values = {item.name: getattr(found, item.name) for item in fields(found)}
        return AutoAttackResult(**values, won_by=won_by)


def stages(params: AutoAttackParams) -> tuple[Stage, ...]:
    """The attacks that are run, in turn."""
    return _VERSIONS[params.version] if params.attacks is None else tuple(params.attacks)


def _in_turn(attempt: Attempt, plans: list[_Plan], won_by: Tensor) -> Iterator[None]:
    for position, plan in enumerate(plans):
        before = attempt.open
        if not len(before):
            return
        yield from plan.run(attempt)
        won_by[before[attempt.margin[before] > 0]] = position


def _plan(stage: Stage, attempt: Attempt, params: AutoAttackParams) -> _Plan:
    norm, goal, classes = attempt.region.norm, attempt.goal, attempt.model.classes
    sparse, steps = isinstance(norm, L1), params.steps
    often = _MANY if params.version == "plus" else 1
    targets = 0 if goal.targeted else min(_MANY if sparse else _TARGETS, classes - 1)
    passes = _AVERAGED if params.version == "random" else 1

    def apgd(loss: LossName, restarts: int, towards: int) -> _Plan:
        times = params.restarts or restarts
        most = times * max(1, towards) * most_passes(norm.name, steps)
        return _Plan(lambda at: auto_pgd(at, loss, steps, times, towards, passes), most)

    def boundary(restarts: int, towards: int) -> _Plan:
        walk, times = Walk(steps=steps), params.restarts or restarts
        return _Plan(lambda at: fab(at, walk, times, towards), fab_steps(walk, times, towards))

    match stage:
        case "apgd_cross_entropy":
            return apgd("cross_entropy", _MANY if sparse else often, 0)
        case "apgd_dlr":
            return apgd(_dlr(classes, towards=goal.targeted), _MANY if sparse else often, 0)
        case "apgd_targeted":
            return apgd(_dlr(classes, towards=True), 1, targets)
        case "fab":
            return boundary(often, 0)
        case "fab_targeted":
            return boundary(1, targets)
        case "square":
            times = params.restarts or 1
            most = times * params.queries
            return _Plan(lambda at: square(at, most, times), most)


def _dlr(classes: int, *, towards: bool) -> LossName:
    """The difference-of-logits ratio, or the margin where there are too few classes for it."""
    return "dlr" if classes >= (4 if towards else 3) else "margin"
