"""The Brendel & Bethge attack: along the boundary towards the input, by gradients."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.noise import uniform_rows
from interpret_server.plugin import AuxTensor, Batch, Classifier, Job, Plugin

from .attack import AimParams, Attack, AttackResult, drive
from .decisions import NO_START, START, USELESS_START
from .minimal import MinimalAttempt
from .norms import NORMS, Linf, NormName, per_row
from .trust_region import Step, nearest_step

_BISECTIONS = 10  # between the input and the starting point
_BEYOND = 2e-5  # of the largest logit: how far beyond the boundary steps lead
_SMALLEST = 1e-3  # the last trust region, as a share of the first
# Sparse and box-shaped solutions move few values far, or many at once.
_RADII: Mapping[NormName, float] = {"l2": 0.3, "l1": 0.3, "linf": 1.0, "l0": 1.0}


class BrendelBethgeParams(AimParams):
    norm: NormName = Field("l2", description="Norm of the change.")
    steps: int = Field(100, ge=1, le=10_000, description="Gradient steps.")
    radius: float | None = Field(
        None,
        gt=0,
        le=10,
        description="L2 length of the first steps at most, as a share of the first point's "
        "distance from the input; it falls to a thousandth. Null: 0.3 in l2 and l1, 1 in linf and "
        "l0.",
    )
    momentum: float = Field(
        0.8, ge=0, lt=1, description="Weight of the boundary's normals of the steps before."
    )
    overshoot: float = Field(
        1.1,
        ge=1,
        lt=2,
        description="How far a step goes to where the boundary is expected: with 1 exactly there, "
        "with more beyond it.",
    )
    tries: int = Field(
        100,
        ge=0,
        le=100_000,
        description="Random points, at most, of which the first to reach the goal is the start "
        "where none is given.",
    )

    @property
    def first_radius(self) -> float:
        """Share of the first point's distance."""
        return _RADII[self.norm] if self.radius is None else self.radius


class BrendelBethge(Attack, Plugin[BrendelBethgeParams, AttackResult]):
    """Steps along the boundary, from a success far away to the one nearest to the input.

    From a success, given or random, bisection leads to the boundary. Each step minimises
    `||x_t + step - x||` in the norm, within the bounds, subject to `normal . step = -margin(x_t)`,
    which leads onto the linearised boundary, and `||step||_2 <= radius_t`, within which it can be
    trusted. `normal` is a moving average of the margin's gradients, and radius_t falls
    geometrically. The nearest success is returned. Gradients are taken at the boundary, where they
    point somewhere even if they vanish at the input.

    Source: Brendel, Rauber, Kümmerer, Ustyuzhaninov & Bethge 2019, "Accurate, reliable and fast
    robustness evaluation", section 2, with radii that follow a schedule.
    """

    name = "brendel_bethge"
    tensors: ClassVar[Mapping[str, AuxTensor]] = START

    def run(
        self, model: Classifier, batch: Batch, params: BrendelBethgeParams, job: Job
    ) -> AttackResult:
        goal = params.goal(batch.targets.labels)
        attempt = MinimalAttempt.seek(model, batch, goal, NORMS[params.norm], job)
        search = _Search(attempt, params, job)
        drive(job, 2 + params.tries + _BISECTIONS + params.steps, search.steps())
        if search.useless.any():
            job.warn(search.useless, USELESS_START)
        if (lost := torch.isinf(attempt.distance)).any():
            job.warn(lost, NO_START)
        return attempt.finish(job)


