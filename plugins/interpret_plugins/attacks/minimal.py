"""Attacks that look for the smallest change, whatever its size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from interpret_server.plugin import AuxTensor, Batch, Classifier, Job

from .attack import Attempt, GoalParams
from .norms import NORMS, Norm
from .region import Region


@dataclass
class MinimalAttempt(Attempt):
    """An attack under way that keeps the nearest success.

    Args:
        norm: that distances are measured in.
        distance: `(N,)` float64, of the nearest success from the input; infinite before the first.
    """

    norm: Norm
    distance: Tensor

    @classmethod
    def begin(
        cls, model: Classifier, batch: Batch, params: GoalParams, job: Job
    ) -> "MinimalAttempt":
        """Predict the inputs; those that have reached the goal are their own nearest success."""
        region = Region.everywhere(batch.inputs, params.norm, model.bounds)
        plain = Attempt.start(model, batch, params.goal(batch.targets.labels), region, job)
        reached = plain.margin > 0
        distance = torch.where(reached, 0.0, torch.inf).double()
        return cls(**vars(plain), norm=NORMS[params.norm], distance=distance)

    @property
    def open(self) -> Tensor:
        """The rows to be attacked: all whose input has not reached the goal."""
        return torch.nonzero(self.distance > 0).squeeze(1)

    def done(self, rows: Tensor) -> Tensor:
        """No row is done before the last step: a nearer success may follow."""
        return torch.zeros_like(rows, dtype=torch.bool)

    def offer(self, rows: Tensor, x: Tensor, logits: Tensor) -> None:
        """Keep, of `rows`, the nearest success; before there is one, the point closest to it."""
        size = self.norm.size(x.double() - self.batch.inputs[rows].double())
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
