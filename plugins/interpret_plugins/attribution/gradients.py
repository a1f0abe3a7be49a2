"""What the plugins that return one gradient have in common."""

from torch import Tensor

from interpret_server.models.relu_rules import ReluRule
from interpret_server.plugin import Batch, Classifier, Job

_ZERO = (
    "the gradient is zero everywhere: the target does not change near this input, "
    "which says nothing about what matters"
)


def input_gradient(
    model: Classifier, batch: Batch, job: Job, rule: ReluRule = ReluRule.PLAIN
) -> tuple[Tensor, Tensor | None]:
    """Each row's target differentiated by its input, in one reported step.

    Rows whose gradient is zero everywhere are warned about.

    Returns:
        The gradient `(N, *input_shape)`, and the logits `(N, K)`, or None where the target lies in
        a layer.
    """
    for _ in job.track(1):
        gradient = model.gradient(batch.inputs, batch.targets, rule)
    warn_of_zeros(job, gradient.inputs, _ZERO)
    return gradient.inputs, gradient.logits


def warn_of_zeros(job: Job, attributions: Tensor, message: str) -> None:
    """Attach `message` to the rows of `attributions`, `(N, ...)`, that are zero everywhere."""
    zero = ~attributions.flatten(1).any(1)
    if zero.any():
        job.warn(zero, message)
