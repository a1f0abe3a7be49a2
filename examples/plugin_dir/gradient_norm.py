"""A plugin in a single file: `interpret-server serve --plugin-dir examples/plugin_dir`."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    Params,
    Plugin,
    logits_before,
    metric,
)


class GradientNormParams(Params):
    order: Literal[1, 2] = Field(2, description="Which norm: 1 sums magnitudes, 2 is the length.")


@dataclass(frozen=True)
class GradientNormResult:
    gradient_norm: Tensor = metric("Norm of the target's gradient by the input, `(N,)`.")
    logits: Tensor | None = logits_before()


class GradientNorm(Plugin[GradientNormParams, GradientNormResult]):
    """How steeply the target changes around the input, as one number.

    To first order, a change of the input of length d changes the target by at most d times the
    norm of order 2.
    """

    name = "gradient_norm"
    kind = Kind.METRIC
    requires = frozenset({Capability.GRADIENT})

    def run(
        self, model: Classifier, batch: Batch, params: GradientNormParams, job: Job
    ) -> GradientNormResult:
        for _ in job.track(1):
            gradient = model.gradient(batch.inputs, batch.targets)
        norm = torch.linalg.vector_norm(gradient.inputs.flatten(1), ord=params.order, dim=1)
        return GradientNormResult(norm, gradient.logits)
