"""Priors over inputs: log densities and their scores, for samplers and for regularised synthesis.

A prior is stated over centred inputs `z = (x - centre) / scale`, where the centre is the manifest's
mean (else mid-range, else 0) and the scale the width of the bounds (else 1), so that its settings
mean the same for every model. Its score is the gradient by z; by x it is that over the scale.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from interpret_server.plugin import Params

from .synthesis.spatial import Axes, total_variation, total_variation_gradient

Weight = Annotated[float, Field(gt=0, le=1e6)]


class Prior(Params, ABC):
    """A log density over centred inputs, times a weight."""

    proper: ClassVar[bool]  # whether the density can be normalised on its own
    needs_space: ClassVar[bool] = False  # whether it says nothing of inputs without spatial axes

    name: str
    weight: Weight = Field(1.0, description="Multiplies the log density (a product of experts).")

    @abstractmethod
    def log_prob(self, z: Tensor, axes: Axes) -> Tensor:
        """`weight * log p(z)`, `(N,)`; up to a constant where the density has no known one."""

    @abstractmethod
    def score(self, z: Tensor, axes: Axes) -> Tensor:
        """`weight * d log p(z) / dz`, like `z`, `(N, *shape)`."""


class Gaussian(Prior):
    """Independent normal values around the centre; `log_prob` is normalised for weight 1."""

    proper: ClassVar[bool] = True

    name: Literal["gaussian"] = "gaussian"
    std: float = Field(
        1.0, gt=0, le=1e6, description="Standard deviation of z, in widths of the bounds."
    )

    def log_prob(self, z: Tensor, axes: Axes) -> Tensor:
        values = z.flatten(1)
        constant = values.shape[1] * math.log(self.std * math.sqrt(2 * math.pi))
        return self.weight * (-values.square().sum(1) / (2 * self.std**2) - constant)

    def score(self, z: Tensor, axes: Axes) -> Tensor:
        return z * (-self.weight / self.std**2)


class TotalVariation(Prior):
    """`p(z) ~ exp(-TV(z))`, TV the sum of squared differences between neighbouring pixels.

    Constant images are free, so it is no density by itself and must be combined with one.
    """

    proper: ClassVar[bool] = False
    needs_space: ClassVar[bool] = True

    name: Literal["total_variation"] = "total_variation"

    def log_prob(self, z: Tensor, axes: Axes) -> Tensor:
        return -self.weight * total_variation(z, axes)

    def score(self, z: Tensor, axes: Axes) -> Tensor:
        return -self.weight * total_variation_gradient(z, axes)


PRIORS: Mapping[str, type[Prior]] = {"gaussian": Gaussian, "total_variation": TotalVariation}

AnyPrior = Annotated[Gaussian | TotalVariation, Field(discriminator="name")]


def log_prob(priors: Sequence[Prior], z: Tensor, axes: Axes) -> Tensor:
    """The priors' weighted log densities added up, `(N,)`."""
    return sum((prior.log_prob(z, axes) for prior in priors), z.new_zeros(len(z)))


def score(priors: Sequence[Prior], z: Tensor, axes: Axes) -> Tensor:
    """The gradient of `log_prob` by z, like `z`."""
    return sum((prior.score(z, axes) for prior in priors), z.new_zeros(z.shape))
