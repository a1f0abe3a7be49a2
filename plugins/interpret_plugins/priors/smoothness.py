"""The smoothness prior: a Gaussian random field whose amplitudes fall as 1/f."""

import math

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import Batch, Classifier, Job, Kind, Plugin

from ..synthesis.centred import Centred
from ..synthesis.spatial import Axes
from .prior import PriorParams, PriorResult


class SmoothnessParams(PriorParams):
    """In units of centred inputs, z = (x - centre) / (width of the bounds)."""

    std: float = Field(
        0.3, gt=0, le=1e6, description="Standard deviation of every pixel, in widths of the bounds."
    )
    exponent: float = Field(
        1.0, ge=0, le=4, description="Amplitudes fall as 1 / frequency^exponent; 0 is white noise."
    )


class Smoothness(Plugin[SmoothnessParams, PriorResult]):
    """A prior of natural spectra: a Gaussian field whose Fourier amplitudes fall as 1 / f^exponent.

    log p(z) = -1/2 * sum over channels and frequencies of |F z|^2 / P(f) + log(2 pi P(f)), F being
    the orthonormal Fourier transform over the spatial axes (so edges wrap around),
    P(f) ~ f^(-2 exponent) with mean std^2, f the length of the frequency in cycles per pixel, not
    below one cycle per longest side. Photographs have an exponent near 1 (Field 1987, "Relations
    between the statistics of natural images and the response properties of cortical cells"). On
    flat vectors it is the Gaussian prior. z = (x - centre) / scale is the centred input.
    """

    name = "smoothness"
    kind = Kind.PRIOR
    target_kinds = frozenset()

    def run(
        self, model: Classifier, batch: Batch, params: SmoothnessParams, job: Job
    ) -> PriorResult:
        axes, space = Axes.of(model), Centred.of(model)
        for _ in job.track(1):
            z = space.from_input(batch.inputs)
            power = _power(z, axes, params)
            whitened = _filtered(z, axes, 1 / power)
            constant = (power.log() + math.log(2 * math.pi)).mean() * z[0].numel()
            log_prob = -0.5 * ((z * whitened).flatten(1).sum(1) + constant)
        return PriorResult(
            whitened * (-params.weight / space.scale), params.weight * log_prob.to(z.dtype)
        )


def _power(z: Tensor, axes: Axes, params: SmoothnessParams) -> Tensor:
    """P of every frequency in float64, broadcasting to a batch."""
    square = torch.zeros((1,) * z.dim(), dtype=torch.float64, device=z.device)
    for axis in axes.spatial:
        view = [-1 if other == axis else 1 for other in range(z.dim())]
        along = torch.fft.fftfreq(z.shape[axis], dtype=torch.float64, device=z.device)
        square = square + along.square().view(view)
    lowest = 1 / max(axes.sizes(z.shape), default=1)
    power = square.clamp_min(lowest**2) ** -params.exponent
    return params.std**2 * power / power.mean()


def _filtered(z: Tensor, axes: Axes, factors: Tensor) -> Tensor:
    if not axes.spatial:
        return z * factors.to(z)
    spectrum = torch.fft.fftn(z, dim=axes.spatial, norm="ortho")
    found: Tensor = torch.fft.ifftn(spectrum * factors.to(z), dim=axes.spatial, norm="ortho").real
    return found
