"""The total-variation prior: neighbouring pixels are alike."""

from typing import ClassVar

from interpret_server.plugin import Batch, Classifier, InvalidRequest, Job, Kind, Plugin

from ..synthesis.centred import Centred
from ..synthesis.spatial import Axes, total_variation, total_variation_gradient
from .prior import PriorParams, PriorResult


class TotalVariation(Plugin[PriorParams, PriorResult]):
    """A prior of smooth images: p(z) ~ exp(-weight * TV(z)), TV the sum of squared differences.

    TV(z) is the sum over channels, positions and spatial axes of the squared difference to the next
    pixel, z = (x - centre) / scale being the centred input (scale: the width of the bounds, else
    1). Constant images are free, so it is no density by itself and must be combined with one.
    """

    name = "total_variation"
    kind = Kind.PRIOR
    target_kinds = frozenset()
    proper: ClassVar[bool] = False

    def check(self, model: Classifier, params: PriorParams) -> None:
        if not Axes.of(model).spatial:
            raise InvalidRequest.field(
                "model", f"total variation needs spatial axes, and {model.name} takes flat vectors"
            )

    def run(self, model: Classifier, batch: Batch, params: PriorParams, job: Job) -> PriorResult:
        axes, space = Axes.of(model), Centred.of(model)
        for _ in job.track(1):
            z = space.from_input(batch.inputs)
            log_prob = -params.weight * total_variation(z, axes)
            score = (-params.weight / space.scale) * total_variation_gradient(z, axes)
        return PriorResult(score, log_prob)
