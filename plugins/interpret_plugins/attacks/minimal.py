"""Attacks that look for the smallest change, whatever its size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from interpret_server.plugin import AuxTensor, Batch, Classifier, Job

from .attack import Attempt, GoalParams
from .losses import Goal
from .norms import NORMS, Norm
from .region import Region


class Measure(Protocol):
    """What a success is to have little of."""

    def size(self, delta: Tensor) -> Tensor:
        """Per row, `(N,)`; zero where nothing has changed."""


@dataclass
class MinimalAttempt(Attempt):
    """An attack under way that keeps the nearest success.

    Args:
        norm: of the steps.
        measure: that distances are measured by.
        distance: `(N,)` float64, of the nearest success from the input; infinite before the first.
    """

    norm: Norm
    measure: Measure
    distance: Tensor

    @classmethod
    def begin(
        cls, model: Classifier, batch: Batch, params: GoalParams, job: Job
    ) -> "MinimalAttempt":
        """Predict the inputs; those that have reached the goal are their own nearest success."""
        return cls.seek(model, batch, params.goal(batch.targets.labels), NORMS[params.norm], job)

    @classmethod
    def seek(
        cls,
        model: Classifier,
        batch: Batch,
        goal: Goal,
        norm: Norm,
        job: Job,
        measure: Measure | None = None,
    ) -> "MinimalAttempt":
        """The same for a goal and a norm; distances by `measure`, else in the norm."""
        region = Region.everywhere(batch.inputs, norm, model.bounds)
        plain = Attempt.start(model, batch, goal, region, job)
        reached = plain.margin > 0
        distance = torch.where(reached, 0.0, torch.inf).double()
        return cls(**vars(plain), norm=norm, measure=measure or norm, distance=distance)

    @property
    def open(self) -> Tensor:
        """The rows to be attacked: all whose input has not reached the goal."""
        return torch.nonzero(self.distance > 0).squeeze(1)

    def done(self, rows: Tensor) -> Tensor:
        """No row is done before the last step: a nearer success may follow."""
        return torch.zeros_like(rows, dtype=torch.bool)

    def wants(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Successes, which may be the nearest, and points closer to success than any before."""
        return super().wants(rows, logits) | self.clear(rows, logits)

    def offer(self, rows: Tensor, x: Tensor, logits: Tensor) -> None:
        """Keep, of `rows`, the nearest success; before there is one, the point closest to it."""
        size = self.measure.size(x.double() - self.batch.inputs[rows].double())
        nearer = self.clear(rows, logits) & (size < self.distance[rows])
        margin = self.goal.take(rows).margin(logits)
        hopeful = torch.isinf(self.distance[rows]) & (margin > self.margin[rows])
        for which in (hopeful, nearer):
            self.best[rows[which]] = x[which]
            self.margin[rows[which]] = margin[which]
        self.distance[rows[nearer]] = size[nearer]


class Unlimited:
    """What attacks without a radius declare, before `Attack`."""

    tensors: ClassVar[Mapping[str, AuxTensor]] = {}
