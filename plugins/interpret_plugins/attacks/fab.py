"""FAB: the fast adaptive boundary attack."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.noise import normal_rows, uniform_rows
from interpret_server.plugin import Batch, Classifier, InvalidRequest, Job, Plugin

from .attack import Attack, AttackResult, Attempt, RadiusParams, drive
from .hyperplanes import reach
from .losses import Goal
from .minimal import MinimalAttempt
from .norms import per_row
from .planes import between, candidates, nearest_plane, size_in
from .region import Region

_FINAL = 12  # bisections between the input and the nearest point found
_START = 0.5  # of the best distance: how far random starts lie at most


class FABParams(RadiusParams):
    epsilon: float | None = Field(
        None,
        ge=0,
        description="Radius within which a success counts, in the units of the model's bounds; "
        "rows stop once it is reached. Null: the smallest change of any size is sought.",
    )
    steps: int = Field(100, ge=1, le=10_000, description="Steps of each run.")
    restarts: int = Field(
        1, ge=1, le=1000, description="Runs; the first begins at the input, others around it."
    )
    target_classes: int = Field(
        0,
        ge=0,
        le=1000,
        description="0: every step heads for the nearest of the boundaries to the `classes` "
        "likeliest other classes. Else every restart is run towards each of that many of them "
        "(the targeted form of AutoAttack), at one backward pass a step.",
    )
    classes: int = Field(
        9, ge=1, le=1000, description="Boundaries that a step chooses from, one backward pass each."
    )
    alpha_max: float = Field(0.1, ge=0, le=1, description="Most weight of the input's own step.")
    eta: float = Field(1.05, ge=1, le=2, description="How far a step goes beyond the boundary.")
    beta: float = Field(
        0.9, ge=0, le=1, description="Share of its way from the input that a success keeps."
    )


@dataclass(frozen=True)
class Walk:
    """How a run goes; see `FABParams`.

    Args:
        steps: of a run.
        classes: boundaries that a step chooses from.
    """

    steps: int = 100
    classes: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9


class FAB(Attack, Plugin[FABParams, AttackResult]):
    """Steps onto the linearised boundary, drawn back towards the input: the smallest change.

    Each step projects the current point and the input onto the hyperplane of the nearest boundary
    within the bounds, goes `eta` times as far and takes their weighted mean, with more weight on
    the input the nearer its own projection; a success is pulled back towards the input. The
    nearest success of all steps is refined by bisection. With `epsilon`, or a box given by `lower`
    and `upper`, rows stop once a success lies inside; in a box distances are measured from its
    middle in units of its half width, value by value.

    Source: Croce & Hein 2020, "Minimally distorted Adversarial Examples with a Fast Adaptive
    Boundary Attack", section 3; the form towards classes: Croce & Hein 2020, "Reliable evaluation
    of adversarial robustness with an ensemble of diverse parameter-free attacks".
    """

    name = "fab"

    def check(self, model: Classifier, params: FABParams) -> None:
        super().check(model, params)
        if params.target_classes and params.targeted:
            raise InvalidRequest.field(
                "params.target_classes", "a targeted attack has its one class already"
            )

    def run(self, model: Classifier, batch: Batch, params: FABParams, job: Job) -> AttackResult:
        walk = Walk(params.steps, params.classes, params.alpha_max, params.eta, params.beta)
        attempt: Attempt
        if params.epsilon is None and not batch.tensors:
            attempt = MinimalAttempt.begin(model, batch, params, job)
        else:
            attempt = Attempt.begin(model, batch, params, job)
        runs = params.restarts, params.target_classes
        drive(job, passes(walk, *runs), fab(attempt, walk, *runs))
        return attempt.finish(job)


def passes(walk: Walk, restarts: int, target_classes: int) -> int:
    """Most steps that `fab` takes."""
    return restarts * max(1, target_classes) * (walk.steps + _FINAL)


def fab(attempt: Attempt, walk: Walk, restarts: int, target_classes: int) -> Iterator[None]:
    """The steps of all runs, each on the rows that are still open."""
    attempt.follow(attempt.open)
    others = candidates(attempt.logits, attempt.goal.labels, target_classes or walk.classes)
    runs = list(torch.split(others, 1, 1)) if target_classes else [others]
    nearest = _Nearest.begin(attempt)
    for restart in range(restarts):
        for number, classes in enumerate(runs):
            rows = attempt.open
            if not len(rows):
                return
            draw = restart * len(runs) + number
            x = nearest.start(attempt, rows, draw) if restart else attempt.region.middle[rows]
            yield from _run(attempt, nearest, rows, x, classes[rows], walk)


@dataclass
class _Nearest:
    """The nearest success of every row of a batch, seen from the middle of its region.

    Args:
        x: `(N, *input_shape)`; the middle before there is one.
        distance: `(N,)`, in units of the region's reach for Linf; infinite before there is one.
    """

    x: Tensor
    distance: Tensor

    @classmethod
    def begin(cls, attempt: Attempt) -> "_Nearest":
        middle = attempt.region.middle
        return cls(middle.clone(), torch.full_like(attempt.margin, torch.inf))

    def keep(self, rows: Tensor, x: Tensor, distance: Tensor, won: Tensor) -> None:
        nearer = won & (distance < self.distance[rows])
        self.x[rows[nearer]], self.distance[rows[nearer]] = x[nearer], distance[nearer]

    def start(self, attempt: Attempt, rows: Tensor, draw: int) -> Tensor:
        """Random points around the middle, within half the best distance, or the radius."""
        region = attempt.region.take(rows)
        norm, middle = region.norm, region.middle
        seeds = [attempt.batch.seeds[row] for row in rows.tolist()]
        if norm.name == "linf":
            delta = (uniform_rows(seeds, draw, middle) * 2 - 1) * _units(region.reach)
        else:
            delta = normal_rows(seeds, draw, middle)
            delta = delta / per_row(norm.size(delta), delta)
        distance = self.distance[rows]
        limit = torch.ones_like(distance) if norm.name == "linf" else region.radius.to(distance)
        length = torch.minimum(distance, limit) * _START
        length = torch.where(torch.isinf(length), 0.0, length)
        lower, upper = attempt.model.bounds
        return (middle + delta * per_row(length, delta)).clamp(lower, upper)


def _units(reach_of: Tensor) -> Tensor:
    """The units of Linf: a box's half widths, or one where there is no radius."""
    return torch.where(torch.isinf(reach_of), torch.ones_like(reach_of), reach_of)


