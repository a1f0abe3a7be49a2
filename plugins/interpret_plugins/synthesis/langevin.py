"""Langevin sampling of the inputs of a class, or of any unit."""

from collections.abc import Mapping, Sequence
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
    Inputs,
    InvalidRequest,
    Job,
    Kind,
    Method,
    ModelOutput,
    ModelRole,
    Params,
    Plugin,
    logits_after,
    metric,
    output,
)

from ..priors.prior import PriorSum, check_sum
from .centred import Centred
from .chains import Chains, Kernel, Schedule
from .energy import Energy, is_likelihood
from .replay import Starts, chain_seeds
from .traces import Moments, Recent, Trace

PRIOR_ROLE = ModelRole(
    "The network of a prior score_model or log_prob_model.", output=ModelOutput.ANY
)


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
    metropolis: bool = Field(
        False,
        description="Accept or refuse each step (Metropolis-adjusted Langevin), so that no step "
        "size biases the samples; for priors that have a log density.",
    )
    compatibility: Literal["none", "ppgn"] = Field(
        "none",
        description="ppgn: the steps of the reference implementation of plug & play generative "
        "networks. Equation three_term; epsilon3 is a standard deviation; of the softmax only the "
        "class's own logit is differentiated; a whole step, noise included, is rescaled to a mean "
        "size of ppgn_rate and clamped.",
    )
    ppgn_rate: float = Field(
        4e-3, gt=0, le=10, description="Mean size of a step under the compatibility ppgn, in z."
    )
    schedule: Schedule = Field(
        Schedule.CONSTANT,
        description="How steps and the variance of the noise change, together: linear or geometric "
        "to schedule_end times the first, or polynomial, (1 + step)^-schedule_power.",
    )
    schedule_end: float = Field(
        0.01, gt=0, le=100, description="Last step size over the first: linear and geometric."
    )
    schedule_power: float = Field(0.55, gt=0, le=1, description="Exponent of the polynomial one.")
    condition: Literal["log_probability", "value"] | None = Field(
        None,
        description="log_probability: log p(c|x), for classes; value: the target's value (a logit, "
        "as of joint energy models, or a unit's activation); null: log_probability for classes.",
    )
    condition_weight: float = Field(
        1.0, ge=0, le=1e6, description="Multiplies the condition, as an inverse temperature."
    )
    priors: tuple[Method, ...] = Field(
        (Method(plugin="gaussian", params={"std": 0.3}),),
        min_length=1,
        max_length=8,
        description="Plugins of kind prior, whose weighted log densities are added to log p(z).",
    )
    steps: int = Field(300, ge=1, le=1_000_000, description="Steps of each chain (of each round).")
    chains: int = Field(1, ge=1, le=256, description="Parallel chains for each row.")
    start: Literal["inputs", "uniform"] = Field(
        "inputs",
        description="Where chains start: at the inputs (the neutral one, where there are none), or "
        "uniformly within the bounds (within half a unit of the centre where there are none).",
    )
    start_noise: float = Field(
        0.0, ge=0, le=100, description="Standard deviation of the noise added to the start."
    )
    rounds: int = Field(
        1,
        ge=1,
        le=10_000,
        description="How often chains begin anew, each time from states of the replay buffer, and "
        "put the last ones back.",
    )
    buffer_size: int = Field(
        0,
        ge=0,
        le=10_000,
        description="States of each row in the replay buffer, where the tensor buffer is not "
        "given; 0: none.",
    )
    restart: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Probability that a chain begins a round at the start, not in the buffer.",
    )
    clamp: bool = Field(
        False, description="Move every state into the model's bounds, which biases the sampler."
    )
    burn_in: int = Field(
        0, ge=0, le=1_000_000, description="First steps of each round that count for nothing."
    )
    thinning: int = Field(
        1, ge=1, le=1_000_000, description="After them, every so many-th state counts."
    )
    keep: int = Field(
        0, ge=0, le=10_000, description="Return so many of each chain's last states that count."
    )
    moments: bool = Field(
        False, description="Also return mean and variance of the states that count, in input units."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.moments or self.keep) and self.steps < self.burn_in + self.thinning:
            raise ValueError("steps must be at least burn_in + thinning for a state to count")
        if self.metropolis and (self.clamp or self.compatibility != "none"):
            raise ValueError("metropolis steps are exact: they go without clamp and compatibility")
        if self.metropolis and self.kernel.variance == 0:
            raise ValueError("metropolis steps need noise: set noise_variance or epsilon3")
        return self

    @property
    def kernel(self) -> Kernel:
        """The step of a chain."""
        if self.compatibility == "ppgn":
            return Kernel(
                self.epsilon1,
                self.epsilon2,
                self.epsilon3**2,
                clamp=True,
                rescaled=self.ppgn_rate,
            )
        if self.equation == "three_term":
            sizes = self.epsilon1, self.epsilon2, self.epsilon3
        else:
            given = self.noise_variance
            half = self.step_size / 2
            sizes = half, half, self.step_size if given is None else given
        return Kernel(*sizes, metropolis=self.metropolis, clamp=self.clamp)

    def counts(self, step: int) -> bool:
        """Whether the state after a step of a round counts."""
        done = step + 1 - self.burn_in
        return done > 0 and done % self.thinning == 0


