"""What the plugins that propagate relevance have in common."""

from dataclasses import dataclass

import torch
from torch import Tensor

from interpret_server.models.relevance import Composite, relevance
from interpret_server.plugin import Batch, Classifier, Job, logits_before, metric, output

from .gradients import warn_of_zeros

_ZERO = (
    "no relevance comes back to the input: the target's value is 0, or everything that leads to it "
    "is 0 here"
)
_LARGEST_SUM = 100  # times the target's value
_UNSTABLE = (
    "the relevances sum to more than 100 times the target's value: something was divided by a sum "
    "near 0; raise epsilon or use another rule"
)
_NOT_FINITE = (
    "some relevances were not finite and are given as 0; use another rule or raise epsilon"
)


@dataclass(frozen=True)
class RelevanceResult:
    attributions: Tensor = output(
        "Each input value's relevance, `(N, *input_shape)`, signed, in the units of the target."
    )
    conservation_delta: Tensor = metric(
        "Sum of the relevances less the target's value: what biases and constants took or gave, "
        "and what the rules do not conserve."
    )
    logits: Tensor | None = logits_before()


def input_relevance(
    model: Classifier, batch: Batch, composite: Composite, job: Job
) -> RelevanceResult:
    """Each row's relevances in one reported step; rows without any are warned about."""
    for _ in job.track(1):
        found = relevance(model, batch.inputs, batch.targets, composite)
    infinite = ~found.inputs.isfinite().flatten(1).all(1)
    if infinite.any():
        job.warn(infinite, _NOT_FINITE)
    inputs = torch.where(found.inputs.isfinite(), found.inputs, 0)
    warn_of_zeros(job, inputs, _ZERO)
    total = inputs.double().flatten(1).sum(1)
    objective = found.objective.double()
    unstable = total.abs() > _LARGEST_SUM * objective.abs()
    if unstable.any():
        job.warn(unstable, _UNSTABLE)
    delta = (total - objective).to(found.objective.dtype)
    return RelevanceResult(inputs, delta, found.logits)
