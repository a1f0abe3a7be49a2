"""What the plugins that return one gradient have in common."""

import torch
from torch import Tensor

from interpret_server.models.classifier import Gradient
from interpret_server.models.relu_rules import ReluRule
from interpret_server.plugin import Batch, Capability, Classifier, Job

_LEAST_REACH = 1e-3  # share of the target's own size

_ZERO = (
    "the gradient is zero everywhere: the target does not change near this input, "
    "which says nothing about what matters"
)
_SATURATED = (
    "the gradient is saturated: to first order, even moving every value through the whole range of "
    "inputs changes the target by less than a thousandth of its size; take a method that looks "
    "beyond this input, such as integrated_gradients"
)


def input_gradient(
    model: Classifier, batch: Batch, job: Job, rule: ReluRule = ReluRule.PLAIN
) -> tuple[Tensor, Tensor | None]:
    """Each row's target differentiated by its input, in one reported step.

    Rows whose gradient is zero everywhere are warned about, and, for the true gradient, those where
    it is saturated: its length `|g|_1` times the width of the bounds (without bounds: the row's
    largest magnitude) is less than a thousandth of the target's size, which is the spread of the
    logits or the magnitude of a value in a layer.

    Returns:
        The gradient `(N, *input_shape)`, and the logits `(N, K)`, or None where the target lies in
        a layer.
    """
    for _ in job.track(1):
        gradient = model.gradient(batch.inputs, batch.targets, rule)
    length = _length(gradient.inputs)
    _warn(job, length == 0, _ZERO)
    if rule is ReluRule.PLAIN:
        _warn(job, _saturated(model, batch.inputs, gradient, length), _SATURATED)
    return gradient.inputs, gradient.logits


def warn_of_zeros(job: Job, attributions: Tensor, message: str) -> None:
    """Attach `message` to the rows of `attributions`, `(N, ...)`, that are zero everywhere."""
    _warn(job, _length(attributions) == 0, message)


def _warn(job: Job, rows: Tensor, message: str) -> None:
    if rows.any():
        job.warn(rows, message)


def _length(values: Tensor) -> Tensor:
    """`|v|_1` of every row, `(N,)` in float32 or finer; 0 only where every value is."""
    rows = values.flatten(1).abs()
    return rows.sum(1, dtype=torch.promote_types(rows.dtype, torch.float32))


def _saturated(model: Classifier, inputs: Tensor, gradient: Gradient, length: Tensor) -> Tensor:
    """Rows `(N,)` in which the gradient, of this `|g|_1`, is not zero, but next to nothing."""
    width: Tensor | float = model.scale
    if Capability.BOUNDS not in model.capabilities:
        width = inputs.flatten(1).abs().amax(1).double()
        width = width.where(width > 0, 1)
    if gradient.logits is None:
        size = gradient.objective.double().abs()
    else:
        least, largest = gradient.logits.double().aminmax(dim=1)
        size = largest - least
    return (length > 0) & size.isfinite() & (length.double() * width < _LEAST_REACH * size)