@dataclass(frozen=True)
class LangevinResult:
    """The last state of each row's first chain, and how all its chains went."""

    images: Tensor = output("The last state of the first chain, in the model's input units.")
    mean: Tensor | None = output("Mean of the states that count, of all chains; only with moments.")
    variance: Tensor | None = output("Variance of the same states; only with moments.")
    samples: Tensor | None = output(
        "States that count, `(N, chains, keep, *input_shape)`; only with keep.", like_input=False
    )
    buffer: Tensor | None = output(
        "The replay buffer after the last round, `(N, buffer_size, *input_shape)`; only where "
        "there is one.",
        like_input=False,
    )
    log_prob_class: Tensor = metric(
        "The condition at the images, times its weight: log p(c|x), or the target's value."
    )
    log_prior: Tensor | None = metric(
        "log p(z) at the images, z being centred, up to a constant; left out where a prior has "
        "a score alone."
    )
    energy: Tensor | None = metric(
        "E = condition + log p(z), which the chain climbs; left out where log_prior is."
    )
    acceptance_rate: Tensor | None = metric(
        "Share of the steps of all chains that were accepted; only with metropolis."
    )
    effective_sample_size: Tensor | None = metric(
        "Independent draws that the states that count are worth: the smallest bulk effective "
        "sample size of the quantities traced; only where at least 4 states of a chain are traced.",
        better="high",
    )
    r_hat: Tensor | None = metric(
        "Rank-normalised split R-hat, the largest of the quantities traced: near 1 (below 1.01) "
        "where the chains agree; only where at least 4 states of a chain are traced.",
        better="low",
    )
    logits: Tensor | None = logits_after()


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
    a most likely input. With metropolis the same law is sampled exactly, whatever the step size.

    Every row has `chains` of its own. R-hat and effective sample size (Vehtari et al. 2021) are
    taken of the energy's two terms and of z: of all its values where there are at most 16, else
    of 16 random projections; of at most 4096 states of each chain in all rounds, evenly spaced.
    Each round's chains count as chains of their own.

    States may leave the model's bounds unless clamped. A chain's noise at step t depends on its
    row's seed, its number and t alone.
    """

    name = "langevin"
    kind = Kind.SYNTHESIS
    requires = frozenset({Capability.GRADIENT})
    inputs = Inputs.OPTIONAL
    uses: ClassVar[Mapping[str, Kind]] = {"priors": Kind.PRIOR}
    models: ClassVar[Mapping[str, ModelRole]] = {"prior": PRIOR_ROLE}
    tensors: ClassVar[Mapping[str, AuxTensor]] = {
        "buffer": AuxTensor(
            "The replay buffer of an earlier call, `(N, buffer_size, *input_shape)`.",
            like_input=False,
        )
    }

    def check_seconds(
        self,
        params: LangevinParams,
        plugins: Mapping[str, Sequence[Plugin[Any, Any]]],
        models: Mapping[str, Classifier],
    ) -> None:
        check_sum(plugins["priors"], exact=params.metropolis)

    def run(
        self, model: Classifier, batch: Batch, params: LangevinParams, job: Job
    ) -> LangevinResult:
        kernel, space, count = params.kernel, Centred.of(model), params.chains
        rows = torch.arange(len(batch), device=batch.inputs.device).repeat_interleave(count)
        energy = Energy(
            model,
            batch.targets.take(rows),
            PriorSum(params.priors, job, exact=params.metropolis),
            batch.inputs[rows],
            chain_seeds(batch.seeds, count),
            likelihood=_likelihood(batch, params),
            weight=params.condition_weight,
            max_rows=max(1, job.max_rows),
            diagonal=params.compatibility == "ppgn",
        )
        starts = Starts.of(batch, params, space)
        chains = Chains(energy, kernel, space, space.from_input(batch.inputs)[rows])
        draws = (params.steps - params.burn_in) // params.thinning
        trace = Trace(chains.z, draws, params.rounds)
        moments, recent = Moments(chains.z), Recent(params.keep)
        total = params.rounds * params.steps
        previews = max(1, total // 20)
        for number in job.track(total):
            round_, step = divmod(number, params.steps)
            if step == 0:
                chains.restart(starts.begin(round_))
            factor = params.schedule.factor(
                step, params.steps, params.schedule_end, params.schedule_power
            )
            chains.step(number, factor)
            if params.counts(step):
                trace.add(chains)
                if params.moments:
                    moments.add(chains.z)
                recent.add(chains.z)
            if step == params.steps - 1:
                starts.end(chains.z)
            if number % previews == 0:
                shown = space.to_input(chains.z[::count], clip=kernel.clamp)
                job.preview(images=shown)
        return self._result(model, batch, params, chains, trace, moments, recent, starts, job)

    def _result(
        self,
        model: Classifier,
        batch: Batch,
        params: LangevinParams,
        chains: Chains,
        trace: Trace,
        moments: Moments,
        recent: Recent,
        starts: Starts,
        job: Job,
    ) -> LangevinResult:
        space, count = chains.space, params.chains
        images = space.to_input(chains.z[::count], clip=chains.kernel.clamp)
        images = model.carry(images, batch.inputs)
        with torch.no_grad():
            logits = model(images)
        at = chains.evaluation
        condition = at.condition[::count]
        log_prior = None if at.log_prior is None else at.log_prior[::count]
        mean, variance = moments.of_rows(count) if params.moments else (None, None)
        taken = params.rounds * params.steps
        accepted = chains.accepted.view(-1, count).mean(1) / taken
        size, r_hat = trace.diagnostics(count)
        finite = chains.z.view(len(batch), -1).isfinite().all(1)
        job.warn(~finite, "a chain diverged; take smaller steps")
        if params.metropolis:
            job.warn(accepted == 0, "no step was accepted; take smaller steps")
        return LangevinResult(
            images,
            None if mean is None else space.to_input(mean),
            None if variance is None else variance * space.scale**2,
            None if not params.keep else space.to_input(recent.of_rows(count)),
            starts.buffer,
            condition,
            log_prior,
            None if log_prior is None else condition + log_prior,
            accepted if params.metropolis else None,
            size,
            r_hat,
            logits,
        )


def _likelihood(batch: Batch, params: LangevinParams) -> bool:
    if params.condition == "value":
        return False
    if params.condition is None:
        return is_likelihood(batch.targets)
    if not is_likelihood(batch.targets):
        raise InvalidRequest.field("params.condition", "log_probability needs a class as target")
    return True
