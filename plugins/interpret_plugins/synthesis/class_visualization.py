"""Class visualisation: an input that a class, or any unit, responds to most."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.noise import normal_rows
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

from .ascent import Policy, Settings, ascend, preset
from .centred import Centred
from .spatial import Axes, blur, muted, octave_sizes, pink, resample, resize
from .views import random_light, random_windows

Sigma = Annotated[float, Field(ge=0, le=64)]
Power = Annotated[float, Field(ge=0, le=4)]
Share = Annotated[float, Field(ge=0.05, le=4)]
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
        description="octaves: coarse to fine, by normalised gradients of random views; "
        "simonyan: plain ascent with an L2 penalty; yosinski_1 to yosinski_4: the four published "
        "sets of regularisation (3 is the main one).",
    )
    steps: int | None = Field(None, ge=1, le=10_000, description="Gradient steps in all.")
    rivals: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How much of the log-sum-exp of the other classes' logits is taken from the "
        "class's own in what is maximised; at 1 it is the log odds. For classes only.",
    )
    policy: Policy | None = Field(
        None,
        description="constant: rate * gradient; progress: the same, scaled down so that the value "
        "rises by about `progress`; normalized: rate * gradient / mean(|gradient|).",
    )
    rate: float | None = Field(None, gt=0, le=1e6, description="Learning rate, in z.")
    rate_end: float | None = Field(
        None,
        gt=0,
        le=100,
        description="The last rate over the first; between them it changes in equal differences.",
    )
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
    spectrum: tuple[Power, Power] | None = Field(
        None,
        description="Power p of the factor 1/f^p on the gradient's Fourier amplitudes, at the "
        "first and at the last step; 2 is ascent in coefficients decorrelated as those of photos.",
    )
    lowest_frequency: float | None = Field(
        None,
        ge=1,
        le=64,
        description="Cycles per largest axis below which spectrum multiplies all frequencies "
        "alike; otherwise whole images grow dark.",
    )
    chroma: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the gradient's differences between the channels of a pixel that is "
        "kept; colours of photos differ much less than their brightness.",
    )
    spectrum_limit: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Standard deviation, in z, of an image whose amplitudes fall as 1/f; after a "
        "step, half octaves that are stronger than its own are scaled down; 0 for no limit.",
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
    views: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Random views of the image whose gradients each step takes the mean of.",
    )
    zoom: tuple[Share, Share] | None = Field(
        None, description="Smallest and largest share of each axis that a view shows."
    )
    mirror: bool | None = Field(
        None, description="Mirror half of the views along the last spatial axis."
    )
    jitter: int | None = Field(
        None, ge=0, le=1024, description="How far a view may lie outside the image, in pixels."
    )
    noise: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Standard deviation of the noise under which each gradient is taken, in z.",
    )
    contrast: float | None = Field(
        None,
        ge=0,
        le=2,
        description="How much the contrast of each view (standard deviation of its logarithm) and "
        "the brightness of its channels (half as much, in z) vary.",
    )
    settle: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the steps, at the end, that see the image as it is, without noise.",
    )
    average: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the steps, at the end, whose images' mean is the result; 0 for the "
        "last image.",
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
    probability. `rivals` takes a share of the log-sum-exp of the other classes' logits from it.
    Simonyan et al. 2013, "Deep inside convolutional networks", section 2, equation 1;
    regularisations of Yosinski et al. 2015, section 3 and table 1; octaves and jitter of
    Mordvintsev et al. 2015 ("Inceptionism"); gradients by the spectrum and the colours of photos
    after Olah et al. 2017, "Feature visualization"; random light after Ghiasi et al. 2021,
    "Plug-in inversion".
    """

    name = "class_visualization"
    kind = Kind.SYNTHESIS
    requires = frozenset({Capability.GRADIENT})
    inputs = Inputs.OPTIONAL

    def run(
        self, model: Classifier, batch: Batch, params: ClassVisualizationParams, job: Job
    ) -> ClassVisualizationResult:
        targets_class = batch.targets.kind is TargetKind.CLASS and batch.targets.layer is None
        if params.rivals and not targets_class:
            raise InvalidRequest.field("params.rivals", "only a class as the target has rivals")
        axes, space = Axes.of(model), Centred.of(model)
        full = axes.sizes(batch.inputs.shape)
        chosen = preset(params.preset, full, axes.channel_count(batch.inputs.shape))
        settings = chosen.updated(params.model_dump(exclude={"preset"}))
        if not targets_class:
            settings = replace(settings, rivals=0.0)
        levels = 1 if batch.has_inputs else settings.octaves
        sizes = octave_sizes(full, levels, settings.octave_ratio, _SMALLEST_OCTAVE)
        z = resize(space.from_input(batch.inputs), axes, sizes[0])
        z = z + settings.start_noise * normal_rows(batch.seeds, settings.steps * settings.views, z)
        previews = max(1, settings.steps // 20)
        averaged, mean = round(settings.steps * settings.average), torch.zeros_like(z)
        for step in job.track(settings.steps):
            size = sizes[step * len(sizes) // settings.steps]
            z = resize(z, axes, size)
            if settings.clip:
                z = space.resized(model.input_shape, axes, size).clip(z)
            gradient = _gradient(model, batch, z, step, settings)
            z = ascend(z, gradient, step, settings, axes)
            if (before := step - (settings.steps - averaged)) >= 0:
                mean = resize(mean, axes, size) * (before / (before + 1)) + z / (before + 1)
            if step % previews == 0:
                job.preview(images=space.to_input(resize(z, axes, full), clip=True))
        made = mean if averaged else z
        images = space.to_input(resize(made, axes, full), clip=True)
        with torch.no_grad():
            value, logits = model.objective(images, batch.targets)
            logits = model(images) if logits is None else logits
        probability = batch.targets.select(logits.softmax(1)) if targets_class else None
        return ClassVisualizationResult(images, value, probability, logits)


def _gradient(model: Classifier, batch: Batch, z: Tensor, step: int, settings: Settings) -> Tensor:
    """The blurred gradient by z of the penalised score, its mean over the views of this step."""
    axes, space = Axes.of(model), Centred.of(model)
    full = axes.sizes(batch.inputs.shape)
    moving = step < settings.steps * (1 - settings.settle)
    views = settings.views if moving else 1
    total = torch.zeros_like(z)
    for view in range(views):
        leaf = z.detach().clone().requires_grad_()
        with torch.enable_grad():
            if moving:
                shown = _view(leaf, batch, axes, full, step * settings.views + view, settings)
            else:
                shown = resize(leaf, axes, full)
            score, logits = model.objective(space.to_input(shown), batch.targets)
            if settings.rivals and logits is not None:
                others = logits.scatter(1, batch.targets.index, -torch.inf)
                score = score - settings.rivals * others.logsumexp(1)
            (gradient,) = torch.autograd.grad(score.sum(), leaf)
        total = total + gradient
    gradient = muted(total / views - 2 * settings.l2 * z, axes, settings.chroma)
    gradient = pink(gradient, axes, settings.at(settings.spectrum, step), settings.lowest_frequency)
    return blur(gradient, axes, settings.at(settings.gradient_blur, step))


def _view(
    z: Tensor, batch: Batch, axes: Axes, full: tuple[int, ...], draw: int, settings: Settings
) -> Tensor:
    """A random view of each row at the size `full`, under noise."""
    if axes.spatial:
        sizes = axes.sizes(z.shape)
        windows = random_windows(
            batch.seeds,
            draw,
            sizes,
            zoom=settings.zoom,
            jitter=[settings.jitter * size / end for size, end in zip(sizes, full, strict=True)],
            mirror=settings.mirror,
        )
        z = resample(z, axes, windows, full)
    if settings.contrast:
        z = random_light(z, axes, batch.seeds, draw, settings.contrast)
    return z + settings.noise * batch.normal(draw) if settings.noise else z
