"""LayerCAM."""

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


class LayerCAM(Plugin[ActivationMapParams, ActivationMap]):
    """A layer's maps, weighted place by place by the target's positive gradient.

    `L = ReLU(sum_k ReLU(dy/dA_ijk) A_ijk)`. As its weights keep their place, it is also sharp at
    early layers, whose maps are fine.

    Source: Jiang, Zhang, Hou, Cheng & Wei 2021, "LayerCAM: Exploring Hierarchical Class Activation
    Maps for Localization".
    """

    name = "layer_cam"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT, Capability.LAYERS})

    def check(self, model: Classifier, params: ActivationMapParams) -> None:
        check_maps(model, params)

    def run(
        self, model: Classifier, batch: Batch, params: ActivationMapParams, job: Job
    ) -> ActivationMap:
        for _ in job.track(1):
            maps = maps_at(model, batch, params)
        return result_of(model, batch, params, maps, _positionwise(maps), job)


def _positionwise(maps: Maps) -> Tensor:
    """Before rectifying, `(N, *spatial)`."""
    return maps.weighted(maps.gradient.clamp(min=0))
