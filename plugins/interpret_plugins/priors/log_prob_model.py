"""A second model that gives a log density, or an energy, as a prior."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    ModelOutput,
    ModelRole,
    Plugin,
    Targets,
)

from .prior import PriorParams, PriorResult


class LogProbModelParams(PriorParams):
    """What the second model gives."""

    gives: Literal["log_prob", "energy"] = Field(
        "log_prob",
        description="log_prob: the log density of a row, up to a constant; energy: minus that.",
    )


class LogProbModel(Plugin[LogProbModelParams, PriorResult]):
    """A loaded network that gives a log density, its lower bound or an energy, as a prior.

    The network gives one number for each row; its gradient by the row is the score. RBM free
    energies, evidence lower bounds of variational autoencoders, autoregressive likelihoods and
    energy-based models are of this form. The density must be one over the whole input space.
    """

    name = "log_prob_model"
    kind = Kind.PRIOR
    target_kinds = frozenset()
    models: ClassVar[Mapping[str, ModelRole]] = {
        "prior": ModelRole(
            "The network of the log density.",
            requires=frozenset({Capability.GRADIENT}),
            required=True,
            output=ModelOutput.NUMBER,
        )
    }

    def check_seconds(
        self,
        params: LogProbModelParams,
        plugins: Mapping[str, Sequence[Plugin[Any, Any]]],
        models: Mapping[str, Classifier],
    ) -> None:
        _check(models["prior"])

    def run(
        self, model: Classifier, batch: Batch, params: LogProbModelParams, job: Job
    ) -> PriorResult:
        network, x = job.model("prior"), batch.inputs
        _check(network)
        number = Targets.classes(torch.zeros(len(x), device=x.device))
        for _ in job.track(1):
            found = network.gradient(x, number)
        factor = params.weight if params.gives == "log_prob" else -params.weight
        return PriorResult(factor * found.inputs, factor * found.objective)


def _check(network: Classifier) -> None:
    if network.classes != 1:
        raise InvalidRequest.field(
            "models.prior",
            "log_prob_model needs a network that gives one number for each row, and "
            f"{network.name} gives {network.classes}",
        )
