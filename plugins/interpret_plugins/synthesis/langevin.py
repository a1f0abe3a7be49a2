"""Langevin sampling of the inputs of a class."""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    Inputs,
    InvalidRequest,
    Job,
    Kind,
    Params,
    Plugin,
    TargetKind,
    logits_after,
    metric,
    output,
)

from .. import priors
from ..priors import AnyPrior, Gaussian
from .centred import Centred
from .spatial import Axes


class LangevinParams(Params):
    """Steps and noise are in units of centred inputs, z = (x - centre) / (width of the bounds)."""

    equation: Literal["langevin", "three_term"] = Field(
        "langevin",
        description="langevin: z' = z + step_size/2 * dE/dz + N(0, noise_variance); three_term: "
        "z' = z + epsilon1 * dlog p(z)/dz + epsilon2 * dlog p(c|z)/dz + N(0, epsilon3).",
    )
    step_size: float = Field(
        4e-3, gt=0, le=1e3, description="Step of the equation langevin, in squared units of z."
    )
    noise_variance: float | None = Field(
        None,
        ge=0,
        le=1e3,
        description="Variance of the noise of the equation langevin; null: step_size, which is "
        "the unadjusted Langevin algorithm.",
    )
    epsilon1: float = Field(
        1e-3, ge=0, le=1e3, description="three_term: step along the prior's score."
    )
    epsilon2: float = Field(
        1e-2, ge=0, le=1e3, description="three_term: step along the gradient of log p(c|z)."
    )
    epsilon3: float = Field(
        1e-4, ge=0, le=1e3, description="three_term: variance (not deviation) of the noise."
    )
    priors: tuple[AnyPrior, ...] = Field(
        (Gaussian(std=0.3),),
        min_length=1,
        max_length=8,
        description="Priors whose weighted log densities are added to make log p(z).",
    )
    steps: int = Field(300, ge=1, le=1_000_000, description="Steps of each chain.")
    start_noise: float = Field(
        0.0, ge=0, le=100, description="Standard deviation of the noise added to the start."
    )
    clamp: bool = Field(
        False, description="Move every state into the model's bounds, which biases the sampler."
    )
    moments: bool = Field(
        False, description="Also return each chain's running mean and variance, in input units."
    )
    burn_in: int = Field(
        0, ge=0, le=1_000_000, description="First steps that the moments leave out."
    )
    thinning: int = Field(
        1, ge=1, le=1_000_000, description="The moments take every so many-th step."
    )

    @model_validator(mode="after")
    def _enough_steps(self) -> Self:
        if self.moments and self.steps < self.burn_in + self.thinning:
            raise ValueError("steps must be at least burn_in + thinning for moments to be taken")
        return self


@dataclass(frozen=True)
class LangevinResult:
    """The last state of each chain and its energy."""

    images: Tensor = output("The last state of each chain, in the model's input units.")
    mean: Tensor | None = output("Mean of the chain's states; only with moments.")
    variance: Tensor | None = output("Variance of the chain's states; only with moments.")
    log_prob_class: Tensor = metric("log p(c|x) at the images.")
    log_prior: Tensor = metric(
        "log p(z) at the images, z being centred; up to a constant with total variation or weights."
    )
    energy: Tensor = metric("E = log p(c|x) + log p(z), which the chain climbs.")
    logits: Tensor = logits_after()


