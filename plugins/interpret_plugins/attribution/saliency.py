"""Saliency: the gradient of a target with respect to the input."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Params,
    Plugin,
    logits_before,
    output,
)

from .gradients import input_gradient
from .perturbation import channel_axis


class SaliencyParams(Params):
    absolute: bool = Field(True, description="Give the gradient's magnitude, without its sign.")
    channels: Literal["keep", "max", "sum"] = Field(
        "keep",
        description="Keep the channel axis (of tokens, their embeddings' values), or reduce it to "
        "its largest value or its sum; `max` of magnitudes is the published map.",
    )


@dataclass(frozen=True)
class SaliencyResult:
    attributions: Tensor = output(
        "Gradient of the target by each input value, `(N, *input_shape)`; without the channel "
        "axis where `channels` reduces it."
    )
    logits: Tensor | None = logits_before()


class Saliency(Plugin[SaliencyParams, SaliencyResult]):
    """Gradient of the target with respect to the input.

    The target is any class, neuron, channel, layer or direction. For a class it is the logit,
    never a probability. Values are in target units per input unit, in the model's own bounds.

    Source: Simonyan, Vedaldi & Zisserman 2013, "Deep Inside Convolutional Networks", section 3:
    `w = dS_c/dx`, and section 3.1: the map is the largest `|w|` over the channels.
    """

    name = "saliency"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT})

    def check(self, model: Classifier, params: SaliencyParams) -> None:
        if params.channels != "keep" and _channel_axis(model) is None:
            raise InvalidRequest.field(
                "params.channels",
                f"the input of {model.name} has no channel axis that is known (layout "
                f"{model.input_layout!r}); use 'keep', or state inputs[0].layout in the manifest",
            )

    def run(
        self, model: Classifier, batch: Batch, params: SaliencyParams, job: Job
    ) -> SaliencyResult:
        gradient, logits = input_gradient(model, batch, job)
        if params.absolute:
            gradient = gradient.abs()
        axis = _channel_axis(model)
        if params.channels != "keep" and axis is not None:
            gradient = gradient.amax(axis) if params.channels == "max" else gradient.sum(axis)
        return SaliencyResult(gradient, logits)


def _channel_axis(model: Classifier) -> int | None:
    """Of a batch of inputs; None where none is known."""
    axis = None if model.packing is not None else channel_axis(model, model.input_shape)
    return None if axis is None else axis + 1
