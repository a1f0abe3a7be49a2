"""Simultaneous perturbation: Adam on a gradient that is estimated from scores."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import Batch, Classifier, Job, Plugin

from .attack import Attack, AttackResult, Attempt, drive
from .probes import Momentum, Probing, RandomDirections, ascend_by_probes, signs
from .region import Region
from .scores import BudgetParams, ByScores

_BETAS = 0.9, 0.999
_TINY = 1e-8


class SPSAParams(BudgetParams):
    norm: Literal["linf"] = Field("linf", description="Norm that epsilon is measured in.")
    samples: int = Field(
        32, ge=2, le=100_000, multiple_of=2, description="Probes of a step, in opposite pairs."
    )
    delta: float = Field(
        0.01,
        gt=0,
        le=1,
        description="How far a probe moves every value, as a share of the width of the bounds.",
    )
    step_size: float | None = Field(
        None,
        gt=0,
        description="Learning rate of Adam, in the units of the bounds; null: a tenth of epsilon, "
        "or in a box of half its width, value by value.",
    )


class SPSA(ByScores, Attack, Plugin[SPSAParams, AttackResult]):
    """Adam, projected, on a gradient from probes that move all values at once, up or down.

    `g = sum_j (f(x + delta v_j) - f(x - delta v_j)) / (2 delta) v_j` over random signs `v_j`, up to
    a factor. One more query judges the point of each step. Probes of several rows go through the
    model together; a row stops at its first success and leaves the batch.

    Source: Uesato, O'Donoghue, van den Oord & Kohli 2018, "Adversarial Risk and the Dangers of
    Evaluating Against Weak Attacks", section 3 and algorithm 1.
    """

    name = "spsa"

    def run(self, model: Classifier, batch: Batch, params: SPSAParams, job: Job) -> AttackResult:
        attempt = Attempt.begin(model, batch, params, job)
        probing = Probing.of(job, params.budget, params.samples // 2, params.delta * model.scale)
        directions = RandomDirections(batch.seeds, batch.inputs.shape[1:], signs)
        step = Adam(attempt, params.step_size, 0.1, _BETAS[0])
        steps = ascend_by_probes(attempt, attempt.goal, directions, probing, step)
        drive(job, probing.passes(len(batch)), steps)
        return attempt.finish(job)


class Adam(Momentum):
    """Steps of the learning rate over the root mean square of the gradients, value by value."""

    def __init__(self, attempt: Attempt, size: float | None, share: float, momentum: float) -> None:
        super().__init__(attempt, size, share, momentum)
        self._squares = torch.zeros_like(self._average)
        self._taken = torch.zeros_like(attempt.queries)

    def __call__(self, rows: Tensor, region: Region, x: Tensor, gradient: Tensor) -> Tensor:
        self._taken[rows] += 1
        # Gradients may be tiny: only their size relative to each other matters.
        self._average[rows] = torch.lerp(gradient, self._average[rows], _BETAS[0])
        self._squares[rows] = torch.lerp(gradient.square(), self._squares[rows], _BETAS[1])
        taken = self._taken[rows].to(x).reshape(-1, *[1] * (x.dim() - 1))
        mean = self._average[rows] / (1 - _BETAS[0] ** taken)
        root = (self._squares[rows] / (1 - _BETAS[1] ** taken)).sqrt()
        return region.project(x + self.length(region) * mean / (root + _TINY))