class Langevin(Plugin[LangevinParams, LangevinResult]):
    """Sample inputs of a class by Langevin dynamics on `E_c = log p(c|x) + log p(x)`.

    The state is the centred input z = (x - centre) / scale (centre: the manifest's mean, else
    mid-range, else 0; scale: width of the bounds, else 1), and all gradients are by z, so
    d log p(c|z)/dz = scale * d log p(c|x)/dx.

    `langevin`: z' = z + step_size/2 * dE/dz + N(0, noise_variance * I), by default with
    noise_variance = step_size: the unadjusted Langevin algorithm (Roberts & Tweedie 1996), whose
    bias is of the order of step_size.

    `three_term`: z' = z + epsilon1 * dlog p(z)/dz + epsilon2 * dlog p(c|z)/dz + N(0, epsilon3 * I)
    (Nguyen et al. 2017, "Plug & play generative networks", section 2; epsilon3 is here a
    variance). For small steps its stationary law is proportional to
    p(z)^(2 epsilon1 / epsilon3) * p(c|z)^(2 epsilon2 / epsilon3); with epsilon3 = 0 it ascends to
    a most likely input.

    States may leave the model's bounds unless clamped. Row i's noise at step t depends on its seed
    and t alone.
    """

    name = "langevin"
    kind = Kind.SYNTHESIS
    requires = frozenset({Capability.GRADIENT})
    inputs = Inputs.OPTIONAL
    target_kinds = frozenset({TargetKind.CLASS})

    def check(self, model: Classifier, params: LangevinParams) -> None:
        if not any(prior.proper for prior in params.priors):
            raise InvalidRequest.field(
                "params.priors",
                "total variation leaves constant images free, so alone it is no density; "
                "add a gaussian prior",
            )
        if not Axes.of(model).spatial:
            for index, prior in enumerate(params.priors):
                if prior.needs_space:
                    raise InvalidRequest.field(
                        f"params.priors.{index}",
                        f"{prior.name} needs spatial axes, and {model.name} takes flat vectors",
                    )

    def run(
        self, model: Classifier, batch: Batch, params: LangevinParams, job: Job
    ) -> LangevinResult:
        axes, space = Axes.of(model), Centred.of(model)
        if params.equation == "three_term":
            prior_step, class_step = params.epsilon1, params.epsilon2
            variance = params.epsilon3
        else:
            prior_step = class_step = params.step_size / 2
            given = params.noise_variance
            variance = params.step_size if given is None else given
        z = space.from_input(batch.inputs)
        if params.start_noise:
            z = z + params.start_noise * batch.normal(params.steps)
        moments = _Moments(z)
        previews = max(1, params.steps // 20)
        for step in job.track(params.steps):
            class_score = _class_score(model, batch, z, space)
            prior_score = priors.score(params.priors, z, axes)
            z = z + prior_step * prior_score + class_step * class_score
            if variance:
                z = z + variance**0.5 * batch.normal(step)
            if params.clamp:
                z = space.clip(z)
            done = step + 1 - params.burn_in
            if params.moments and done > 0 and done % params.thinning == 0:
                moments.add(z)
            if step % previews == 0:
                job.preview(images=space.to_input(z, clip=params.clamp))
        images = space.to_input(z, clip=params.clamp)
        with torch.no_grad():
            logits = model(images)
            log_prob_class = batch.targets.select(logits.log_softmax(1))
            log_prior = priors.log_prob(params.priors, z, axes)
        return LangevinResult(
            images,
            space.to_input(moments.mean) if params.moments else None,
            moments.variance * space.scale**2 if params.moments else None,
            log_prob_class,
            log_prior,
            log_prob_class + log_prior,
            logits,
        )


class _Moments:
    """Running mean and variance (Welford 1962)."""

    def __init__(self, like: Tensor) -> None:
        self.count = 0
        self.mean, self.squares = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, value: Tensor) -> None:
        self.count += 1
        difference = value - self.mean
        self.mean = self.mean + difference / self.count
        self.squares = self.squares + difference * (value - self.mean)

    @property
    def variance(self) -> Tensor:
        return self.squares / self.count


def _class_score(model: Classifier, batch: Batch, z: Tensor, space: Centred) -> Tensor:
    leaf = z.detach().clone().requires_grad_()
    with torch.enable_grad():
        log_prob = batch.targets.select(model(space.to_input(leaf)).log_softmax(1))
        (gradient,) = torch.autograd.grad(log_prob.sum(), leaf)
    return gradient
