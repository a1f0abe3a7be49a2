"""Activation maximisation: inputs to which a neuron, a channel, a layer or a direction responds."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from interpret_server.noise import mix, normal_rows, uniform_rows
from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    Inputs,
    Job,
    Kind,
    Params,
    Plugin,
    logits_after,
    metric,
    output,
)

from .centred import Centred
from .descent import Adam, Point, evaluate
from .feature_layers import middle_layer
from .parameterisations import Fourier, Parameterisation, Pixels
from .rotation import rotate
from .similarity import mean_similarity
from .spatial import Axes, resample, total_variation
from .terms import Term, check_terms, target_values
from .views import random_windows

_START_NOISE = 0.01
_RATES = {"fourier": 0.05, "pixel": 0.01}

Scale = Annotated[float, Field(ge=0.25, le=4)]


class ActivationMaximizationParams(Params):
    """What is maximised beside the target, how images are written and moved, and penalties on
    centred inputs z = (x - centre) / (width of the bounds), in units of the target's value.
    """

    terms: tuple[Term, ...] = Field(
        (), max_length=16, description="Targets to add to the request's, with weights."
    )
    parameterization: Literal["fourier", "pixel"] = Field(
        "fourier",
        description="fourier: coefficients with the spectrum and the colours of natural images; "
        "pixel: the centred pixels.",
    )
    spectrum_decay: float = Field(
        1.0, ge=0, le=4, description="Exponent of the frequency that divides its coefficient."
    )
    decorrelate_colours: bool = Field(
        True, description="Fourier: mix three channels by the colours of natural images."
    )
    steps: int = Field(256, ge=1, le=100_000, description="Steps of Adam.")
    rate: float | None = Field(
        None, gt=0, le=1e3, description="Learning rate; null: 0.05 for fourier, 0.01 for pixel."
    )
    jitter: float | None = Field(
        None,
        ge=0,
        le=1024,
        description="How far the image is moved before each step, in pixels either way; null: a "
        "sixteenth of its shortest axis, at most 12.",
    )
    scale: tuple[Scale, Scale] = Field(
        (0.9, 1.1), description="Smallest and largest factor by which it is enlarged."
    )
    rotation: float = Field(
        10.0, ge=0, le=180, description="Largest angle by which it is turned, in degrees."
    )
    variants: int = Field(
        1, ge=1, le=16, description="Images for each row, made different by the diversity term."
    )
    diversity: float = Field(
        1.0,
        ge=0,
        le=1e6,
        description="Weight of the likeness of variants, in shares of the target's value.",
    )
    diversity_layer: str | None = Field(
        None,
        description="The layer in which variants should differ; null: the target's, or for the "
        "logits the last activation of the last resolution but one.",
    )
    l1: float = Field(0.0, ge=0, le=1e9, description="Weight of the sum of |z|.")
    l2: float = Field(0.0, ge=0, le=1e9, description="Weight of the sum of z^2.")
    total_variation: float = Field(
        0.0, ge=0, le=1e9, description="Weight of the squared differences of neighbours in z."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError("scale must be (smallest, largest)")
        return self


@dataclass(frozen=True)
class ActivationMaximizationResult:
    """The images and how strongly their targets respond."""

    images: Tensor = output("The synthesised inputs, inside the bounds; of variants, the best.")
    variants: Tensor | None = output(
        "All variants `(N, variants, *shape)`, the best first; only where there are several.",
        like_input=False,
    )
    target_value: Tensor = metric("The target's value at the image.")
    score: Tensor = metric("The same with the weighted terms added.")
    similarity: Tensor | None = metric(
        "Mean cosine between the variants' Gram matrices; only where there are several."
    )
    logits: Tensor = logits_after()


class ActivationMaximization(Plugin[ActivationMaximizationParams, ActivationMaximizationResult]):
    """Synthesise inputs that a neuron, a channel, a layer, a direction or a class responds to most.

    Ascends `a(T(x)) + sum of weight_k * a_k(T(x)) - l1 |z|_1 - l2 |z|^2 - total_variation TV(z)` by
    Adam from the neutral input with a little noise (or from the inputs, where given), a being the
    target's value, z the centred input and T a random shift, enlargement and rotation, drawn anew
    for each step from the row's seed. With several variants each has
    `diversity * |a| * mean cosine(G_v, G_w)` taken off, G being the Gram matrices of a layer.
    Olah, Mordvintsev & Schubert 2017, "Feature visualization"; Erhan et al. 2009, "Visualizing
    higher-layer features of a deep network", section 4.
    """

    name = "activation_maximization"
    kind = Kind.SYNTHESIS
    requires = frozenset({Capability.GRADIENT})
    inputs = Inputs.OPTIONAL

    def check(self, model: Classifier, params: ActivationMaximizationParams) -> None:
        check_terms(model, params.terms)
        if params.diversity_layer is not None:
            model.layer(params.diversity_layer)

    def run(
        self,
        model: Classifier,
        batch: Batch,
        params: ActivationMaximizationParams,
        job: Job,
    ) -> ActivationMaximizationResult:
        count = params.variants
        ascent = _Ascent(model, batch, params, job.max_rows)
        minimizer = Adam(ascent.form.project)
        rate = _RATES[params.parameterization] if params.rate is None else params.rate
        point, previews = ascent(ascent.start()), max(1, params.steps // 20)
        moved = torch.zeros(len(point.value), dtype=torch.bool, device=point.value.device)
        for step in job.track(params.steps):
            ascent.step = step + 1
            moved |= point.gradient.flatten(1).any(1)
            point = minimizer.step(point, ascent, rate)
            if step % previews == 0:
                job.preview(images=partial(ascent.firsts, point.z))
        job.warn(
            ~moved.reshape(-1, count).any(1),
            "the gradient was zero throughout: nothing was changed",
        )
        with torch.no_grad():
            images = ascent.images(point.z)
            value, score, similarity = ascent.judged(images)
            order = score.argsort(dim=1, descending=True, stable=True)
            rows = torch.arange(len(batch), device=images.device)[:, None]
            variants = images.reshape(len(batch), count, *images.shape[1:])[rows, order]
            best = variants[:, 0]
            return ActivationMaximizationResult(
                best,
                variants if count > 1 else None,
                value[rows, order][:, 0],
                score[rows, order][:, 0],
                None if similarity is None else similarity.mean(1),
                model(best),
            )


class _Ascent:
    """The objective of all variants, the variants of a row being neighbours; what Adam minimises.

    Attributes:
        step: which draw of the random views the next gradient is taken under.
    """

    def __init__(
        self,
        model: Classifier,
        batch: Batch,
        params: ActivationMaximizationParams,
        max_rows: int,
    ) -> None:
        self.model, self.params, self.step = model, params, 0
        self.axes, self.space = Axes.of(model), Centred.of(model)
        self.sizes = self.axes.sizes(batch.inputs.shape)
        self.inputs = batch.inputs.repeat_interleave(params.variants, 0)
        rows = torch.arange(len(batch), device=self.inputs.device)
        self.targets = batch.targets.take(rows.repeat_interleave(params.variants))
        self.seeds = [
            mix(seed, variant) if variant else seed
            for seed in batch.seeds
            for variant in range(params.variants)
        ]
        self.together = max(1, max_rows // params.variants) * params.variants
        self.layer: str | None = None
        if params.variants > 1:
            self.layer = params.diversity_layer or batch.targets.layer or middle_layer(model).name
        jitter = min(12, min(self.sizes, default=0) // 16)
        self.jitter = jitter if params.jitter is None else params.jitter
        self.form: Parameterisation = Pixels(self.space)
        if params.parameterization == "fourier":
            self.form = Fourier(
                self.space,
                self.axes,
                self.sizes,
                params.spectrum_decay,
                params.decorrelate_colours,
            )

    def start(self) -> Tensor:
        """The values to begin with: those of the inputs, under a little noise."""
        values = self.form.values(self.inputs)
        return values + _START_NOISE * normal_rows(self.seeds, 0, values)

    def images(self, values: Tensor) -> Tensor:
        """Inputs within the bounds."""
        return self.model.carry(self.space.limited(self.form.image(values)), self.inputs)

    def firsts(self, values: Tensor) -> Tensor:
        """The first variant of each row."""
        return self.images(values)[:: self.params.variants]

    def __call__(self, values: Tensor) -> Point:
        points = [evaluate(partial(self._loss, rows), values[rows]) for rows in self._parts()]
        return Point(*(torch.cat(tensors) for tensors in zip(*points, strict=True)))

    def judged(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Targets' values, scores and similarities of images, each `(N, variants)`."""
        found = [self._scores(images[rows], rows) for rows in self._parts()]
        values, scores, similarities = zip(*found, strict=True)
        shape = (-1, self.params.variants)
        similar = None if self.layer is None else torch.cat(similarities).reshape(shape)
        return torch.cat(values).reshape(shape), torch.cat(scores).reshape(shape), similar

    def _parts(self) -> list[slice]:
        starts = range(0, len(self.inputs), self.together)
        return [slice(start, start + self.together) for start in starts]

    def _loss(self, rows: slice, values: Tensor) -> Tensor:
        params, x = self.params, self.form.image(values)
        target, score, similarity = self._scores(self._view(x, rows), rows)
        if similarity is not None:
            score = score - params.diversity * target.detach().abs() * similarity
        if params.l1 or params.l2 or params.total_variation:
            z = self.space.from_input(x)
            score = score - params.l1 * z.abs().flatten(1).sum(1)
            score = score - params.l2 * z.square().flatten(1).sum(1)
            score = score - params.total_variation * total_variation(z, self.axes)
        return -score

    def _scores(self, x: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        x = self.model.carry(x, self.inputs[rows])
        targets = [self.targets.take(rows)]
        targets += [term.targets(len(x), x) for term in self.params.terms]
        (target, *others), features = target_values(self.model, x, targets, self.layer)
        score = target
        for term, value in zip(self.params.terms, others, strict=True):
            score = score + term.weight * value
        if features is None:
            return target, score, None
        grouped = features.reshape(-1, self.params.variants, *features.shape[1:])
        return target, score, mean_similarity(grouped).flatten()

    def _view(self, x: Tensor, rows: slice) -> Tensor:
        """Each image shifted, enlarged and turned at random."""
        if not self.sizes:
            return x
        params, seeds = self.params, self.seeds[rows]
        smallest, largest = params.scale
        zoom = (1 / largest, 1 / smallest)
        windows = random_windows(seeds, self.step, self.sizes, zoom=zoom, jitter=self.jitter)
        x = resample(x, self.axes, windows, self.sizes)
        if not params.rotation:
            return x
        turns = uniform_rows(seeds, self.step + 1, x.new_empty(len(seeds), 1))[:, 0]
        return rotate(x, self.axes, math.radians(params.rotation) * (2 * turns - 1))
