"""The input that stands for the absence of evidence."""

from enum import StrEnum

import torch
from torch import Tensor

from interpret_server.plugin import Capability, Classifier, InvalidRequest


class Baseline(StrEnum):
    """A constant input, in the model's own bounds."""

    ZERO = "zero"
    LOWER = "lower"  # the lower bound everywhere
    UPPER = "upper"
    MEAN = "mean"  # the manifest's mean, else the middle of the bounds, else 0


def check_baseline(model: Classifier, baseline: Baseline) -> None:
    """Refuse a bound as baseline where the model states none.

    Raises:
        InvalidRequest: naming `params.baseline`.
    """
    bound = baseline in (Baseline.LOWER, Baseline.UPPER)
    if bound and Capability.BOUNDS not in model.capabilities:
        raise InvalidRequest.field(
            "params.baseline",
            f"{model.name} has no {baseline} bound: {model.lacking[Capability.BOUNDS]}",
        )


def baseline_rows(model: Classifier, baseline: Baseline, inputs: Tensor) -> Tensor:
    """The baseline of each row of `inputs`, `(N, *input_shape)`.

    What a row only carries along (a mask, token indices) is that of the input.
    """
    match baseline:
        case Baseline.ZERO:
            values = torch.zeros_like(inputs)
        case Baseline.LOWER:
            values = torch.full_like(inputs, model.bounds.lower)
        case Baseline.UPPER:
            values = torch.full_like(inputs, model.bounds.upper)
        case Baseline.MEAN:
            values = model.centre.expand_as(inputs)
    return model.carry(values, inputs)
