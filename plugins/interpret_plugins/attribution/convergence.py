"""How far attributions are from adding up to a target's difference (completeness)."""

import torch
from torch import Tensor

from interpret_server.plugin import Job

_LARGEST_SHARE = 0.05  # of the target's difference that the attributions may miss unremarked
_ROUNDINGS = 8  # units of the last place of what is added up, which say nothing
_INEXACT = (
    "the attributions miss the target's difference between the input and the baseline by more than "
    "5% of it; take more steps"
)


def convergence_delta(
    job: Job, attributions: Tensor, end: Tensor, start: Tensor, message: str = _INEXACT
) -> Tensor:
    """What the attributions of each row miss of `end - start`, `(N,)`; 0 within rounding.

    Rows where that is more than 5% of the difference are warned about.

    Args:
        job: that the attributions belong to.
        attributions: `(N, ...)`.
        end: `(N,)`, the target's value at the inputs.
        start: `(N,)`, its value at the baselines.
        message: of the warning.
    """
    shares = attributions.double().flatten(1)
    difference = end.double() - start.double()
    delta = shares.sum(1) - difference
    sizes = end.double().abs() + start.double().abs() + shares.abs().sum(1)
    delta = torch.where(delta.abs() <= _ROUNDINGS * torch.finfo(end.dtype).eps * sizes, 0, delta)
    inexact = delta.abs() > _LARGEST_SHARE * difference.abs()
    if inexact.any():
        job.warn(inexact, message)
    return delta.to(attributions.dtype)
