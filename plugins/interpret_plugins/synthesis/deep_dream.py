"""DeepDream: an image in which a network sees more of what it sees already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
    Job,
    Kind,
    Params,
    Plugin,
    TargetKind,
    logits_after,
    metric,
    output,
)

from .ascent import per_row
from .centred import Centred
from .descent import evaluate
from .feature_layers import check_layers, middle_layer
from .spatial import Axes, octave_sizes, resample, resize
from .views import random_windows

_COMPARED = 1 << 24  # similarities between positions that are held at once

Weight = Annotated[float, Field(ge=-1e6, le=1e6)]


class Objective(StrEnum):
    """What is raised in each layer."""

    MEAN = "mean"
    SQUARED_NORM = "squared_norm"


class DeepDreamParams(Params):
    """Layers, objective, and the octaves of the ascent."""

    layers: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        max_length=32,
        description="Layers whose objectives are added; null: the last activation of the last "
        "resolution but one.",
    )
    layer_weights: tuple[Weight, ...] | None = Field(
        None, description="Weight of each of `layers`; null: 1 for each."
    )
    objective: Objective = Field(
        Objective.SQUARED_NORM,
        description="mean: the mean of a layer's values; squared_norm: half the sum of their "
        "squares, whose gradient at the layer is the layer itself. With a guide neither is used.",
    )
    steps: int = Field(10, ge=0, le=10_000, description="Gradient steps in each octave.")
    rate: float = Field(
        1.5 / 255,
        gt=0,
        le=10,
        description="Length of a step, rate * g / mean(|g|), in widths of the bounds.",
    )
    octaves: int = Field(
        4, ge=1, le=16, description="Sizes to work through, coarse to fine; the last is the whole."
    )
    octave_ratio: float = Field(1.4, gt=1, le=4, description="Each size over the one before.")
    smallest: int = Field(
        32, ge=2, le=4096, description="Octaves with a shorter axis, in pixels, are left out."
    )
    jitter: float = Field(
        32.0,
        ge=0,
        le=1024,
        description="How far the image is moved before each step, in pixels either way; at most a "
        "seventh of its shortest axis.",
    )


@dataclass(frozen=True)
class DeepDreamResult:
    """The dreamt images and what they changed in the layers."""

    images: Tensor = output("The inputs with what the layers saw in them, inside the bounds.")
    objective_before: Tensor = metric("The objective at the inputs.")
    objective: Tensor = metric("The objective at the images.")
    logits: Tensor = logits_after()


class DeepDream(Plugin[DeepDreamParams, DeepDreamResult]):
    """Change an image so that layers respond more to it, from coarse sizes to fine ones.

    Ascends the weighted sum over layers of the mean activation, or of `|y|^2 / 2` (the gradient at
    the layer is then y itself), by steps of `rate * g / mean|g|` (Mordvintsev, Olah & Tyka 2015,
    "Inceptionism", and the notebook published with it). Each octave adds detail to the input
    resized to it; the detail is enlarged and carried to the next one. With a tensor `guide` each
    position y_p of a layer is drawn to the position of the guide's layer that it resembles most:
    the objective is the sum over p of `max_q <y_p, g_q>`.

    An octave is shown to the network at its own scale, moved at random by up to `jitter` pixels
    and mirrored beyond its edges up to the size of the input, so that a network of one fixed size
    takes every octave. Detail is counted in widths of the bounds. Zero steps give the inputs.
    """

    name = "deep_dream"
    kind = Kind.SYNTHESIS
    requires = frozenset({Capability.GRADIENT, Capability.LAYERS})
    target_kinds = frozenset({TargetKind.NONE})
    tensors: ClassVar[Mapping[str, AuxTensor]] = {
        "guide": AuxTensor("An image whose features the layers are drawn to.")
    }

    def check(self, model: Classifier, params: DeepDreamParams) -> None:
        check_layers(model, params.layers, params.layer_weights, "layers")

    def run(
        self, model: Classifier, batch: Batch, params: DeepDreamParams, job: Job
    ) -> DeepDreamResult:
        axes, space = Axes.of(model), Centred.of(model)
        inputs, full = batch.inputs, axes.sizes(batch.inputs.shape)
        sizes = octave_sizes(full, params.octaves, params.octave_ratio, params.smallest)
        objective = _Dream(model, batch, params)
        base, detail = inputs, torch.zeros_like(inputs)
        moved = torch.zeros(len(batch), dtype=torch.bool, device=inputs.device)
        total = len(sizes) * params.steps
        previews = max(1, total // 20)

        def whole() -> Tensor:
            image = inputs + space.scale * resize(detail, axes, full)
            return model.carry(space.limited(image), inputs)

        for step in job.track(total):
            size = sizes[step // params.steps]
            if step % params.steps == 0:
                base, detail = (resize(x, axes, size) for x in (inputs, detail))
            image = base + space.scale * detail
            windows = _windows(batch.seeds, step, size, full, params.jitter)

            def value(x: Tensor, windows: Tensor = windows) -> Tensor:
                return objective(resample(x, axes, windows, full) if axes.spatial else x)

            gradient = evaluate(value, image).gradient
            size_of_gradient = gradient.abs().flatten(1).mean(1)
            moved |= size_of_gradient > 0
            tiny = torch.finfo(gradient.dtype).tiny
            ascent = gradient / per_row(size_of_gradient.clamp_min(tiny), gradient)
            image = space.limited(image + space.scale * params.rate * ascent)
            detail = (image - base) / space.scale
            if step % previews == 0:
                job.preview(images=whole)
        job.warn(
            ~moved & (total > 0), "the layers' gradient is zero everywhere, so nothing was changed"
        )
        images = whole()
        with torch.no_grad():
            return DeepDreamResult(images, objective(inputs), objective(images), model(images))


class _Dream:
    """The objective of each row of inputs `(N, *input_shape)`, `(N,)`."""

    def __init__(self, model: Classifier, batch: Batch, params: DeepDreamParams) -> None:
        self.model, self.batch, self.kind = model, batch, params.objective
        self.layers = params.layers or (middle_layer(model).name,)
        self.weights = params.layer_weights or (1.0,) * len(self.layers)
        self.guides: Sequence[Tensor] | None = None
        if "guide" in batch.tensors:
            with torch.no_grad():
                guide = model.carry(batch.tensors["guide"].to(batch.inputs), batch.inputs)
                self.guides = model.activations(guide, self.layers)

    def __call__(self, x: Tensor) -> Tensor:
        layers = self.model.activations(self.model.carry(x, self.batch.inputs), self.layers)
        total = x.new_zeros(len(x))
        for number, (weight, values) in enumerate(zip(self.weights, layers, strict=True)):
            if self.guides is not None:
                score = values * nearest_features(values.detach(), self.guides[number])
                total = total + weight * score.flatten(1).sum(1)
            elif self.kind is Objective.MEAN:
                total = total + weight * values.flatten(1).mean(1)
            else:
                total = total + weight * values.square().flatten(1).sum(1) / 2
        return total


def nearest_features(values: Tensor, guide: Tensor) -> Tensor:
    """For each position of `values` the guide's features of largest inner product, like `values`.

    Args:
        values, guide: `(N, C, *positions)`; their positions may differ in number.
    """
    rows = values.flatten(2) if values.dim() > 2 else values[..., None]
    guides = guide.flatten(2) if guide.dim() > 2 else guide[..., None]
    together = max(1, _COMPARED // (len(rows) * guides.shape[2]))
    best = [
        (part.mT @ guides).argmax(2)[:, None].expand(-1, rows.shape[1], -1)
        for part in torch.split(rows, together, dim=2)
    ]
    return guides.gather(2, torch.cat(best, 2)).reshape(values.shape)


def _windows(
    seeds: Sequence[int],
    step: int,
    size: tuple[int, ...],
    full: tuple[int, ...],
    jitter: float,
) -> Tensor:
    """Windows of the size `full`, in pixels of an octave, in which the octave lies at random."""
    if not size:
        return torch.empty(len(seeds), 0, 2)
    share = max(whole / part for whole, part in zip(full, size, strict=True))
    reach = min(jitter, min(size) / 7)
    return random_windows(seeds, step, size, zoom=(share, share), jitter=reach)
