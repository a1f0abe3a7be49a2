"""The attacks of Carlini & Wagner in L2, Linf and L0."""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import Batch, Classifier, Job, Plugin

from ..synthesis.descent import Adam
from .attack import AimParams, Attack, AttackResult, drive
from .constants import Constants
from .minimal import MinimalAttempt, Unlimited
from .norms import NORMS, per_row

_ROUNDS = {"l2": 9, "linf": 80, "l0": 300}
_INSIDE = 0.999  # of the bounds, where searches start: beyond, tanh hardly has a slope
_PARTS = 10  # of a round, between which progress is judged
_PROGRESS = 0.9999  # that the objective must fall below, as a share of its last value
_SHRINK = 0.9  # of the tolerance in Linf after a success
_FINEST = 1 / 256  # tolerance, as a share of the bounds' width
_LARGEST = {"linf": 20.0, "l0": 2e6}  # constants
_UNCHANGED = 1e-3  # as a share of the bounds' width
_DROPPED = 0.3  # of the root of how many values may still change


class CarliniWagnerParams(AimParams):
    norm: Literal["l2", "linf", "l0"] = Field("l2", description="Norm of the change.")
    steps: int = Field(1000, ge=1, le=100_000, description="Steps of Adam in each round.")
    rounds: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Rounds of Adam at most: in l2 values of the constant, in linf smaller and "
        "smaller tolerances, in l0 smaller and smaller sets of values; null: 9, 80 and 300.",
    )
    learning_rate: float = Field(
        0.01,
        gt=0,
        le=10,
        description="Adam's step, on the inverse hyperbolic tangent of the input.",
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


class CarliniWagner(Unlimited, Attack, Plugin[CarliniWagnerParams, AttackResult]):
    """The smallest change with which a margin of logits is reached, by Adam in tanh space.

    `l2`: minimise `||delta||_2^2 + c * max(confidence - margin(x + delta), 0)`, where `x + delta =
    middle + half width * tanh(w)` never leaves the bounds; the smallest `c` that succeeds is sought
    by bisection for each row. `linf`: the distance is `sum max(|delta_i| - tau, 0)`, and `tau`
    shrinks by a tenth after every success. `l0`: after every success of the `l2` form the values
    that matter least, by `|gradient_i * delta_i|`, are set back and stay. In both `c` doubles after
    a failure. Changes count as shares of the bounds' width, so that `c` means the same in all
    units. The nearest success is returned.

    Source: Carlini & Wagner 2017, "Towards Evaluating the Robustness of Neural Networks", sections
    V (objective f6) and VI.A to VI.C. In L0 a round sets back several values at once.
    """

    name = "carlini_wagner"

    def run(
        self, model: Classifier, batch: Batch, params: CarliniWagnerParams, job: Job
    ) -> AttackResult:
        goal = params.goal(batch.targets.labels)
        attempt = MinimalAttempt.seek(model, batch, goal, NORMS[params.norm], job)
        rounds = params.rounds or _ROUNDS[params.norm]
        steps = _FORMS[params.norm](_Search(attempt, params, job), rounds)
        drive(job, rounds * params.steps, steps)
        return attempt.finish(job)


class _Cost:
    """`||delta||_2^2`, of changes as shares of the bounds' width.

    Attributes:
        enough: what a success may cost, as a share of its constant.
    """

    enough = float("inf")

    def __call__(self, delta: Tensor, rows: Tensor) -> Tensor:
        return delta.square().flatten(1).sum(1)

    def slope(self, delta: Tensor, rows: Tensor) -> Tensor:
        return 2 * delta


class _Excess(_Cost):
    """What changes exceed a tolerance by, `tau` `(N,)`."""

    enough = 1e-4

    def __init__(self, tau: Tensor) -> None:
        self.tau = tau

    def __call__(self, delta: Tensor, rows: Tensor) -> Tensor:
        return (delta.abs() - per_row(self.tau[rows], delta)).clamp(min=0).flatten(1).sum(1)

    def slope(self, delta: Tensor, rows: Tensor) -> Tensor:
        return torch.where(delta.abs() > per_row(self.tau[rows], delta), delta.sign(), 0)


class _Search:
    """Rounds of Adam in tanh space, and what they have found; every tensor has a row for each.

    Attributes:
        free: values that may change.
        point: where each row's next round starts.
        slope: the margin's gradient at the last success.
        won: whether the last round succeeded.
    """

    def __init__(self, attempt: MinimalAttempt, params: CarliniWagnerParams, job: Job) -> None:
        self.attempt, self.params, self.job = attempt, params, job
        lower, upper = attempt.model.bounds
        self.middle, self.half = (lower + upper) / 2, (upper - lower) / 2
        self.start = attempt.batch.inputs
        self.point, self.slope = self.start.clone(), torch.zeros_like(self.start)
        self.free = torch.ones_like(self.start, dtype=torch.bool)
        self.won = torch.zeros_like(attempt.flat)
        self.first = torch.full_like(attempt.margin, params.initial_constant)
        attempt.follow(attempt.open)

    def round(
        self, rows: Tensor, constant: Tensor, cost: _Cost, *, first_success: bool
    ) -> Iterator[None]:
        """Adam from `point` until no row makes progress, or has its first success."""
        attempt, adam = self.attempt, Adam()
        self.won[rows] = False
        share = ((self.point[rows] - self.middle) / self.half).clamp(-_INSIDE, _INSIDE)
        w, last = torch.atanh(share), torch.full_like(constant[rows], torch.inf)
        for step in range(self.params.steps):
            if not len(rows):
                return
            start, free, turned = self.start[rows], self.free[rows], torch.tanh(w)
            x = torch.where(free, self.middle + self.half * turned, start)
            x = x.clamp(attempt.region.lower[rows], attempt.region.upper[rows])
            goal = attempt.goal.take(rows)
            gradient, logits = goal.ascend(attempt.model, x)
            attempt.queries[rows] += 2
            attempt.saw(rows, gradient)
            missing = (self.params.confidence - goal.margin(logits)).clamp(min=0)
            clear = attempt.clear(rows, logits)
            delta = (x - start) / (2 * self.half)
            distance = cost(delta, rows)
            told = ~clear | (missing == 0)
            attempt.offer(rows[told], x[told], logits[told])
            won = clear & (missing == 0) & (distance <= cost.enough * constant[rows])
            self.won[rows] |= won
            weight = per_row(torch.where(missing > 0, constant[rows], 0), x)
            uphill = cost.slope(delta, rows) / (2 * self.half) - weight * gradient
            w = w - adam.move(
                uphill * free * self.half * (1 - turned.square()), self.params.learning_rate
            )
            keep = torch.ones_like(won)
            if first_success:
                self.point[rows[won]], self.slope[rows[won]] = x[won], gradient[won]
                keep = ~won
            if self.params.abort_early and step % max(1, self.params.steps // _PARTS) == 0:
                value = distance + constant[rows] * missing
                keep &= value <= _PROGRESS * last
                last = value
            rows, w, last = rows[keep], w[keep], last[keep]
            adam.keep(keep)
            self.job.preview(adversarial=attempt.best.clone)
            yield

    def drop(self, rows: Tensor) -> None:
        """Set back values that the last success hardly changed, and those that matter least."""
        delta = (self.point[rows] - self.start[rows]).flatten(1)
        free = self.free[rows].flatten(1) & (delta.abs() > 2 * self.half * _UNCHANGED)
        matters = (self.slope[rows].flatten(1) * delta).abs()
        order = torch.where(free, matters, torch.inf).argsort(dim=1, stable=True)
        count = (_DROPPED * free.sum(1, keepdim=True).sqrt()).floor().clamp(min=1)
        place = torch.arange(free.shape[1], device=free.device).expand_as(free)
        free &= torch.zeros_like(free).scatter(1, order, place >= count)
        self.free[rows] = free.reshape(self.free[rows].shape)


def _l2(search: _Search, rounds: int) -> Iterator[None]:
    constants = Constants.begin(search.first)
    for _ in range(rounds):
        rows = constants.sensible(search.attempt.open)
        yield from search.round(rows, constants.value, _Cost(), first_success=False)
        constants.tried(rows, search.won[rows])


def _linf(search: _Search, rounds: int) -> Iterator[None]:
    rows, constant, tau = search.attempt.open, search.first, torch.ones_like(search.first)
    for _ in range(rounds):
        if not len(rows):
            return
        yield from search.round(rows, constant, _Excess(tau), first_success=True)
        change = (search.point - search.start).flatten(1).abs().amax(1) / (2 * search.half)
        constant = torch.where(search.won, constant, 2 * constant)
        tau = torch.where(search.won, _SHRINK * torch.minimum(tau, change), tau)
        rows = rows[(tau[rows] > _FINEST) & (constant[rows] <= _LARGEST["linf"])]


def _l0(search: _Search, rounds: int) -> Iterator[None]:
    rows, constant = search.attempt.open, search.first
    for _ in range(rounds):
        if not len(rows):
            return
        yield from search.round(rows, constant, _Cost(), first_success=True)
        constant = torch.where(search.won, constant, 2 * constant)
        search.drop(rows[search.won[rows]])
        left = search.free[rows].flatten(1).any(1)
        rows = rows[left & (constant[rows] <= _LARGEST["l0"])]


_FORMS: Mapping[str, Callable[[_Search, int], Iterator[None]]] = {
    "l2": _l2,
    "linf": _linf,
    "l0": _l0,
}
