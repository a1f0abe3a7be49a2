"""Maximum sensitivity: how much an attribution changes with its input."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.noise import generator
from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    Plugin,
    metric,
    output,
)

from .judged import USES, JudgeParams, explain, passes, subset


class MaxSensitivityParams(JudgeParams):
    radius: float = Field(
        0.02,
        gt=0,
        le=1,
        description="Largest change of any input value, as a share of the bounds' width.",
    )
    samples: int = Field(10, ge=1, le=100_000, description="Changed copies of each input.")
    relative: bool = Field(
        True, description="Divide by the length of the attribution of the unchanged input."
    )


@dataclass(frozen=True)
class MaxSensitivityResult:
    max_sensitivity: Tensor = metric(
        "Largest distance between attributions that was found.", better="low"
    )
    mean_sensitivity: Tensor = metric("Mean distance between attributions.")
    attributions: Tensor = output("Those of the unchanged inputs, as the method gave them.")


class MaxSensitivity(Plugin[MaxSensitivityParams, MaxSensitivityResult]):
    """How far an attribution moves when its input moves a little: lower is better.

    `max ||A(y) - A(x)||_2` over random y within `radius` of x in the maximum norm (and within the
    bounds), divided by `||A(x)||_2` unless `relative` is off. It is a lower bound of the true
    maximum, and grows with `samples`. A method's own noise is the same for all copies of a row.
    Rows whose attribution is zero everywhere are warned about, and not divided.

    Source: Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations", the maximum
    sensitivity, estimated by Monte Carlo.
    """

    name = "max_sensitivity"
    kind = Kind.METRIC
    uses: ClassVar[Mapping[str, Kind]] = USES

    def run(
        self, model: Classifier, batch: Batch, params: MaxSensitivityParams, job: Job
    ) -> MaxSensitivityResult:
        x = batch.inputs
        largest, total = x.new_zeros(2, len(x), dtype=torch.float64)
        parts = passes(job, batch, params.samples)
        for step in job.track(1 + len(parts)):
            if not step:
                attributions = explain(job, params.method, model, batch, warn=True)
                length = attributions.flatten(1).double().norm(dim=1)
                continue
            rows, numbers = parts[step - 1]
            seeds = [batch.seeds[row] for row in rows.tolist()]
            copies = _changed(model, x[rows], seeds, numbers.tolist(), params.radius)
            moved = explain(job, params.method, model, subset(batch, rows, copies))
            distance = (moved - attributions[rows]).flatten(1).double().norm(dim=1)
            largest.scatter_reduce_(0, rows, distance, "amax")
            total.index_add_(0, rows, distance)
        if params.relative:
            zero = length == 0
            if zero.any():
                job.warn(zero, "the attribution is zero everywhere: its distances are not relative")
            divisor = torch.where(zero, 1, length)
            largest, total = largest / divisor, total / divisor
        mean = total / params.samples
        return MaxSensitivityResult(largest.to(x.dtype), mean.to(x.dtype), attributions)


def _changed(
    model: Classifier, x: Tensor, seeds: list[int], numbers: list[int], radius: float
) -> Tensor:
    sources = [generator(*pair) for pair in zip(seeds, numbers, strict=True)]
    drawn = torch.stack([torch.rand(x.shape[1:], generator=source) for source in sources])
    copies = x + radius * model.scale * (2 * drawn.to(x) - 1)
    if Capability.BOUNDS in model.capabilities:
        copies = copies.clamp(*model.bounds)
    return model.carry(copies, x)