@dataclass
class _Part:
    """What a run asks of its rows; every tensor has one row for each.

    Args:
        region, goal: theirs.
        lower, upper: the model's bounds.
        scale: the units of Linf.
        boxed: values of a row have units of their own.
    """

    region: Region
    goal: Goal
    lower: Tensor
    upper: Tensor
    scale: Tensor
    boxed: bool

    @classmethod
    def of(cls, attempt: Attempt, rows: Tensor) -> "_Part":
        region, inputs = attempt.region.take(rows), attempt.batch.inputs[rows]
        everywhere = region.everywhere(inputs, "l2", attempt.model.bounds)
        scale = _units(region.reach)
        boxed = bool((scale.flatten(1) != scale.flatten(1)[:, :1]).any())
        return cls(
            region, attempt.goal.take(rows), everywhere.lower, everywhere.upper, scale, boxed
        )


def _run(
    attempt: Attempt, nearest: _Nearest, rows: Tensor, x: Tensor, classes: Tensor, walk: Walk
) -> Iterator[None]:
    """One run of some rows, and the bisection of what they found."""
    part = _Part.of(attempt, rows)
    for _ in range(walk.steps):
        norm, start, scale = part.region.norm, part.region.middle, part.scale
        plane = nearest_plane(attempt.model, x, part.goal, classes, norm, scale)
        attempt.queries[rows] += 2 + classes.shape[1]
        attempt.saw(rows, plane.normal)
        points = torch.cat([x, start])
        along = (plane.normal * (x - start)).flatten(1).sum(1)
        ahead = reach(
            norm.name,
            points,
            torch.cat([plane.normal] * 2),
            torch.cat([-plane.value, along - plane.value]),
            torch.cat([part.lower] * 2),
            torch.cat([part.upper] * 2),
            torch.cat([scale] * 2) if part.boxed else None,
        )
        moved = ahead - points
        from_x, from_start = size_in(norm, moved, torch.cat([scale] * 2)).chunk(2)
        weight = from_x / (from_x + from_start).clamp(min=torch.finfo(x.dtype).tiny)
        onward, anew = (points + walk.eta * moved).chunk(2)
        x = between(onward, anew, weight.clamp(max=walk.alpha_max))
        x = x.clamp(part.lower, part.upper)
        margin = _try(attempt, nearest, rows, part.region, x).margin
        pulled = between(start, x, torch.full_like(weight, walk.beta))
        # However little it has crossed: a point left there would step to and fro at the boundary.
        x = torch.where(per_row(margin > 0, x), pulled, x)
        left = ~attempt.done(rows)
        if not left.all():
            rows, x, classes = rows[left], x[left], classes[left]
            part = _Part.of(attempt, rows)
        yield
        if not len(rows):
            return
    rows = rows[torch.isfinite(nearest.distance[rows])]
    low, high = torch.zeros_like(nearest.distance[rows]), torch.ones_like(nearest.distance[rows])
    ends, region = nearest.x[rows], attempt.region.take(rows)
    for _ in range(_FINAL):
        if not len(rows):
            return
        share = (low + high) / 2
        won = _try(attempt, nearest, rows, region, between(region.middle, ends, share)).won
        low, high = torch.where(won, low, share), torch.where(won, share, high)
        left = ~attempt.done(rows)
        if not left.all():
            rows, low, high, ends = rows[left], low[left], high[left], ends[left]
            region = region.take(left)
        yield


class _Trial(NamedTuple):
    """What some rows answered: their margins `(n,)`, and which are successes beyond rounding."""

    margin: Tensor
    won: Tensor


def _try(attempt: Attempt, nearest: _Nearest, rows: Tensor, region: Region, x: Tensor) -> _Trial:
    """Predict points in the region of some rows, and keep the successes."""
    with torch.no_grad():
        logits = attempt.model(x)
    attempt.queries[rows] += 1
    won = attempt.clear(rows, logits)
    nearest.keep(rows, x, size_in(region.norm, x - region.middle, _units(region.reach)), won)
    hopeful = torch.nonzero(attempt.wants(rows, logits)).squeeze(1)
    if len(hopeful):
        inside = hopeful[region.take(hopeful).holds(x[hopeful])]
        attempt.offer(rows[inside], x[inside], logits[inside])
    return _Trial(attempt.goal.take(rows).margin(logits), won)
