"""The model randomisation test: whether an attribution depends on the weights at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_plugins.attribution.perturbation import channel_axis
from interpret_server.errors import FailedPrecondition
from interpret_server.plugin import (
    Batch,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Plugin,
    metric,
    output,
)

from .judged import USES, JudgeParams, explain
from .similarity import spearman, ssim
from .weights import Twin, weighted_layers


class RandomisationParams(JudgeParams):
    order: Literal["cascading", "independent"] = Field(
        "cascading",
        description="Make layers random one after the other, from the output to the input, until "
        "all are; or each one alone.",
    )
    layers: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        max_length=10_000,
        description="Layers that become random; by default all that have weights.",
    )
    weights: Literal["permute", "normal"] = Field(
        "permute",
        description="Shuffle the values of each tensor of weights, or draw them from the normal "
        "distribution of their mean and standard deviation.",
    )
    weight_seed: int = Field(
        0, ge=0, lt=1 << 53, description="Seed of the weights; they are the same for all rows."
    )
    absolute: bool = Field(True, description="Compare magnitudes, without their signs.")
    maps: bool = Field(
        False, description="Return the attributions of every randomised model as well."
    )


@dataclass(frozen=True)
class RandomisationResult:
    similarity: Tensor = metric(
        "Mean rank correlation with the trained model's attribution.", better="low"
    )
    last: Tensor = metric("Rank correlation at the last step: all layers random, if cascading.")
    spearman: Mapping[str, Tensor] = output(
        "Rank correlation with the trained model's attribution, `(N,)`, by the layer that became "
        "random; in the order of the steps."
    )
    attributions: Tensor = output("Those of the trained model, as the method gave them.")
    ssim: Mapping[str, Tensor] | None = output(
        "Structural similarity, `(N,)`, by layer; for attributions with two spatial axes."
    )
    randomised: Mapping[str, Tensor] | None = output(
        "Attributions of the randomised models by layer, where `maps` asks for them."
    )


class Randomisation(Plugin[RandomisationParams, RandomisationResult]):
    """How much of an attribution remains when the model's weights become random: less is better.

    An attribution that looks the same after its model was made random does not explain the model.
    Layers with weights become random on a private copy of the model; after each step the method
    explains the same targets again, and the result is compared with the trained model's by the
    Spearman rank correlation of all values, and by the structural similarity of the sum over
    channels. Random weights have the mean and the spread of the trained ones.

    Source: Adebayo et al. 2018, "Sanity Checks for Saliency Maps": cascading and independent
    randomisation.
    """

    name = "randomisation"
    kind = Kind.METRIC
    uses: ClassVar[Mapping[str, Kind]] = USES

    def check(self, model: Classifier, params: RandomisationParams) -> None:
        known = weighted_layers(model)
        if not known:
            raise FailedPrecondition(
                f"the weights of {model.name} are part of its program and cannot be changed"
            )
        for name in params.layers or ():
            if name not in known:
                some = ", ".join(list(known)[-3:])
                raise InvalidRequest.field(
                    "params.layers",
                    f"{model.name} has no layer {name!r} with weights of its own; it has {some}"
                    + (", ..." if len(known) > 3 else ""),
                )

    def run(
        self, model: Classifier, batch: Batch, params: RandomisationParams, job: Job
    ) -> RandomisationResult:
        known = weighted_layers(model)
        layers = [name for name in reversed(known) if name in (params.layers or known)]
        correlations: dict[str, Tensor] = {}
        structures: dict[str, Tensor] = {}
        maps: dict[str, Tensor] = {}
        for step in job.track(1 + len(layers)):
            if not step:
                trained = explain(job, params.method, model, batch, warn=True)
                compared = trained.abs() if params.absolute else trained
                twin = Twin(model, params.weights, params.weight_seed)
                continue
            name = layers[step - 1]
            twin.randomise(known[name])
            found = explain(job, params.method, twin.classifier(), batch)
            if params.order == "independent":
                twin.restore(known[name])
            random = found.abs() if params.absolute else found
            correlations[name] = spearman(compared, random).to(model.dtype)
            pictures = [_pictures(model, batch, values) for values in (compared, random)]
            if pictures[0] is not None and pictures[1] is not None:
                structures[name] = ssim(pictures[0], pictures[1]).to(model.dtype)
            if params.maps:
                maps[name] = found
        constant = (compared.flatten(1) == compared.flatten(1)[:, :1]).all(1)
        if constant.any():
            job.warn(constant, "the attribution is the same everywhere, and has no order to lose")
        return RandomisationResult(
            similarity=torch.stack(list(correlations.values())).mean(0),
            last=correlations[layers[-1]],
            spearman=correlations,
            attributions=trained,
            ssim=structures or None,
            randomised=maps or None,
        )


def _pictures(model: Classifier, batch: Batch, values: Tensor) -> Tensor | None:
    """The sum over channels, `(N, H, W)`; None where it is no picture."""
    row = tuple(batch.inputs.shape[1:])
    if model.packing is None and tuple(values.shape[1:]) == row and len(row) == 3:
        channel = channel_axis(model, row)
        values = values if channel is None else values.sum(channel + 1)
    large = values.dim() == 3 and min(values.shape[1:]) >= 3
    return values if large and not model.encoded else None
