"""Markov chains over centred inputs: Langevin steps, plain or Metropolis-adjusted."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from interpret_server.noise import normal_rows, uniform_rows

from .ascent import per_row
from .centred import Centred
from .energy import Energy, Evaluation


class Schedule(StrEnum):
    """How a step size changes from the first step to the last."""

    CONSTANT = "constant"
    LINEAR = "linear"  # to `end` times the first, in equal differences
    GEOMETRIC = "geometric"  # the same in equal ratios
    POLYNOMIAL = "polynomial"  # (1 + step)^-power, after Welling & Teh 2011

    def factor(self, step: int, steps: int, end: float, power: float) -> float:
        """The step size at a step over the first one."""
        share = step / max(1, steps - 1)
        match self:
            case Schedule.CONSTANT:
                return 1.0
            case Schedule.LINEAR:
                return 1 + (end - 1) * share
            case Schedule.GEOMETRIC:
                return float(end**share)
            case Schedule.POLYNOMIAL:
                return float((1 + step) ** -power)


@dataclass(frozen=True)
class Kernel:
    """One step: `z' = z + prior_step * d log p(z) + condition_step * d condition + N(0, variance)`.

    Args:
        prior_step, condition_step, variance: at the schedule's factor 1; it multiplies all three.
        metropolis: accept or refuse, so that the chain's law is exactly the density proportional
            to p(z)^(2 prior_step / variance) * exp(condition)^(2 condition_step / variance).
        clamp: move states into the model's bounds.
        rescaled: divide each row's whole step by its mean size and multiply it by this.
        free: `(M, *shape)` or `(1, *shape)`, 1 where states may move; None: everywhere.
    """

    prior_step: float
    condition_step: float
    variance: float
    metropolis: bool = False
    clamp: bool = False
    rescaled: float | None = None
    free: Tensor | None = None

    def drift(self, at: Evaluation, factor: float) -> Tensor:
        """The step without its noise."""
        drift = factor * (
            self.prior_step * at.prior_score + self.condition_step * at.condition_score
        )
        return drift if self.free is None else drift * self.free

    def log_density(self, at: Evaluation) -> Tensor:
        """The log density that the Metropolis form samples, up to a constant, in float64."""
        if at.log_prior is None:
            raise ValueError("Metropolis steps need a prior with a log density")
        prior, condition = at.log_prior.double(), at.condition.double()
        return 2 / self.variance * (self.prior_step * prior + self.condition_step * condition)


class Chains:
    """M chains, each row going its own way.

    Args:
        energy: of the M rows.
        kernel: how they step.
        space: of z.
        z: `(M, *shape)` where they start.

    Attributes:
        z: where they are.
        accepted: `(M,)`, how many Metropolis steps were taken.
    """

    def __init__(self, energy: Energy, kernel: Kernel, space: Centred, z: Tensor) -> None:
        self.energy, self.kernel, self.space, self.z = energy, kernel, space, z
        self._at: Evaluation | None = None
        self.accepted = z.new_zeros(len(z))

    def restart(self, z: Tensor) -> None:
        """Go on from other states."""
        self.z, self._at = z, None

    @property
    def evaluation(self) -> Evaluation:
        """The energy at `z`; to be called within a step of `Job.track` after a restart."""
        if self._at is None:
            self._at = self.energy.at(self.z)
        return self._at

    def step(self, number: int, factor: float) -> None:
        """One step of every chain; to be called within a step of `Job.track`.

        Args:
            number: counts steps over all restarts; noise depends on it.
            factor: of the schedule.
        """
        kernel = self.kernel
        at = self.evaluation
        scale = factor if kernel.rescaled is None else 1.0
        drift = kernel.drift(at, scale)
        variance = kernel.variance * scale
        change = drift
        if variance:
            noise = normal_rows(self.energy.seeds, number, self.z)
            noise = noise if kernel.free is None else noise * kernel.free
            change = drift + variance**0.5 * noise
        if kernel.rescaled is not None:
            size = change.flatten(1).abs().mean(1).clamp_min(torch.finfo(change.dtype).tiny)
            change = per_row(kernel.rescaled * factor / size, change) * change
        proposal = self.z + change
        if kernel.clamp:
            proposal = self.space.clip(proposal)
        found = self.energy.at(proposal)
        if not kernel.metropolis:
            self.z, self._at = proposal, found
            return
        back = kernel.drift(found, scale)
        # log q(z|z') - log q(z'|z) of the two normal proposals
        both = ((drift + back) * (drift - back - 2 * change)).double().flatten(1).sum(1)
        ratio = kernel.log_density(found) - kernel.log_density(at) + both / (2 * variance)
        uniform = uniform_rows(self.energy.seeds, -1 - number, self.z.new_empty(len(self.z), 1))
        taken = uniform[:, 0].double().log() < ratio  # false where the ratio is no number
        self.accepted += taken
        self.z = torch.where(per_row(taken, self.z), proposal, self.z)
        self._at = found.where(taken, at)
