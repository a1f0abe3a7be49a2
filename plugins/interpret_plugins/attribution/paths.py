"""Straight paths from a baseline to an input."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import AuxTensor, Batch, Classifier, Params, Targets

from .baselines import Baseline, baseline_rows

BASELINE = AuxTensor("Where each row's path begins, in place of the parameter.")


class PathParams(Params):
    """Where a path begins."""

    baseline: Baseline = Field(
        Baseline.ZERO,
        description="Where the path begins, in the model's own units: zero, the lower or the upper "
        "bound, or the manifest's mean (else the middle of the bounds). The tensor `baseline` "
        "replaces it.",
    )


def baseline_of(model: Classifier, batch: Batch, baseline: Baseline) -> Tensor:
    """The tensor `baseline` of a request, else that of the parameter, `(N, *input_shape)`."""
    given = batch.tensors.get("baseline")
    return baseline_rows(model, baseline, batch.inputs) if given is None else given


def points(start: Tensor, end: Tensor, places: Sequence[float]) -> Tensor:
    """P points on the way from `start` to `end`, both `(N, ...)`, as `(P, N, ...)`."""
    shares = end.new_tensor(places)
    return torch.lerp(start, end, shares.view(-1, *(1,) * end.dim()))


def repeated(targets: Targets, times: int) -> Targets:
    """The targets of `times` variants of all rows, one variant after the other."""
    index = torch.arange(len(targets), device=targets.index.device)
    return targets.take(index.repeat(times))
