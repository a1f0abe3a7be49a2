"""Class visualisation: an input that a class, or any unit, responds to most."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.noise import normal_rows, uniform_rows
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

from .ascent import Policy, Score, Settings, ascend, preset
from .centred import Centred
from .spatial import Axes, blur, octave_sizes, resize, shift

Sigma = Annotated[float, Field(ge=0, le=64)]
_SMALLEST_OCTAVE = 64  # pixels; below it an image has no coarser structure worth a pass


class ClassVisualizationParams(Params):
    """A preset, and whatever should differ from it; null leaves a setting to the preset.

    Rates, penalties and noise are in units of centred inputs, z = (x - centre) / (width of the
    bounds): a published rate for pixels of 0 to 255 is divided by 255^2.
    """

    preset: Literal[
        "octaves", "simonyan", "yosinski_1", "yosinski_2", "yosinski_3", "yosinski_4"
    ] = Field(
        "octaves",
        description="octaves: coarse to fine, with jitter and blurred, normalised gradients; "
        "simonyan: plain ascent with an L2 penalty; yosinski_1 to yosinski_4: the four published "
        "sets of regularisation (3 is the main one).",
    )
    steps: int | None = Field(None, ge=1, le=10_000, description="Gradient steps in all.")
    score: Score | None = Field(
        None,
        description="value: the target's value (a class's logit); log_odds: a class's logit less "
        "the log-sum-exp of the others, for classes only.",
    )
    policy: Policy | None = Field(
        None,
        description="constant: rate * gradient; progress: the same, scaled down so that the value "
        "rises by about `progress`; normalized: rate * gradient / mean(|gradient|).",
    )
    rate: float | None = Field(None, gt=0, le=1e6, description="Learning rate, in z.")
    progress: float | None = Field(
        None, gt=0, le=1e6, description="Rise per step that the policy progress aims at."
    )
    l2: float | None = Field(None, ge=0, le=1e6, description="Weight of the penalty |z|^2.")
    decay: float | None = Field(
        None, ge=0, lt=1, description="Share of z taken away after each step."
    )
    blur_sigma: float | None = Field(None, ge=0, le=64, description="Blur of the image, in pixels.")
    blur_every: int | None = Field(
        None, ge=0, le=10_000, description="Steps between two blurs of the image; 0 for none."
    )
    gradient_blur: tuple[Sigma, Sigma] | None = Field(
        None, description="Blur of the gradient in pixels, at the first and at the last step."
    )
    norm_percentile: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Pixels whose norm is below this percentile become neutral after each step.",
    )
    contribution_percentile: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Pixels whose contribution |sum over channels of z * gradient| is below this "
        "percentile become neutral after each step.",
    )
    jitter: int | None = Field(
        None, ge=0, le=1024, description="Largest random shift in pixels, drawn at each step."
    )
    noise: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Standard deviation of the noise under which each gradient is taken, in z.",
    )
    settle: float | None = Field(
        None, ge=0, le=1, description="Share of the steps, at the end, without jitter and noise."
    )
    octaves: int | None = Field(
        None,
        ge=1,
        le=8,
        description="Sizes to work through, coarse to fine; those with an axis under 64 pixels "
        "are left out, and so are all but the last where inputs are given.",
    )
    octave_ratio: float | None = Field(None, gt=1, le=4, description="Each size over the last.")
    start_noise: float | None = Field(
        None, ge=0, le=10, description="Standard deviation of the noise added to the start, in z."
    )
    clip: bool | None = Field(
        None, description="Keep the image inside the model's bounds during the ascent."
    )


@dataclass(frozen=True)
class ClassVisualizationResult:
    """The images and how strongly their targets respond."""

    images: Tensor = output("The synthesised inputs, inside the model's bounds where it has any.")
    target_value: Tensor = metric("The target's value (a class's logit) at the image.")
    probability: Tensor | None = metric("Softmax probability of the class; only for classes.")
    logits: Tensor = logits_after()


class ClassVisualization(Plugin[ClassVisualizationParams, ClassVisualizationResult]):
    """Synthesise the input to which a class, or any unit of a layer, responds most.

    Maximises `S_c(x) - l2 * |z|^2` over centred inputs z by gradient ascent from the neutral
    input (or from the inputs, where given), `S_c` being the target's value: a logit, never a
    probability. Simonyan et al. 2013, "Deep inside convolutional networks", section 2, equation 1;
    regularisations of Yosinski et al. 2015, section 3 and table 1; octaves and jitter of
    Mordvintsev et al. 2015 ("Inceptionism").
    """

    name = "class_visualization"
    kind = Kind.SYNTHESIS
    requires = frozenset({Capability.GRADIENT})
    inputs = Inputs.OPTIONAL

    def run(
        self, model: Classifier, batch: Batch, params: ClassVisualizationParams, job: Job
    ) -> ClassVisualizationResult:
        targets_class = batch.targets.kind is TargetKind.CLASS and batch.targets.layer is None
        if params.score is Score.LOG_ODDS and not targets_class:
            raise InvalidRequest.field("params.score", "log_odds needs a class as the target")
        axes, space = Axes.of(model), Centred.of(model)
        full = axes.sizes(batch.inputs.shape)
        settings = preset(params.preset, full).updated(params.model_dump(exclude={"preset"}))
        if not targets_class:
            settings = replace(settings, score=Score.VALUE)
        levels = 1 if batch.has_inputs else settings.octaves
        sizes = octave_sizes(full, levels, settings.octave_ratio, _SMALLEST_OCTAVE)
        z = resize(space.from_input(batch.inputs), axes, sizes[0])
        z = z + settings.start_noise * normal_rows(batch.seeds, settings.steps, z)
        previews = max(1, settings.steps // 20)
        for step in job.track(settings.steps):
            size = sizes[step * len(sizes) // settings.steps]
            z = resize(z, axes, size)
            if settings.clip:
                z = space.resized(model.input_shape, axes, size).clip(z)
            gradient = _gradient(model, batch, z, step, settings)
            z = ascend(z, gradient, step, settings, axes)
            if step % previews == 0:
                job.preview(images=space.to_input(resize(z, axes, full), clip=True))
        images = space.to_input(resize(z, axes, full), clip=True)
        with torch.no_grad():
            value, logits = model.objective(images, batch.targets)
            logits = model(images) if logits is None else logits
        probability = batch.targets.select(logits.softmax(1)) if targets_class else None
        return ClassVisualizationResult(images, value, probability, logits)


def _gradient(model: Classifier, batch: Batch, z: Tensor, step: int, settings: Settings) -> Tensor:
    """The blurred gradient by z of the penalised score, under a random shift and noise."""
    axes, space = Axes.of(model), Centred.of(model)
    leaf = z.detach().clone().requires_grad_()
    with torch.enable_grad():
        shown = resize(leaf, axes, axes.sizes(batch.inputs.shape))
        if step < settings.steps * (1 - settings.settle):
            shown = _disturbed(shown, axes, batch, step, settings)
        score, logits = model.objective(space.to_input(shown), batch.targets)
        if settings.score is Score.LOG_ODDS and logits is not None:
            score = score - logits.scatter(1, batch.targets.index, -torch.inf).logsumexp(1)
        score = score - settings.l2 * leaf.square().flatten(1).sum(1)
        (gradient,) = torch.autograd.grad(score.sum(), leaf)
    first, last = settings.gradient_blur
    return blur(gradient, axes, first + (last - first) * step / settings.steps)


def _disturbed(z: Tensor, axes: Axes, batch: Batch, step: int, settings: Settings) -> Tensor:
    if settings.jitter and axes.spatial:
        draws = uniform_rows(batch.seeds, ~step, z.new_empty(len(z), len(axes.spatial)))
        span = 2 * settings.jitter + 1
        z = shift(z, axes, (draws * span).long() - settings.jitter)
    return z + settings.noise * batch.normal(step) if settings.noise else z
