"""Common corruptions: noise, blur, weather and digital faults."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.noise import mix
from interpret_server.plugin import (
    Batch,
    Classifier,
    InvalidRequest,
    Job,
    Params,
    Plugin,
    metric,
    output,
)

from ..synthesis.spatial import Axes
from .attack import AttackResult, Attempt, drive
from .damage import NAMES, CorruptionName, corrupt
from .decisions import AnyClassifier
from .losses import Goal
from .minimal import Unlimited
from .region import Region

_AT_ONCE = 8  # images that are corrupted in one step


class CorruptionsParams(Params):
    corruptions: tuple[CorruptionName, ...] = Field(
        NAMES, min_length=1, description="Which corruptions are tried, each by itself."
    )
    severity: int = Field(3, ge=1, le=5, description="Strength of each, from 1 to 5.")


@dataclass(frozen=True)
class CorruptionsResult(AttackResult):
    changed: Tensor = output(
        "`(N, number of corruptions)` bool, in the order of `corruptions`: whether the answer then "
        "differs from the target.",
        like_input=False,
    )
    worst: Tensor = metric(
        "Position in `corruptions` of the one that `adversarial` shows; -1 where the input had "
        "another answer to begin with."
    )


class Corruptions(Unlimited, AnyClassifier, Plugin[CorruptionsParams, CorruptionsResult]):
    """Images with everyday faults, none of them made against the model.

    Noise (Gaussian, shot, impulse, speckle), blur (Gaussian, defocus, glass, motion, zoom), weather
    (snow, frost, fog, brightness, spatter) and digital faults (contrast, saturation, elastic
    transform, pixelation, JPEG), with the published constants of five severities. Every corruption
    asked for is tried on every row; `adversarial` is the corrupted image with the largest margin
    away from the target, and `success` whether it has left it. Lengths in pixels are scaled by the
    image's shorter side over 224; what has one channel stays grey. Frost is drawn, where the
    original adds photographs of it, glass blur draws pixels from their surroundings rather than
    swapping them, and drops of spatter are shaded from their own outlines rather than from detected
    edges. A corruption comes from the row's seed.

    Source: Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common
    Corruptions and Perturbations", section 4.
    """

    name = "corruptions"

    def check(self, model: Classifier, params: Any) -> None:
        super().check(model, params)
        if len(Axes.of(model).spatial) != 2:
            raise InvalidRequest.field("model", f"{model.name} takes no images")

    def run(
        self, model: Classifier, batch: Batch, params: CorruptionsParams, job: Job
    ) -> CorruptionsResult:
        region = Region.everywhere(batch.inputs, "linf", model.bounds)
        goal = Goal(batch.targets.labels.to(batch.inputs.device), targeted=False, loss="margin")
        attempt = Attempt.start(model, batch, goal, region, job)
        wrong = attempt.margin > 0
        # Rows that were wrong to begin with are corrupted too, and returned as they were.
        changed = torch.zeros(len(batch), len(params.corruptions), dtype=torch.bool)
        worst = torch.full((len(batch),), -1.0, dtype=torch.float64)
        attempt.margin = torch.where(wrong, attempt.margin, -torch.inf)
        total = len(params.corruptions) * -(-len(batch) // _AT_ONCE)
        drive(job, total, _steps(attempt, params, ~wrong.cpu(), changed, worst))
        return CorruptionsResult(**vars(attempt.finish(job)), changed=changed, worst=worst)


def _steps(
    attempt: Attempt, params: CorruptionsParams, counted: Tensor, changed: Tensor, worst: Tensor
) -> Iterator[None]:
    model, inputs = attempt.model, attempt.batch.inputs
    axes, (lower, _) = Axes.of(model), model.bounds
    everyone = torch.arange(len(inputs), device=inputs.device)
    for place, name in enumerate(params.corruptions):
        salt = NAMES.index(name)  # a corruption is the same whichever others are tried
        for begin in range(0, len(inputs), _AT_ONCE):
            rows = everyone[begin : begin + _AT_ONCE]
            images = inputs[rows].movedim(axes.channels[0], -1).double().cpu()
            images = (images - lower) / model.scale
            found = [
                torch.from_numpy(
                    corrupt(
                        image.numpy(), name, params.severity, mix(attempt.batch.seeds[row], salt)
                    )
                )
                for row, image in zip(rows.tolist(), images, strict=True)
            ]
            x = (torch.stack(found) * model.scale + lower).movedim(-1, axes.channels[0])
            x = attempt.region.take(rows).confine(x.to(inputs))
            with torch.no_grad():
                logits = model(x)
            attempt.queries[rows] += 1
            margin = attempt.goal.take(rows).margin(logits)
            here = rows.cpu()
            changed[here, place] = (margin > 0).cpu()
            fresh = (margin > attempt.margin[rows]).cpu() & counted[here]
            attempt.offer(rows[fresh], x[fresh], logits[fresh])
            worst[here[fresh]] = float(place)
            yield
