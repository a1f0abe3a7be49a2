"""What attacks share that see the winning class alone: one search per row, asked about together."""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.errors import FailedPrecondition
from interpret_server.models.abilities import NO_CLASSES
from interpret_server.noise import generator
from interpret_server.plugin import AuxTensor, Batch, Capability, Classifier, Job

from .attack import Attack, AttackResult, GoalParams, drive
from .minimal import MinimalAttempt
from .norms import Linf, Norm

# Predictions of the input, of the nearest success moved away from the boundary, and of what is
# returned.
OVERHEAD = 3
# A winner alone shows no margin that rounding could not undo: its successes move by this share.
_AWAY = 1e-4

NO_START = (
    "no starting point that reaches the goal was found, so nothing was searched; give one as the "
    "tensor start, or allow more tries"
)
USELESS_START = "the starting point given does not reach the goal; another one was looked for"
START: Mapping[str, AuxTensor] = {
    "start": AuxTensor("A starting point per row that reaches the goal already.")
}

# A search yields points `(b, *input_shape)` to ask about, and is sent whether each was a success.
Search = Generator[Tensor, list[bool], None]
Asking = Generator[Tensor, list[bool], Tensor]


class DecisionParams(GoalParams):
    """Parameters of attacks that ask for classes alone."""

    queries: int = Field(
        5000,
        ge=OVERHEAD + 1,
        le=10_000_000,
        description="Most forward passes of a row, the predictions of the input and of the result "
        "included.",
    )
    tries: int = Field(
        100,
        ge=0,
        le=1_000_000,
        description="Random points, at most, of which the first to reach the goal is the start "
        "where none is given.",
    )
    stop_within: float | None = Field(
        None,
        gt=0,
        description="A row is done once its nearest success lies within this distance in the norm, "
        "in the units of the bounds; null: its queries are spent.",
    )


@dataclass
class Row:
    """One row as its search sees it; points are `(b, *input_shape)`.

    Args:
        x: `(1, *input_shape)`, the input.
        lower: the smallest values allowed.
        upper: the largest.
        norm: that distances are measured in.
        draws: the row's own random numbers.
        left: queries that may still be asked.
        most: points that should be asked about at once.
        start: `(1, *input_shape)` of the caller, or None.
        useless: the caller's point turned out not to reach the goal.
    """

    x: Tensor
    lower: Tensor
    upper: Tensor
    norm: Norm
    draws: torch.Generator
    left: int
    most: int = 1
    start: Tensor | None = None
    useless: bool = False
    width: float = field(init=False)

    def __post_init__(self) -> None:
        self.width = float((self.upper - self.lower).max())

    def normal(self, count: int) -> Tensor:
        """Standard normal noise, the same however it is split into calls."""
        return self._drawn(count, torch.randn)

    def uniform(self, count: int) -> Tensor:
        """Uniform noise in [0, 1), the same however it is split into calls."""
        return self._drawn(count, torch.rand)

    def _drawn(self, count: int, draw: Callable[..., Tensor]) -> Tensor:
        rows = [draw(self.x.shape[1:], generator=self.draws) for _ in range(count)]
        return torch.stack(rows).to(self.x)

    def clip(self, points: Tensor) -> Tensor:
        """Points moved into the bounds."""
        return points.clamp(self.lower, self.upper)

    def distance(self, points: Tensor) -> Tensor:
        """Of each point from the input, `(b,)` float64."""
        return self.norm.size(points.double() - self.x.double())

    def closer(self, point: Tensor, share: float) -> Tensor:
        """The point at a share of the distance: on the line, or in Linf in the smaller box."""
        change = point - self.x
        if isinstance(self.norm, Linf):
            side = float(change.abs().max()) * share
            return self.clip(self.x + change.clamp(-side, side))
        return self.clip(self.x + change * share)


def starting_point(row: Row, tries: int) -> Generator[Tensor, list[bool], Tensor | None]:
    """The caller's point, else the first random one, that reaches the goal.

    The random points are uniform in the bounds and from their ends in turn; all but the first two
    are blended with the input.
    """
    if row.start is not None:
        (won,) = yield row.start
        if won:
            return row.start
        row.useless = True
    for number in range(tries):
        noise = row.uniform(1)
        if number % 2:
            noise = (noise < 0.5).to(noise)
        share = 1.0 if number < 2 else float(torch.rand((), generator=row.draws))
        point = row.clip(row.x + share * (row.lower + noise * (row.upper - row.lower) - row.x))
        (won,) = yield point
        if won:
            return point
    return None


def bisect(row: Row, point: Tensor, resolution: float) -> Asking:
    """The nearest success found between the input and a success, to a share of its distance."""
    low, high, best = 0.0, 1.0, point
    while high - low > resolution:
        middle = (low + high) / 2
        tried = row.closer(point, middle)
        (won,) = yield tried
        if won:
            high, best = middle, tried
        else:
            low = middle
    return best


class AnyClassifier(Attack):
    """What attacks declare that run on every model that names classes."""

    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.BOUNDS})

    def check(self, model: Classifier, params: Any) -> None:
        """Refuse networks that name no class."""
        super().check(model, params)
        if model.lacking.get(Capability.SCORES) == NO_CLASSES:
            raise FailedPrecondition(NO_CLASSES)


