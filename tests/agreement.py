"""A plugin of two models, for the tests of second models: imported, or from a plugin folder."""

import os
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    ModelOutput,
    ModelRole,
    Params,
    Plugin,
    logits_before,
    metric,
    output,
)


class AgreementParams(Params):
    steps: int = Field(1, ge=0, le=10**6, description="How often both are asked.")
    seconds: float = Field(0.0, ge=0, description="Spent in each step.")
    deed: str = Field("", description="`die` ends the process.")


@dataclass(frozen=True)
class AgreementResult:
    theirs: Tensor = output("Logits of the judge.", like_input=False)
    agrees: Tensor = metric("1 where both models name the same class.")
    process: Tensor = metric("Where it ran.")
    size: Tensor = metric("Length of the witness's gradient; 0 without a witness.")
    logits: Tensor = logits_before()


class Agreement(Plugin[AgreementParams, AgreementResult]):
    """Whether a second model names the class that the first one names."""

    name = "agreement"
    kind = Kind.METRIC
    target_kinds = frozenset()
    models: ClassVar[dict[str, ModelRole]] = {
        "judge": ModelRole("What the first model is compared with.", required=True),
        "witness": ModelRole("Differentiated.", frozenset({Capability.GRADIENT})),
        "stranger": ModelRole(
            "Takes whatever it likes.", same_inputs=False, output=ModelOutput.ANY
        ),
    }

    def run(
        self, model: Classifier, batch: Batch, params: AgreementParams, job: Job
    ) -> AgreementResult:
        judge = job.model("judge")
        with torch.no_grad():
            ours, theirs = model(batch.inputs), judge(batch.inputs)
            for _ in job.track(params.steps):
                time.sleep(params.seconds)
                ours, theirs = model(batch.inputs), judge(batch.inputs)
                if params.deed == "die":
                    os.abort()
        size = torch.zeros(len(batch))
        if "witness" in job.models:
            leaf = batch.inputs.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(job.model("witness")(leaf).max(1).values.sum(), leaf)
            size = gradient.flatten(1).norm(dim=1)
        if "stranger" in job.models:
            stranger = job.model("stranger")
            size = stranger(stranger.neutral(len(batch))).detach().sum(1)
        process = torch.full((len(batch),), float(os.getpid()), dtype=torch.float64)
        agrees = (ours.argmax(1) == theirs.argmax(1)).to(theirs.dtype)
        return AgreementResult(theirs, agrees, process, size, ours)
