"""Whether a call failed because of the model's own program."""

import torch

from ..errors import FailedPrecondition, InterpretError, InvalidRequest
from ..models.classifier import Capability
from ..models.sources import brief
from .request import Request, take


def blame(request: Request) -> InterpretError | None:
    """Why the model itself does not run on a call's rows; None where it does.

    Runs the model once more, forward, and backward where the plugin needs gradients.
    """
    if not request.batch.has_inputs:
        return None
    return _wrong_size(request) or _failure(request)


def _wrong_size(request: Request) -> InterpretError | None:
    classifier = request.served.classifier
    row = classifier.row_shape(request.batch.inputs)
    if None not in classifier.input_sizes or row == classifier.input_shape or not row:
        return None
    try:
        with torch.no_grad():
            classifier(torch.zeros(1, *row, dtype=classifier.dtype, device=classifier.device))
    except Exception:  # whatever the network raises on a size that it was not made for
        sizes = ", ".join(map(str, row))
        return InvalidRequest.field(
            "inputs", f"{classifier.name} does not run on rows of shape [{sizes}]"
        )
    return None


def _failure(request: Request) -> InterpretError | None:
    classifier, size = request.served.classifier, request.max_rows
    for start in range(0, len(request.batch), size):
        try:
            leaf = take(request.batch, slice(start, start + size), classifier).inputs.detach()
            with torch.no_grad():
                classifier(leaf)
        except Exception as error:  # whatever a foreign program raises
            return _refusal(request, f"does not run on these rows ({brief(error)})")
        if Capability.GRADIENT not in request.plugin.requires:
            continue
        try:
            leaf = leaf.clone().requires_grad_()
            with torch.enable_grad():
                torch.autograd.grad(classifier(leaf).sum(), leaf, allow_unused=True)
        except Exception as error:  # whatever the derivative of a foreign program raises
            return _refusal(request, f"has no gradient at these rows ({brief(error)})")
    return None


def _refusal(request: Request, what: str) -> InterpretError:
    return FailedPrecondition(f"inputs: the network of {request.served.classifier.name} {what}")
