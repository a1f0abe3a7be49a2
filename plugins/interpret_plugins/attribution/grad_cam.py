"""Gradient-weighted class activation mapping."""

from torch import Tensor

from interpret_server.plugin import Batch, Capability, Classifier, Job, Kind, Plugin

from .activation_maps import (
    ActivationMap,
    ActivationMapParams,
    Maps,
    check_maps,
    maps_at,
    result_of,
)


class GradCAM(Plugin[ActivationMapParams, ActivationMap]):
    """A layer's maps, each weighted by the target's mean gradient in it.

    `L = ReLU(sum_k alpha_k A_k)` with `alpha_k = 1/Z sum_ij dy/dA_ijk`, where `A_k` is channel k
    of the layer, Z its number of positions, and y the target: a logit, never a probability, or a
    unit of a later layer. In a network that ends in average pooling and one linear layer, Z times
    it is the class activation map of Zhou et al. 2016. The map is as coarse as the layer.

    Source: Selvaraju, Cogswell, Das, Vedantam, Parikh & Batra 2017, "Grad-CAM: Visual
    Explanations from Deep Networks via Gradient-based Localization", section 3, equations 1 and 2.
    """

    name = "grad_cam"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT, Capability.LAYERS})

    def check(self, model: Classifier, params: ActivationMapParams) -> None:
        check_maps(model, params)

    def run(
        self, model: Classifier, batch: Batch, params: ActivationMapParams, job: Job
    ) -> ActivationMap:
        for _ in job.track(1):
            maps = maps_at(model, batch, params)
        return result_of(model, batch, params, maps, gradient_weighted(maps), job)


def gradient_weighted(maps: Maps) -> Tensor:
    """Grad-CAM before rectifying, `(N, *spatial)`."""
    positions = maps.values[0, 0].numel()
    return maps.weighted(maps.over_positions(maps.gradient) / positions)
