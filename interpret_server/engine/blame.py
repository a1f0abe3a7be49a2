"""Whether a call failed because of a model's own program."""

import torch

from ..errors import FailedPrecondition, InterpretError, InvalidRequest
from ..models.classifier import Capability, Classifier
from ..models.sources import brief
from .request import Request, take

Requires = frozenset[Capability]


def blame(request: Request) -> InterpretError | None:
    """Why a model of a call does not run on its rows; None where all do.

    Runs them once more, forward, and backward where the plugin needs gradients.
    """
    if not request.batch.has_inputs:
        return None
    plugin = request.plugin
    used = [(request.served.classifier, "inputs", plugin.requires)]
    used += [
        (second.classifier, f"models.{role}", plugin.models[role].requires)
        for role, second in request.models.items()
        if plugin.models[role].same_inputs
    ]
    failures = (_wrong_size(request, *item) or _failure(request, *item) for item in used)
    return next(filter(None, failures), None)


def _wrong_size(
    request: Request, classifier: Classifier, field: str, _: Requires
) -> InterpretError | None:
    row = classifier.row_shape(request.batch.inputs)
    if None not in classifier.input_sizes or row == classifier.input_shape or not row:
        return None
    try:
        with torch.no_grad():
            classifier(torch.zeros(1, *row, dtype=classifier.dtype, device=classifier.device))
    except Exception:  # whatever the network raises on a size that it was not made for
        sizes = ", ".join(map(str, row))
        return InvalidRequest.field(
            field, f"{classifier.name} does not run on rows of shape [{sizes}]"
        )
    return None


def _failure(
    request: Request, classifier: Classifier, field: str, requires: Requires
) -> InterpretError | None:
    size = request.max_rows
    whose = f"{field}: the network of {classifier.name}"
    for start in range(0, len(request.batch), size):
        try:
            leaf = take(
                request.batch, range(start, start + size), classifier=classifier
            ).inputs.detach()
            with torch.no_grad():
                classifier(leaf)
        except Exception as error:  # whatever a foreign program raises
            return FailedPrecondition(f"{whose} does not run on these rows ({brief(error)})")
        if Capability.GRADIENT not in requires:
            continue
        try:
            leaf = leaf.clone().requires_grad_()
            with torch.enable_grad():
                torch.autograd.grad(classifier(leaf).sum(), leaf, allow_unused=True)
        except Exception as error:  # whatever the derivative of a foreign program raises
            return FailedPrecondition(f"{whose} has no gradient at these rows ({brief(error)})")
    return None
