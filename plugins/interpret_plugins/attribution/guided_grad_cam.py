"""Guided Grad-CAM."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from interpret_server.models.relu_rules import ReluRule
from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    Plugin,
    logits_before,
    metric,
    output,
)

from .activation_maps import ActivationMapParams, check_maps, maps_at, over_inputs, result_of
from .grad_cam import gradient_weighted


class GuidedGradCAMParams(ActivationMapParams):
    upsample: Literal["linear", "nearest"] = Field(
        "linear",
        description="How the map is brought to the input's size: interpolation linear along each "
        "axis (bilinear for images), or the nearest value.",
    )


@dataclass(frozen=True)
class GuidedGradCAMResult:
    attributions: Tensor = output(
        "Guided gradient times enlarged map, `(N, *input_shape)`, signed."
    )
    map: Tensor = output("Grad-CAM at the layer's spatial size.", like_input=False)
    layer: Tensor = metric("Position of the explained layer in the model's list, from 0.")
    logits: Tensor | None = logits_before()


class GuidedGradCAM(Plugin[GuidedGradCAMParams, GuidedGradCAMResult]):
    """Guided backpropagation times Grad-CAM: fine detail where the target's evidence lies.

    The guided gradient of the target by the input, multiplied element by element with the map of
    Grad-CAM at the input's size. It inherits from guided backpropagation that it shows the input's
    structure more than what decides between classes.

    Source: Selvaraju, Cogswell, Das, Vedantam, Parikh & Batra 2017, "Grad-CAM: Visual
    Explanations from Deep Networks via Gradient-based Localization", section 3.2; Springenberg
    et al. 2014 for the guided gradient.
    """

    name = "guided_grad_cam"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT, Capability.LAYERS, Capability.RECTIFIERS})

    def check(self, model: Classifier, params: GuidedGradCAMParams) -> None:
        check_maps(model, params)

    def run(
        self, model: Classifier, batch: Batch, params: GuidedGradCAMParams, job: Job
    ) -> GuidedGradCAMResult:
        for step in job.track(2):
            if step == 0:
                maps = maps_at(model, batch, params)
                found = result_of(model, batch, params, maps, gradient_weighted(maps), job)
            else:
                guided = model.gradient(batch.inputs, batch.targets, ReluRule.GUIDED).inputs
        attributions = guided * over_inputs(model, found.attributions)
        return GuidedGradCAMResult(attributions, found.map, found.layer, found.logits)
