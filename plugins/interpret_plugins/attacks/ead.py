"""Elastic-net attacks on deep networks."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import Batch, Classifier, Job, Plugin

from .attack import AimParams, Attack, AttackResult, drive
from .constants import Constants
from .minimal import MinimalAttempt, Unlimited
from .norms import L1, NORMS, per_row

_PARTS = 10  # of a round, between which progress is judged
_PROGRESS = 0.9999  # that the objective must fall below, as a share of its last value


class EADParams(AimParams):
    rule: Literal["en", "l1", "l2"] = Field(
        "en",
        description="Which success is kept: of the least elastic-net cost, or the nearest in l1 or "
        "l2.",
    )
    beta: float = Field(
        1e-2, ge=0, le=100, description="Weight of the L1 norm against the square of the L2 norm."
    )
    steps: int = Field(1000, ge=1, le=100_000, description="Steps for each constant.")
    rounds: int = Field(9, ge=1, le=100, description="Constants that are tried, by bisection.")
    step_size: float = Field(
        0.01, gt=0, le=10, description="First step size; it falls with the root of the steps left."
    )
    initial_constant: float = Field(
        1e-3, gt=0, le=1e6, description="First weight of the margin against the distance."
    )
    confidence: float = Field(
        0.0, ge=0, le=1e6, description="Margin of logits that a success must have."
    )
    abort_early: bool = Field(
        True,
        description="A row leaves a round where its objective has not fallen for a tenth of it.",
    )


class _ElasticNet:
    """`||delta||_2^2 + beta * ||delta||_1`, of changes as shares of the bounds' width."""

    def __init__(self, beta: float, width: float) -> None:
        self.beta, self.width = beta, width

    def size(self, delta: Tensor) -> Tensor:
        share = delta / self.width
        return share.square().flatten(1).sum(1) + self.beta * L1().size(share)


class EAD(Unlimited, Attack, Plugin[EADParams, AttackResult]):
    """The smallest change in a mix of L1 and L2, by accelerated shrinkage and thresholding.

    Minimise `c * max(confidence - margin(x + delta), 0) + ||delta||_2^2 + beta * ||delta||_1`
    within the bounds by FISTA: gradient steps on the first two terms from a point ahead, after
    which values that differ from the input by `beta` or less are set back to it and others come
    closer by `beta`. The smallest `c` that succeeds is sought by bisection for each row. Changes
    count as shares of the bounds' width, so that `c` and `beta` mean the same in all units. Under
    the rule `l1`, points that have succeeded take the step of `beta` alone, which ends nearer.

    Source: Chen, Sharma, Zhang, Yi & Hsieh 2018, "EAD: Elastic-Net Attacks to Deep Neural Networks
    via Adversarial Examples", algorithm 1; decision rules EN and L1.
    """

    name = "ead"

    def run(self, model: Classifier, batch: Batch, params: EADParams, job: Job) -> AttackResult:
        goal, norm = params.goal(batch.targets.labels), NORMS["l2" if params.rule == "l2" else "l1"]
        measure = _ElasticNet(params.beta, model.scale) if params.rule == "en" else norm
        attempt = MinimalAttempt.seek(model, batch, goal, norm, job, measure)
        drive(job, params.rounds * params.steps, _steps(attempt, params, job))
        return attempt.finish(job)


def _steps(attempt: MinimalAttempt, params: EADParams, job: Job) -> Iterator[None]:
    constants = Constants.begin(torch.full_like(attempt.margin, params.initial_constant))
    attempt.follow(attempt.open)
    won = torch.zeros_like(attempt.flat)
    for _ in range(params.rounds):
        rows = constants.sensible(attempt.open)
        won[rows] = False
        yield from _round(attempt, params, rows, constants.value[rows], won, job)
        constants.tried(rows, won[rows])


def _round(
    attempt: MinimalAttempt,
    params: EADParams,
    rows: Tensor,
    constant: Tensor,
    won: Tensor,
    job: Job,
) -> Iterator[None]:
    """FISTA for one constant of each row; successes are entered into `won`."""
    model, width = attempt.model, attempt.model.scale
    net = _ElasticNet(params.beta, width)
    x = ahead = attempt.batch.inputs[rows]
    last = torch.full_like(constant, torch.inf)
    for step in range(params.steps):
        if not len(rows):
            return
        region, goal = attempt.region.take(rows), attempt.goal.take(rows)
        start = region.centre
        gradient, logits = goal.ascend(model, ahead)
        attempt.saw(rows, gradient)
        missing = goal.margin(logits) < params.confidence
        weight = per_row(torch.where(missing, constant, 0), x)
        pull = 2 * (ahead - start) / width
        if params.rule == "l1":  # a success is only pulled back by the norm it is judged by
            pull = torch.where(per_row(missing, x), pull, 0)
        uphill = pull - weight * gradient * width
        size = params.step_size * (1 - step / params.steps) ** 0.5
        moved = (ahead - start) / width - size * uphill
        shrunk = moved.sign() * (moved.abs() - params.beta).clamp(min=0)
        # What is set back is the input exactly: rounding would count as a change in L0.
        after = torch.where(shrunk == 0, start, start + width * shrunk)
        after = after.clamp(region.lower, region.upper)
        ahead = after + step / (step + 3) * (after - x)
        x = after
        with torch.no_grad():
            logits = model(x)
        attempt.queries[rows] += 3
        margin, clear = goal.margin(logits), attempt.clear(rows, logits)
        told = ~clear | (margin >= params.confidence)
        attempt.offer(rows[told], x[told], logits[told])
        won[rows] |= clear & told
        if params.abort_early and step % max(1, params.steps // _PARTS) == 0:
            lost = (params.confidence - margin).clamp(min=0)
            value = net.size(x - start) + constant * lost
            keep = value <= _PROGRESS * last
            rows, x, ahead, constant, last = (
                part[keep] for part in (rows, x, ahead, constant, value)
            )
        job.preview(adversarial=attempt.best.clone)
        yield
