"""Completion of a masked region under a class and a prior."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Method,
    ModelRole,
    Params,
    Plugin,
    TargetKind,
    logits_after,
    logits_before,
    metric,
    output,
)

from ..priors.prior import PriorSum, check_sum
from .centred import Centred
from .chains import Chains, Kernel, Schedule
from .descent import Adam, Point
from .energy import Energy, Evaluation, is_likelihood
from .langevin import PRIOR_ROLE

_POWER = 0.55  # of the polynomial schedule


class InpaintParams(Params):
    """Steps and noise are in units of centred inputs, z = (x - centre) / (width of the bounds)."""

    method: Literal["langevin", "gradient"] = Field(
        "langevin",
        description="langevin: a sample of p(hidden | known, class); gradient: a most likely "
        "completion, by Adam.",
    )
    priors: tuple[Method, ...] = Field(
        (Method(plugin="smoothness"),),
        min_length=1,
        max_length=8,
        description="Plugins of kind prior, whose weighted log densities are added to log p(z).",
    )
    condition_weight: float = Field(
        1.0, ge=0, le=1e6, description="Multiplies log p(c|x), or the target's value."
    )
    steps: int = Field(300, ge=1, le=1_000_000, description="Steps.")
    step_size: float = Field(
        4e-3, gt=0, le=1e3, description="langevin: step and variance of the noise, in squares of z."
    )
    schedule: Schedule = Field(
        Schedule.CONSTANT,
        description="langevin: how the step changes; linear and geometric end at schedule_end "
        f"times the first, polynomial is (1 + step)^-{_POWER}.",
    )
    schedule_end: float = Field(0.01, gt=0, le=100, description="Last step size over the first.")
    metropolis: bool = Field(
        False, description="langevin: accept or refuse each step; for priors with a log density."
    )
    rate: float = Field(0.02, gt=0, le=10, description="gradient: Adam's rate, in z.")
    start: Literal["neutral", "noise", "inputs"] = Field(
        "neutral",
        description="What the hidden region starts as: the neutral input, noise around it, or "
        "what the inputs hold there.",
    )
    start_noise: float = Field(
        0.2, ge=0, le=100, description="Standard deviation of the noise that start noise takes."
    )
    clip: bool = Field(
        True,
        description="Move the completion into the bounds: after each step of gradient, at the end "
        "of langevin.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.metropolis and self.method != "langevin":
            raise ValueError("metropolis is for the method langevin")
        return self


@dataclass(frozen=True)
class InpaintResult:
    """The inputs with their masked region filled in."""

    images: Tensor = output("The completed inputs; where the mask is 0, the inputs to the bit.")
    condition: Tensor = metric(
        "log p(c|x) at the last state, times its weight, or the target's value; 0 without one."
    )
    log_prior: Tensor | None = metric(
        "log p(z) there, up to a constant; left out where a prior has a score alone."
    )
    acceptance_rate: Tensor | None = metric(
        "Share of the steps that were accepted; only with metropolis."
    )
    original: Tensor = logits_before()
    logits: Tensor = logits_after()


class Inpaint(Plugin[InpaintParams, InpaintResult]):
    """Fill in a masked region of the inputs, under a class (or any unit) and a prior.

    The values where `mask` is 1 follow the Langevin steps z' = z + step_size/2 * dE/dz +
    N(0, step_size), or climb, on E = condition_weight * log p(c|x) + log p(z); the others stay as
    they are, so that the samples are of p(hidden | known, c). Without a target, the prior alone
    completes. Nguyen et al. 2017, "Plug & play generative networks", section 3.4, complete images
    so, with a penalty in place of known values that are held. z = (x - centre) / scale is the
    centred input.
    """

    name = "inpaint"
    kind = Kind.SYNTHESIS
    requires = frozenset({Capability.GRADIENT})
    target_kinds = frozenset(TargetKind)
    uses: ClassVar[Mapping[str, Kind]] = {"priors": Kind.PRIOR}
    models: ClassVar[Mapping[str, ModelRole]] = {"prior": PRIOR_ROLE}
    tensors: ClassVar[Mapping[str, AuxTensor]] = {
        "mask": AuxTensor(
            "1 where values are to be filled in, 0 where they are known.", required=True
        )
    }

    def check_seconds(
        self,
        params: InpaintParams,
        plugins: Mapping[str, Sequence[Plugin[Any, Any]]],
        models: Mapping[str, Classifier],
    ) -> None:
        check_sum(plugins["priors"], exact=params.metropolis)

    def run(
        self, model: Classifier, batch: Batch, params: InpaintParams, job: Job
    ) -> InpaintResult:
        mask = batch.tensors["mask"].to(batch.inputs)
        if not ((mask == 0) | (mask == 1)).all():
            raise InvalidRequest.field("tensors.mask", "every value must be 0 or 1")
        hidden, space = mask == 1, Centred.of(model)
        job.warn(~hidden.flatten(1).any(1), "the mask hides nothing")
        known = space.from_input(batch.inputs)
        energy = Energy(
            model,
            batch.targets,
            PriorSum(params.priors, job, exact=params.metropolis),
            batch.inputs,
            batch.seeds,
            likelihood=is_likelihood(batch.targets),
            weight=params.condition_weight,
            max_rows=max(1, job.max_rows),
        )
        z = torch.where(hidden, _start(batch, params, space), known)

        def shown(z: Tensor) -> Tensor:
            made = space.to_input(z, clip=params.clip)
            return model.carry(torch.where(hidden, made, batch.inputs), batch.inputs)

        kernel = Kernel(
            params.step_size / 2,
            params.step_size / 2,
            params.step_size,
            metropolis=params.metropolis,
            free=mask,
        )
        walk: Chains | _Climb
        if params.method == "langevin":
            walk = Chains(energy, kernel, space, z)
        else:
            walk = _Climb(energy, mask, space.clip if params.clip else _unchanged, z)
        previews = max(1, params.steps // 20)
        for step in job.track(params.steps):
            if isinstance(walk, Chains):
                end = params.schedule_end
                walk.step(step, params.schedule.factor(step, params.steps, end, _POWER))
            else:
                walk.step(params.rate)
            if step % previews == 0:
                job.preview(images=shown(walk.z))
        images = shown(walk.z)
        with torch.no_grad():
            before, after = model(batch.inputs), model(images)
        at = walk.evaluation
        accepted = walk.accepted / params.steps if isinstance(walk, Chains) else None
        return InpaintResult(
            images,
            at.condition,
            at.log_prior,
            accepted if params.metropolis else None,
            before,
            after,
        )


class _Climb:
    """Adam on the energy, where the mask is 1.

    Attributes:
        z: where it is.
    """

    def __init__(
        self, energy: Energy, mask: Tensor, project: Callable[[Tensor], Tensor], z: Tensor
    ) -> None:
        self.z = z
        self._energy, self._mask, self._adam = energy, mask, Adam(project)
        self._at: Evaluation | None = None

    @property
    def evaluation(self) -> Evaluation:
        """The energy at `z`."""
        if self._at is None:
            self._at = self._energy.at(self.z)
        return self._at

    def step(self, rate: float) -> None:
        """One step; to be called within a step of `Job.track`."""
        self.z = self._adam.step(self._point(self.evaluation), self._moved, rate).z

    def _moved(self, z: Tensor) -> Point:
        self._at = self._energy.at(z)
        return self._point(self._at)._replace(z=z)

    def _point(self, at: Evaluation) -> Point:
        value = at.condition if at.log_prior is None else at.condition + at.log_prior
        return Point(self.z, -value, -self._mask * (at.condition_score + at.prior_score))


def _start(batch: Batch, params: InpaintParams, space: Centred) -> Tensor:
    inputs = space.from_input(batch.inputs)
    if params.start == "inputs":
        return inputs
    if params.start == "noise":
        return params.start_noise * batch.normal(params.steps)
    return torch.zeros_like(inputs)


def _unchanged(z: Tensor) -> Tensor:
    return z