class _Search:
    """The points of all rows; `found` tells which have one.

    Attributes:
        useless: `(N,)` bool, rows whose given start does not reach the goal.
    """

    def __init__(self, attempt: MinimalAttempt, params: BrendelBethgeParams, job: Job) -> None:
        self.attempt, self.params, self.job = attempt, params, job
        self.points = attempt.best.clone()
        self.found = torch.zeros_like(attempt.flat)
        self.useless = torch.zeros_like(attempt.flat)

    def steps(self) -> Iterator[None]:
        """All passes through the model."""
        rows = self.attempt.open
        if not len(rows):
            return
        yield from self._begin(rows)
        rows = rows[self.found[rows]]
        if len(rows):
            yield from self._approach(rows)
            yield from self._follow(rows)

    def _ask(self, rows: Tensor, x: Tensor) -> Tensor:
        """Which points are successes."""
        attempt = self.attempt
        with torch.no_grad():
            logits = attempt.model(x)
        attempt.queries[rows] += 1
        attempt.offer(rows, x, logits)
        return attempt.clear(rows, logits)

    def _begin(self, rows: Tensor) -> Iterator[None]:
        """A success for every row: the caller's, or random ones, blended with the input."""
        region = self.attempt.region
        if (given := self.attempt.batch.tensors.get("start")) is not None:
            start = region.take(rows).confine(given[rows].to(self.points))
            won = self._ask(rows, start)
            self._take(rows[won], start[won])
            self.useless[rows[~won]] = True
            yield
        for number in range(self.params.tries):
            left = rows[~self.found[rows]]
            if not len(left):
                return
            seeds = [self.attempt.batch.seeds[row] for row in left.tolist()]
            x, here = self.points[left], region.take(left)
            noise = uniform_rows(seeds, 2 * number, x)
            if number % 2:
                noise = (noise < 0.5).to(noise)
            start = here.lower + noise * (here.upper - here.lower)
            if number > 1:
                share = uniform_rows(seeds, 2 * number + 1, x.flatten(1)[:, :1])
                start = x + per_row(share[:, 0], x) * (start - x)
            start = start.clamp(here.lower, here.upper)
            won = self._ask(left, start)
            self._take(left[won], start[won])
            yield

    def _take(self, rows: Tensor, x: Tensor) -> None:
        self.points[rows] = x
        self.found[rows] = True

    def _approach(self, rows: Tensor) -> Iterator[None]:
        """The points moved to the boundary: on the line to the input, in Linf into its box."""
        region = self.attempt.region.take(rows)
        change = self.points[rows] - region.centre
        side = Linf().size(change)
        low, high = torch.zeros_like(side), torch.ones_like(side)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if isinstance(self.attempt.norm, Linf):
                most = per_row(middle * side, change)
                nearer = change.clamp(-most, most)
            else:
                nearer = per_row(middle, change) * change
            x = (region.centre + nearer).clamp(region.lower, region.upper)
            won = self._ask(rows, x)
            low, high = torch.where(won, low, middle), torch.where(won, middle, high)
            self.points[rows[won]] = x[won]
            yield

    def _follow(self, rows: Tensor) -> Iterator[None]:
        attempt, params, width = self.attempt, self.params, self.attempt.model.scale
        region, goal = attempt.region.take(rows), attempt.goal.take(rows)
        start, x = region.centre.flatten(1), self.points[rows]
        lower, upper = region.lower.flatten(1), region.upper.flatten(1)
        first = params.first_radius * torch.linalg.vector_norm(x.flatten(1) - start, dim=1) / width
        normal = torch.zeros_like(start)
        attempt.follow(rows)
        for step in range(params.steps):
            gradient, logits = goal.ascend(attempt.model, x)
            attempt.queries[rows] += 2
            attempt.saw(rows, gradient)
            attempt.offer(rows, x, logits)
            weight = params.momentum if step else 0.0
            normal = torch.lerp(gradient.flatten(1) * width, normal, weight)
            # On the boundary itself rounding would decide.
            margin = goal.margin(logits) - _BEYOND * logits.abs().amax(1)
            flat = x.flatten(1)
            beyond = torch.where(margin < 0, params.overshoot, 2 - params.overshoot)
            moved = nearest_step(
                params.norm,
                Step(
                    back=(start - flat) / width,
                    normal=normal,
                    gain=-beyond * margin,
                    lower=(lower - flat) / width,
                    upper=(upper - flat) / width,
                    radius=first * _SMALLEST ** (step / params.steps),
                ),
            )
            # What returns to the input is the input exactly: rounding would count in L0.
            whole = moved == (start - flat) / width
            after = torch.where(whole, start, flat + width * moved).clamp(lower, upper)
            x = after.reshape(x.shape)
            self.job.preview(adversarial=attempt.best.clone)
            yield
        self._ask(rows, x)
        yield
