"""One perturbation for many inputs."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.models.classifier import Bounds
from interpret_server.plugin import (
    Batch,
    Classifier,
    Job,
    Plugin,
    Rows,
    group_output,
)

from .attack import Attack, AttackResult, Attempt, RadiusParams, drive
from .losses import Goal
from .minimal import Unlimited
from .norms import per_row
from .region import Region


class UniversalPerturbationParams(RadiusParams):
    loss: Literal["cross_entropy", "margin"] = Field(
        "cross_entropy", description="What is ascended, on logits, where the goal is not reached."
    )
    limit: float = Field(
        1.0,
        ge=0,
        le=1000,
        description="A row whose margin beyond the goal is as large, in logits, pulls no longer.",
    )
    steps: int = Field(60, ge=1, le=10_000, description="Gradient steps over all rows.")
    step_size: float | None = Field(
        None,
        gt=0,
        description="Length of the first step in the norm, in the units of the model's bounds; it "
        "falls linearly to a tenth. Null: 5 epsilon / steps.",
    )

    def goal(self, labels: Tensor) -> Goal:
        return Goal(labels, self.targeted, self.loss)


@dataclass(frozen=True)
class UniversalPerturbationResult(AttackResult):
    perturbation: Tensor = group_output("What is added to every input, `(*input_shape)`.")
    fooling_rate: Tensor = group_output(
        "Share of the rows that had not reached the goal before and have reached it now, `(1,)`."
    )


class UniversalPerturbation(
    Unlimited, Attack, Plugin[UniversalPerturbationParams, UniversalPerturbationResult]
):
    """One perturbation that, added to each of many inputs, changes as many answers as it can.

    `v <- project(v + step * direction(sum_i grad loss(clip(x_i + v))))`, over the rows `i` that are
    classified correctly and whose margin beyond the goal is below `limit`; every step sees all
    rows. What counts is the `v` that the most rows were fooled by, and among those the one with the
    largest mean margin up to `limit`. Each row's result is `clip(x_i + v)`, rows that were
    misclassified to begin with included. Judge it on inputs that it was not made from.

    Source: Moosavi-Dezfooli, Fawzi, Fawzi & Frossard 2017, "Universal adversarial perturbations",
    for the problem; Shafahi, Najibi, Xu, Dickerson, Davis & Goldstein 2020, "Universal Adversarial
    Training", for ascent on a clipped loss over all inputs, which replaces a DeepFool step for one
    input after the other.
    """

    name = "universal_perturbation"
    rows = Rows.COLLECTION

    def run(
        self, model: Classifier, batch: Batch, params: UniversalPerturbationParams, job: Job
    ) -> UniversalPerturbationResult:
        search = _Search(model, batch, params, job)
        drive(job, (params.steps + 3) * len(search.parts), search.steps())
        return search.result()


class _Part(Job):
    """The job of some of the rows."""

    def __init__(self, job: Job, rows: slice, total: int) -> None:
        self._job, self._rows, self._total = job, rows, total

    def warn(self, rows: Tensor, message: str) -> None:
        whole = torch.zeros(self._total, dtype=torch.bool)
        whole[self._rows] = rows.cpu()
        self._job.warn(whole, message)


class _Search:
    """The perturbation under way.

    Args:
        model: the classifier under attack.
        batch: all rows.
        params: of the attack.
        job: says how many rows go through the model at once.
    """

    def __init__(
        self, model: Classifier, batch: Batch, params: UniversalPerturbationParams, job: Job
    ) -> None:
        self.model, self.batch, self.params = model, batch, params
        size = job.max_rows
        self.parts = [slice(begin, begin + size) for begin in range(0, len(batch), size)]
        self._jobs = [_Part(job, part, len(batch)) for part in self.parts]
        self._attempts: list[Attempt] = []
        self._results: list[AttackResult] = []
        norm = params.geometry(model)
        epsilon = norm.usual(model.scale) if params.epsilon is None else params.epsilon
        nothing = torch.zeros_like(batch.inputs[:1])
        self._region = Region.ball(nothing, norm, epsilon, Bounds(-model.scale, model.scale))
        self._best, self._merit = nothing, (-1.0, 0.0)

    def steps(self) -> Iterator[None]:
        """Begin, ascend, and judge: each yield is one pass of some rows."""
        for part, job in zip(self.parts, self._jobs, strict=True):
            begun = Attempt.begin(self.model, self._take(part), self.params, job)
            begun.follow(begun.open)
            self._attempts.append(begun)
            yield
        v = self._best
        for step in range(self.params.steps + 1):
            total = torch.zeros_like(v, dtype=torch.float64)
            merit = (0.0, 0.0)
            for attempt in self._attempts:
                gradient, fooled, margin = self._pull(attempt, v)
                total += gradient
                merit = (merit[0] + fooled, merit[1] + margin)
                yield
            if merit > self._merit:
                self._best, self._merit = v, merit
            v = self._region.project(self._region.move(v, total.to(v), self._size(step)))
        self._best = self._region.confine(self._best)
        for attempt, job in zip(self._attempts, self._jobs, strict=True):
            attempt.best = (attempt.batch.inputs + self._best).clamp(*self.model.bounds)
            self._results.append(attempt.finish(job))
            yield

    def _pull(self, attempt: Attempt, v: Tensor) -> tuple[Tensor, float, float]:
        """The sum of the rows' gradients, how many are fooled, and the sum of their margins."""
        rows = attempt.open  # those that had not reached the goal as they were given
        goal, moved = attempt.goal.take(rows), attempt.batch.inputs[rows] + v
        lower, upper = self.model.bounds
        gradient, logits = goal.ascend(self.model, moved.clamp(lower, upper))
        attempt.queries[rows] += 2
        attempt.saw(rows, gradient)
        margin = goal.margin(logits).double()
        pulls = per_row(margin < self.params.limit, moved) & (moved >= lower) & (moved <= upper)
        total = torch.where(pulls, gradient, 0).double().sum(0, keepdim=True)
        held = margin.clamp(max=self.params.limit).sum()
        return total, float((margin > 0).sum()), float(held)

    def _size(self, step: int) -> Tensor:
        """The length of a step: falling linearly to a tenth."""
        steps, size = self.params.steps, self.params.step_size
        whole = self._region.reach * (5 / steps) if size is None else self._region.reach * 0 + size
        return whole * (1 - 0.9 * step / steps)

    def _take(self, part: slice) -> Batch:
        batch = self.batch
        return Batch(batch.inputs[part], batch.targets.take(part), batch.seeds[part])

    def result(self) -> UniversalPerturbationResult:
        """The rows' results together, and what belongs to all of them."""
        whole = {
            item.name: torch.cat([getattr(part, item.name) for part in self._results])
            for item in fields(AttackResult)
        }
        counted = whole["initially_correct"] > 0
        fooled = (whole["success"] & counted).sum() / counted.sum().clamp(min=1)
        return UniversalPerturbationResult(
            **whole, perturbation=self._best[0], fooling_rate=fooled.reshape(1)
        )
