"""Deconvolutional network."""

from dataclasses import dataclass

from torch import Tensor

from interpret_server.models.relu_rules import ReluRule
from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    Params,
    Plugin,
    logits_before,
    output,
)

from .gradients import input_gradient


class DeconvnetParams(Params):
    pass


@dataclass(frozen=True)
class DeconvnetResult:
    attributions: Tensor = output(
        "The target projected back to the input, `(N, *input_shape)`, signed."
    )
    logits: Tensor | None = logits_before()


class Deconvnet(Plugin[DeconvnetParams, DeconvnetResult]):
    """The target projected back to the input, rectifying at every rectifier what comes back.

    At each rectifier `R_l = (R_{l+1} > 0) * R_{l+1}`, whatever the rectifier's own input was;
    filters are applied transposed, and max pooling sends a value back to where the maximum was.
    Values below zero are legitimate: the first linear layer follows the last rectifier on the way
    back.

    Source: Zeiler & Fergus 2014, "Visualizing and Understanding Convolutional Networks",
    section 2.1; written as a backward pass in Simonyan et al. 2013, section 4.
    """

    name = "deconvnet"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT, Capability.RECTIFIERS})

    def run(
        self, model: Classifier, batch: Batch, params: DeconvnetParams, job: Job
    ) -> DeconvnetResult:
        return DeconvnetResult(*input_gradient(model, batch, job, ReluRule.DECONVNET))
