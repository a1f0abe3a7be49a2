"""A second model that denoises, or gives a score, as a prior."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from interpret_server.plugin import (
    Batch,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    ModelOutput,
    ModelRole,
    Plugin,
)

from .prior import PriorParams, PriorResult


class ScoreModelParams(PriorParams):
    """What the second model gives."""

    gives: Literal["denoised", "score"] = Field(
        "denoised",
        description="denoised: the input without its noise, R(x); score: the gradient of a log "
        "density by the input itself.",
    )
    sigma: float = Field(
        0.1,
        gt=0,
        le=1e3,
        description="denoised: standard deviation of the noise that the network was trained to "
        "remove, in widths of the bounds.",
    )


class ScoreModel(Plugin[ScoreModelParams, PriorResult]):
    """A loaded denoiser or score network as a prior; it has a score, but no log density.

    The score is (R(x) - x) / sigma^2, sigma in the units of x (Alain & Bengio 2014, "What
    regularized auto-encoders learn from the data-generating distribution": exact for the best
    denoiser as sigma goes to 0), or what the network gives.
    """

    name = "score_model"
    kind = Kind.PRIOR
    has_log_prob: ClassVar[bool] = False
    target_kinds = frozenset()
    models: ClassVar[Mapping[str, ModelRole]] = {
        "prior": ModelRole(
            "The denoiser or score network.", required=True, output=ModelOutput.LIKE_INPUT
        )
    }

    def check_seconds(
        self,
        params: ScoreModelParams,
        plugins: Mapping[str, Sequence[Plugin[Any, Any]]],
        models: Mapping[str, Classifier],
    ) -> None:
        shape = models["prior"].input_shape
        if -1 not in shape:
            _check(models["prior"], math.prod(shape))

    def run(
        self, model: Classifier, batch: Batch, params: ScoreModelParams, job: Job
    ) -> PriorResult:
        network, x = job.model("prior"), batch.inputs
        _check(network, math.prod(x.shape[1:]))
        with torch.no_grad():
            for _ in job.track(1):
                score = network(x).reshape(x.shape)
        if params.gives == "denoised":
            score = (score - x) / (params.sigma * model.scale) ** 2
        return PriorResult(params.weight * score, None)


def _check(network: Classifier, values: int) -> None:
    if network.classes != values:
        raise InvalidRequest.field(
            "models.prior",
            "score_model needs a network that gives as many values as it takes, and "
            f"{network.name} gives {network.classes} for {values}",
        )
