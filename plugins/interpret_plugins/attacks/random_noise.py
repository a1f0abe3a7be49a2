"""Random noise: what every attack should beat."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.noise import normal_rows
from interpret_server.plugin import Batch, Classifier, InvalidRequest, Job, Plugin

from .attack import AttackResult, Attempt, RadiusParams, drive
from .decisions import AnyClassifier
from .norms import per_row
from .region import Region


class RandomNoiseParams(RadiusParams):
    distribution: Literal["uniform", "gaussian"] = Field(
        "uniform",
        description="Points spread evenly over the ball or box, or Gaussian noise that is scaled "
        "to the ball's surface.",
    )
    samples: int = Field(10, ge=1, le=100_000, description="Draws of a row at most.")


class RandomNoise(AnyClassifier, Plugin[RandomNoiseParams, AttackResult]):
    """Random points of the ball, until one reaches the goal.

    `uniform`: even over the ball, then moved to the nearest point within the bounds; even over a
    box given by `lower` and `upper`. `gaussian`: `x + epsilon z / |z|` with z normal, moved so too.
    One query a draw; a row stops at its first success. This is the floor: an attack that succeeds
    no more often has found nothing, and a classifier that fails here is not robust by any measure.

    Source: the additive noise attacks of Rauber, Brendel & Bethge 2017, "Foolbox: A Python toolbox
    to benchmark the robustness of machine learning models".
    """

    name = "random_noise"

    def run(
        self, model: Classifier, batch: Batch, params: RandomNoiseParams, job: Job
    ) -> AttackResult:
        if params.distribution == "gaussian" and "lower" in batch.tensors:
            raise InvalidRequest.field("params.distribution", "a box is filled uniformly")
        attempt = Attempt.begin(model, batch, params, job)
        drive(job, params.samples, _steps(attempt, params))
        return attempt.finish(job)


def _steps(attempt: Attempt, params: RandomNoiseParams) -> Iterator[None]:
    for step in range(params.samples):
        rows = attempt.open
        if not len(rows):
            return
        seeds = [attempt.batch.seeds[row] for row in rows.tolist()]
        region = attempt.region.take(rows)
        uniform = params.distribution == "uniform"
        x = region.random(seeds, step) if uniform else _gaussian(region, seeds, step)
        with torch.no_grad():
            logits = attempt.model(x)
        attempt.queries[rows] += 1
        attempt.offer(rows, x, logits)
        yield


def _gaussian(region: Region, seeds: list[int], step: int) -> Tensor:
    noise = normal_rows(seeds, step, region.centre)
    share = per_row(1 / region.norm.size(noise), noise)
    return region.project(region.centre + region.reach * share * noise)
