"""A plugin in a distribution of its own: `pip install examples/entry_point_plugin`."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    Params,
    Plugin,
    metric,
    output,
)


class LinearEvidenceParams(Params):
    samples: int = Field(8, ge=1, le=1000, description="Noisy copies that are averaged.")
    noise: float = Field(
        0.05, ge=0, le=1, description="Standard deviation, as a share of the bounds' width."
    )


@dataclass(frozen=True)
class LinearEvidenceResult:
    attributions: Tensor = output("Evidence of each input value, `(N, *input_shape)`, signed.")
    total: Tensor = metric("Sum of the evidence: the change of the target to first order.")


class LinearEvidence(Plugin[LinearEvidenceParams, LinearEvidenceResult]):
    """What each input value adds to the target, to first order, against a baseline.

    The difference between input and baseline times the gradient, averaged over noisy inputs. The
    baseline is the model's neutral input unless the caller brings one.
    """

    name = "linear_evidence"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT})
    tensors: ClassVar[dict[str, AuxTensor]] = {
        "baseline": AuxTensor("The input that counts as no evidence, one per row.")
    }

    def run(
        self, model: Classifier, batch: Batch, params: LinearEvidenceParams, job: Job
    ) -> LinearEvidenceResult:
        baseline = batch.tensors.get("baseline", model.centre)
        width = params.noise * model.scale
        mean = torch.zeros_like(batch.inputs)
        for sample in job.track(params.samples):
            noisy = batch.inputs + width * batch.normal(sample)
            mean += model.gradient(noisy, batch.targets).inputs / params.samples
            job.preview(attributions=(batch.inputs - baseline) * mean)
        zero = ~mean.flatten(1).any(1)
        if zero.any():
            job.warn(zero, "the gradient is zero at every noisy copy of this input")
        evidence = (batch.inputs - baseline) * mean
        return LinearEvidenceResult(evidence, evidence.flatten(1).sum(1))
