"""The Gaussian prior: independent normal values around the centre."""

import math

from pydantic import Field

from interpret_server.plugin import Batch, Classifier, Job, Kind, Plugin

from ..synthesis.centred import Centred
from .prior import PriorParams, PriorResult


class GaussianParams(PriorParams):
    """In units of centred inputs, z = (x - centre) / (width of the bounds)."""

    std: float = Field(
        1.0, gt=0, le=1e6, description="Standard deviation of z, in widths of the bounds."
    )


class Gaussian(Plugin[GaussianParams, PriorResult]):
    """A Gaussian prior: independent normal values around the centre.

    log p(z) = -|z|^2 / (2 std^2) - D log(std sqrt(2 pi)) over centred inputs
    z = (x - centre) / scale of D values (centre: the manifest's mean, else mid-range, else 0;
    scale: the width of the bounds, else 1). Its score by z is -z / std^2, and by x that over the
    scale. Nguyen et al. 2017, "Plug & play generative networks", use it as the simplest prior.
    """

    name = "gaussian"
    kind = Kind.PRIOR
    target_kinds = frozenset()

    def run(self, model: Classifier, batch: Batch, params: GaussianParams, job: Job) -> PriorResult:
        space = Centred.of(model)
        for _ in job.track(1):
            z = space.from_input(batch.inputs)
            values = z.flatten(1)
            constant = values.shape[1] * math.log(params.std * math.sqrt(2 * math.pi))
            log_prob = -values.square().sum(1) / (2 * params.std**2) - constant
            score = z * (-params.weight / params.std**2 / space.scale)
        return PriorResult(score, params.weight * log_prob)
