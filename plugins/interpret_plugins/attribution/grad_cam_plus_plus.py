"""Grad-CAM++."""

import torch
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


class GradCAMPlusPlus(Plugin[ActivationMapParams, ActivationMap]):
    """Grad-CAM with weights that count every place where the target would rise.

    `L = ReLU(sum_k w_k A_k)`, `w_k = sum_ij alpha_ijk ReLU(g_ijk)` and
    `alpha_ijk = g^2 / (2 g^2 + sum_ab A_abk g^3)`, with `g = dS/dA_ijk` and S the target. These are
    the paper's weights for `Y = exp(S)` without their common factor `exp(S) > 0`, which changes
    the scale of a row's map alone and overflows for large logits. The closed form holds where S
    is piecewise linear in the layer, and the layer should be rectified: where its maps sum to less
    than zero, weights can become large or negative.

    Source: Chattopadhay, Sarkar, Howlader & Balasubramanian 2018, "Grad-CAM++: Generalized
    Gradient-based Visual Explanations for Deep Convolutional Networks", equations 5 and 19.
    """

    name = "grad_cam_plus_plus"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT, Capability.LAYERS})

    def check(self, model: Classifier, params: ActivationMapParams) -> None:
        check_maps(model, params)

    def run(
        self, model: Classifier, batch: Batch, params: ActivationMapParams, job: Job
    ) -> ActivationMap:
        for _ in job.track(1):
            maps = maps_at(model, batch, params)
        return result_of(model, batch, params, maps, _plus_plus(maps), job)


def _plus_plus(maps: Maps) -> Tensor:
    """Before rectifying, `(N, *spatial)`.

    `g^2 / (2 g^2 + g^3 sum(A)) = 1 / (2 + g sum(A))`, which is wanted where `g > 0` alone.
    """
    gradient = maps.gradient.clamp(min=0)
    divisor = 2 + gradient * maps.over_positions(maps.values)
    alpha = torch.where(divisor == 0, 0, divisor.reciprocal())
    return maps.weighted(maps.over_positions(alpha * gradient))
