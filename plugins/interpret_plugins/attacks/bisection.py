"""The smallest radius at which an attack succeeds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.bound import BoundPlugin
from interpret_server.plugin import (
    Batch,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Method,
    Params,
    Plugin,
    metric,
)

from .attack import AttackResult, RadiusParams, drive
from .crafting import craft
from .decisions import AnyClassifier
from .minimal import MinimalAttempt, Unlimited
from .norms import L0, Norm

_FACTOR = 2.0  # by which radii grow while nothing has won, and shrink while nothing has failed


class BisectionParams(Params):
    attack: Method = Field(
        Method(plugin="pgd"),
        description="An attack within a radius: its name, or its name and parameters. Its `epsilon`"
        ", or the one that stands for null, is tried first.",
    )
    steps: int = Field(16, ge=1, le=1000, description="Runs of the attack at most.")
    tolerance: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="A row is done where the largest radius that failed is within this share of "
        "the smallest success.",
    )


@dataclass(frozen=True)
class BisectionResult(AttackResult):
    largest_failed: Tensor = metric(
        "Largest radius at which the attack failed below `smallest_won`; 0 where it never did."
    )
    smallest_won: Tensor = metric(
        "Distance of `adversarial`, in the attack's norm; -1 where the attack never won."
    )
    runs: Tensor = metric("Runs of the attack on the row.")


class Bisection(Unlimited, AnyClassifier, Plugin[BisectionParams, BisectionResult]):
    """The smallest change that an attack within a radius finds, by bisection over the radius.

    The attack runs at its own `epsilon` first; the radius is doubled until it wins or the ball
    holds everything within the bounds, or halved until it fails, and bisected from there, each row
    by itself and all in one batch. A success nearer than its radius counts by its distance. Whole
    radii are tried in `l0`. Failure at a radius is the attack's, not a proof: the smallest distance
    lies below `smallest_won`, and above `largest_failed` only as far as the attack is to be
    trusted.

    Source: Rauber, Brendel & Bethge 2017, "Foolbox: A Python toolbox to benchmark the robustness of
    machine learning models", which searches the strength of such attacks for the smallest change.
    """

    name = "bisection"
    uses: ClassVar[Mapping[str, Kind]] = {"attack": Kind.ATTACK}

    def run(
        self, model: Classifier, batch: Batch, params: BisectionParams, job: Job
    ) -> BisectionResult:
        attack = _without_radius(job.plugin(params.attack), job)
        settings: RadiusParams = attack.params
        first = job.plugin(params.attack).params.epsilon
        norm = settings.geometry(model)
        goal = settings.goal(batch.targets.labels.to(batch.inputs.device))
        attempt = MinimalAttempt.seek(model, batch, goal, norm, job)
        search = _Search.begin(attempt, norm, norm.usual(model.scale) if first is None else first)
        drive(job, params.steps, search.steps(attack, params))
        found = attempt.finish(job)
        won = torch.isfinite(attempt.distance)
        return BisectionResult(
            **vars(found),
            largest_failed=search.failed,
            smallest_won=torch.where(won, attempt.distance, -1.0),
            runs=search.runs,
        )


def _without_radius(attack: BoundPlugin, job: Job) -> BoundPlugin:
    """The attack as it is when every row brings its own radius."""
    if not isinstance(attack.params, RadiusParams) or "epsilon" not in attack.plugin.tensors:
        raise InvalidRequest.field(
            f"{attack.field}.plugin", f"{attack.plugin.name} takes no radius for each row"
        )
    # Balls shrink as far as they must, which is no mistake of units.
    params = attack.params.model_copy(update={"epsilon": None, "confirm_small_epsilon": True})
    return BoundPlugin(attack.plugin, params, job, attack.field)


@dataclass
class _Search:
    """The radii of every row, all float64.

    Args:
        attempt: keeps the nearest successes.
        norm: that radii are measured in.
        radius: `(N,)`, tried next.
        failed: `(N,)`, the largest that has failed.
        most: `(N,)`, of the ball that holds everything within the bounds.
        runs: `(N,)`, of the attack so far.
    """

    attempt: MinimalAttempt
    norm: Norm
    radius: Tensor
    failed: Tensor
    most: Tensor
    runs: Tensor

    @classmethod
    def begin(cls, attempt: MinimalAttempt, norm: Norm, first: float) -> "_Search":
        inputs = attempt.batch.inputs.double()
        lower, upper = attempt.model.bounds
        most = norm.size(torch.maximum(inputs - lower, upper - inputs))
        zeros = torch.zeros_like(most)
        return cls(attempt, norm, torch.minimum(zeros + first, most), zeros, most, zeros.clone())

    def steps(self, attack: BoundPlugin, params: BisectionParams) -> Iterator[None]:
        """One run of the attack each, on the rows whose bracket is still wide."""
        attempt, rows = self.attempt, self.attempt.open
        for _ in range(params.steps):
            if not len(rows):
                return
            radii = self.radius[rows]
            found = craft(attack, attempt.judge, attempt.batch, rows, tensors={"epsilon": radii})
            attempt.queries[rows] += found.queries.long()
            attempt.offer(rows, found.adversarial, found.adversarial_logits)
            self.runs[rows] += 1
            nearest = attempt.distance[rows]
            failed = torch.where(nearest > radii, radii, self.failed[rows])
            # A success may lie within a radius that had failed, which then says nothing.
            self.failed[rows] = torch.where(failed < nearest, failed, 0.0)
            rows = rows[self._widen(rows, params.tolerance)]
            yield

    def _widen(self, rows: Tensor, tolerance: float) -> Tensor:
        """Set the next radii; which of the rows are not done."""
        low, high, most = self.failed[rows], self.attempt.distance[rows], self.most[rows]
        never = torch.isinf(high)
        radius = torch.where(low > 0, (low + high) / 2, high / _FACTOR)
        radius = torch.where(never, torch.minimum(low * _FACTOR, most), radius)
        left = torch.where(never, low < most, low < high * (1 - tolerance))
        if isinstance(self.norm, L0):
            radius = radius.floor()
            left = torch.where(never, left, high - low > 1)
        self.radius[rows] = radius
        return left
