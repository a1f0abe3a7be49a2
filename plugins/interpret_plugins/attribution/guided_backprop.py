"""Guided backpropagation."""

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


class GuidedBackpropParams(Params):
    pass


@dataclass(frozen=True)
class GuidedBackpropResult:
    attributions: Tensor = output("Guided gradient of the target, `(N, *input_shape)`, signed.")
    logits: Tensor | None = logits_before()


class GuidedBackprop(Plugin[GuidedBackpropParams, GuidedBackpropResult]):
    """Gradient of the target in which every rectifier also stops negative gradients.

    At each rectifier the gradient passes where both the rectifier's input and the gradient itself
    are positive: `R_l = (f_l > 0) * (R_{l+1} > 0) * R_{l+1}`. Clipped and leaky rectifiers use
    their own derivative in place of `f_l > 0`. Values below zero are legitimate: the first linear
    layer follows the last rectifier on the way back. The map shows what the network detects more
    than what decides between classes; compare the maps of two classes before reading one.

    Source: Springenberg, Dosovitskiy, Brox & Riedmiller 2014, "Striving for Simplicity",
    section 3.4 and figure 1.
    """

    name = "guided_backprop"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT, Capability.RECTIFIERS})

    def run(
        self, model: Classifier, batch: Batch, params: GuidedBackpropParams, job: Job
    ) -> GuidedBackpropResult:
        return GuidedBackpropResult(*input_gradient(model, batch, job, ReluRule.GUIDED))
