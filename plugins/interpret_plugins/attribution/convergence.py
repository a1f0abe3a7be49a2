"""How far attributions are from adding up to a target's difference (completeness)."""

import torch
from torch import Tensor

from interpret_server.plugin import Job

_LARGEST_SHARE = 0.05  # of the target's difference that the attributions may miss unremarked
_INEXACT = (
    "the attributions miss the target's difference between the input and the baseline by more than "
    "5% of it; take more steps"
)


def convergence_delta(
    job: Job, attributions: Tensor, end: Tensor, start: Tensor, message: str = _INEXACT
) -> Tensor:
    """What the attributions of each row miss of `end - start`, `(N,)`; 0 for an exact integral.

    Rows where that is more than 5% of the difference are warned about.

    Args:
        job: that the attributions belong to.
        attributions: `(N, ...)`.
        end: `(N,)`, the target's value at the inputs.
        start: `(N,)`, its value at the baselines.
        message: of the warning.
    """
    difference = end.double() - start.double()
    delta = attributions.double().flatten(1).sum(1) - difference
    rounding = 8 * torch.finfo(end.dtype).eps * (end.abs() + start.abs()).double()
    inexact = delta.abs() > _LARGEST_SHARE * difference.abs() + rounding
    if inexact.any():
        job.warn(inexact, message)
    return delta.to(attributions.dtype)