class ByDecisions(AnyClassifier):
    """What attacks that ask for classes alone declare, and how they run."""

    tensors: ClassVar[Mapping[str, AuxTensor]] = START

    def run(self, model: Classifier, batch: Batch, params: Any, job: Job) -> AttackResult:
        """Search every row that has not reached its goal."""
        attempt = MinimalAttempt.begin(model, batch, params, job)
        rows = len(batch)
        most = 1 + params.queries + -(-rows * params.queries // job.max_rows)
        pending = self._begin(attempt, params, job.max_rows)
        drive(job, most, _explore(attempt, pending, params.stop_within, job))
        useless = torch.zeros(rows, dtype=torch.bool)
        useless[[item.index for item in pending if item.row.useless]] = True
        if useless.any():
            job.warn(useless, USELESS_START)
        if (lost := torch.isinf(attempt.distance)).any():
            job.warn(lost, NO_START)
        return attempt.finish(job)

    def _begin(
        self, attempt: MinimalAttempt, params: DecisionParams, max_rows: int
    ) -> list["_Pending"]:
        starts, pending = attempt.batch.tensors.get("start"), []
        rows = attempt.open.tolist()
        for index in rows:
            region = attempt.region.take(torch.tensor([index], device=attempt.best.device))
            start = None if starts is None else starts[index : index + 1].to(region.centre)
            row = Row(
                region.centre,
                region.lower,
                region.upper,
                attempt.norm,
                generator(attempt.batch.seeds[index], 0),
                params.queries - OVERHEAD,
                max(1, max_rows // len(rows)),
                None if start is None else region.confine(start),
            )
            search = self.search(row, params)
            first = next(search, None)
            if first is not None and row.left > 0:
                pending.append(_Pending(index, row, search, first))
        return pending

    def search(self, row: Row, params: Any) -> Search:
        """The search of one row; it is closed when the row's queries are spent."""
        raise NotImplementedError


@dataclass
class _Pending:
    """A search with the points whose answers it waits for."""

    index: int
    row: Row
    search: Search
    points: Tensor
    answers: list[bool] = field(default_factory=list)

    @property
    def wanted(self) -> int:
        return min(len(self.points) - len(self.answers), self.row.left)

    def take(self, count: int) -> Tensor:
        return self.points[len(self.answers) :][:count]

    def hear(self, answers: list[bool]) -> bool:
        """Take some answers; whether the search goes on."""
        self.answers += answers
        self.row.left -= len(answers)
        if len(self.answers) == len(self.points):
            try:
                self.points, self.answers = self.search.send(self.answers), []
            except StopIteration:
                return False
        if self.row.left <= 0:
            self.search.close()
            return False
        return True


def _explore(
    attempt: MinimalAttempt, pending: list[_Pending], within: float | None, job: Job
) -> Iterator[None]:
    """All searches together, one pass of at most `job.max_rows` points a step."""
    live = pending
    while live:
        counts = _shares([item.wanted for item in live], job.max_rows)
        asked = [(item, count) for item, count in zip(live, counts, strict=True) if count]
        x = torch.cat([item.take(count) for item, count in asked])
        rows = torch.tensor([item.index for item, count in asked for _ in range(count)]).to(
            x.device
        )
        with torch.no_grad():
            logits = attempt.model(x)
        attempt.queries.index_add_(0, rows, torch.ones_like(rows))
        won = attempt.clear(rows, logits)
        _keep_nearest(attempt, rows, x, logits, won)
        answers = iter(won.tolist())
        told = {item.index: [next(answers) for _ in range(count)] for item, count in asked}
        over = {item.index for item, _ in asked if not item.hear(told[item.index])}
        if within is not None:  # also when it is moved away from the boundary at the end
            near = attempt.distance * (1 + _AWAY) <= within
            over |= set(torch.nonzero(near).flatten().tolist())
        live = [item for item in live if item.index not in over]
        for item in live:
            item.row.most = max(1, job.max_rows // len(live))
        job.preview(adversarial=attempt.best.clone)
        yield
    if Capability.SCORES not in attempt.model.capabilities:
        _move_away(attempt)
        yield


def _move_away(attempt: MinimalAttempt) -> None:
    """Successes moved a little further from their inputs, where they still are successes."""
    rows = torch.nonzero(attempt.distance.isfinite() & (attempt.distance > 0)).squeeze(1)
    if not len(rows):
        return
    region = attempt.region.take(rows)
    further = region.centre + (1 + _AWAY) * (attempt.best[rows] - region.centre)
    tried = region.confine(further)
    with torch.no_grad():
        logits = attempt.model(tried)
    attempt.queries[rows] += 1
    won = attempt.clear(rows, logits)
    attempt.best[rows[won]] = tried[won]


def _shares(wanted: list[int], room: int) -> list[int]:
    """How many points of each are asked about in a pass: evenly, and no room wasted."""
    counts = [0] * len(wanted)
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    for left, place in zip(range(len(order), 0, -1), order, strict=True):
        counts[place] = min(wanted[place], -(-room // left))
        room -= counts[place]
    return counts


def _keep_nearest(
    attempt: MinimalAttempt, rows: Tensor, x: Tensor, logits: Tensor, won: Tensor
) -> None:
    """Offer, of several points of a row, the nearest success."""
    rows, x, logits = rows[won], x[won], logits[won]
    size = attempt.norm.size(x.double() - attempt.batch.inputs[rows].double())
    nearest = attempt.distance.scatter_reduce(0, rows, size, "amin")
    keep = size == nearest[rows]
    attempt.offer(rows[keep], x[keep], logits[keep])
