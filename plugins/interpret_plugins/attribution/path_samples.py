"""Gradients at random places between random baselines and the input, averaged."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from interpret_server.plugin import Job, logits_before, metric, output

from .backgrounds import Background
from .convergence import convergence_delta
from .gradients import warn_of_zeros
from .passes import passes, variant_gradients

_ZERO = (
    "every attribution is zero: the target has no gradient between the baselines and this input, "
    "or they are the same"
)
_INEXACT = (
    "the attributions miss the target's difference between the input and its mean over the "
    "baselines by more than 5% of it; take more samples"
)


class Place(NamedTuple):
    """One place of every row.

    Args:
        start: `(N, *input_shape)`, the baselines.
        end: `(N, *input_shape)`, the inputs, or what noise makes of them.
        share: `(N,)` between 0 and 1, of the way from one to the other.
    """

    start: Tensor
    end: Tensor
    share: Tensor


@dataclass(frozen=True)
class PathSamplesResult:
    attributions: Tensor = output(
        "Share of each input value in the target's difference from its mean over the baselines, "
        "`(N, *input_shape)`, signed."
    )
    convergence_delta: Tensor = metric(
        "Sum of the attributions, less the target's value at the input and plus its mean over the "
        "baselines (those of the samples, where these are fewer); goes to 0 with more samples."
    )
    logits: Tensor | None = logits_before()


def average_gradients(
    choice: Background, samples: int, place: Callable[[int], Place], job: Job
) -> PathSamplesResult:
    """The mean over samples of `(end - start) dS/dx` at `start + share (end - start)`.

    Several samples of every row go through the model at once; sums are kept in float64.

    Args:
        choice: the baselines that places begin at.
        samples: of every row.
        place: of a sample's number.
        job: that the passes belong to.
    """
    model, inputs, targets = choice.model, choice.batch.inputs, choice.batch.targets
    rows, few = len(inputs), choice.count <= samples
    parts, ends_of = passes(job, rows, samples), min(choice.count, samples)
    levels = passes(job, rows, ends_of)  # where the target's mean over baselines is taken
    total = torch.zeros_like(inputs, dtype=torch.float64)
    start = inputs.new_zeros(rows, dtype=torch.float64)
    for step in job.track(len(parts) + len(levels)):
        if step < len(parts):
            starts, ends, shares = map(torch.stack, zip(*map(place, parts[step]), strict=True))
            along = shares.reshape(*shares.shape, *(1,) * (inputs.dim() - 1))
            gradients = variant_gradients(model, torch.lerp(starts, ends, along), targets)
            for found in (ends - starts) * gradients:
                total += found
            continue
        level = levels[step - len(parts)]
        baselines = [choice.example(n) if few else place(n).start for n in level]
        index = torch.arange(rows, device=inputs.device).repeat(len(level))
        with torch.no_grad():
            values, _ = model.objective(torch.cat(baselines), targets.take(index))
            if level.stop == ends_of:
                end, logits = model.objective(inputs, targets)
        for value in values.reshape(-1, rows):
            start += value
    attributions = (total / samples).to(inputs.dtype)
    warn_of_zeros(job, attributions, _ZERO)
    delta = convergence_delta(job, attributions, end, start / ends_of, _INEXACT)
    return PathSamplesResult(attributions, delta, logits)
