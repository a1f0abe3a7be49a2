"""Fooling images: inputs that are nothing to see, and that the model is certain of."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
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

from .ascent import per_row
from .centred import Centred

_LEVELS = (0.99, 0.999, 0.9999)


class FoolingImageParams(Params):
    """Lengths are in units of centred inputs, z = (x - centre) / (width of the bounds)."""

    form: Literal["image", "distortion", "added"] = Field(
        "image",
        description="image: the image itself climbs; distortion: a distortion of the inputs, from "
        "zero, climbs and is kept small by l2; added: a distortion climbs by itself, as an image "
        "from zero, and is added to the inputs in the end.",
    )
    start: Literal["zero", "noise", "inputs"] = Field(
        "zero",
        description="Where the form image starts: the neutral input, noise around it, or the "
        "inputs.",
    )
    noise: float = Field(
        0.2, gt=0, le=10, description="Standard deviation of the noise that start noise takes."
    )
    ascend: Literal["log_probability", "logit"] = Field(
        "log_probability", description="What climbs: log p(c|x), or the class's logit."
    )
    steps: int = Field(300, ge=1, le=100_000, description="Steps at most.")
    rate: float = Field(
        1 / 255, gt=0, le=10, description="Mean size of a step: rate * g / mean|g|, in z."
    )
    l2: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Weight of the penalty |z|^2 (of the distortion's, where one climbs), in what "
        "climbs.",
    )
    confidence: float = Field(
        0.9999, gt=0, lt=1, description="A row stops at the first step whose p(c|x) is above this."
    )
    stop: bool = Field(True, description="Stop there; otherwise every row takes all steps.")


@dataclass(frozen=True)
class FoolingImageResult:
    """The images, and how soon the model was certain of them."""

    images: Tensor = output("The fooling inputs, inside the model's bounds where it has any.")
    distortion: Tensor = output("The images less what they started from, in input units.")
    probability: Tensor = metric("p(c|x) at the images.", better="high")
    steps_to_99: Tensor = metric("First step after which p(c|x) > 0.99; -1: never.")
    steps_to_999: Tensor = metric("First step after which p(c|x) > 0.999; -1: never.")
    steps_to_9999: Tensor = metric("First step after which p(c|x) > 0.9999; -1: never.")
    steps_taken: Tensor = metric("Steps that the row took.")
    distortion_rms: Tensor = metric(
        "Root mean square of the distortion, in widths of the bounds.", better="low"
    )
    distortion_max: Tensor = metric(
        "Largest value of the distortion, in widths of the bounds.", better="low"
    )
    logits: Tensor = logits_after()


class FoolingImage(Plugin[FoolingImageParams, FoolingImageResult]):
    """Make inputs that no human would take for a class, and the model does almost surely.

    Gradient ascent on log p(c|x) - l2 * |z|^2 by steps rate * g / mean|g| over centred inputs
    z = (x - centre) / scale, inside the bounds, until p(c|x) > 0.9999: Nguyen, Yosinski & Clune
    2015, "Deep neural networks are easily fooled", the images found by gradient ascent. The forms
    distortion and added make the change of a real image instead, as Szegedy et al. 2013,
    "Intriguing properties of neural networks"; their rms is that paper's measure of distortion.
    The metrics steps_to tell the first step past each confidence, 0 where the start is past it.
    In the form added, they are of the distortion by itself, and probability of its sum.
    """

    name = "fooling_image"
    kind = Kind.SYNTHESIS
    requires = frozenset({Capability.GRADIENT})
    inputs = Inputs.OPTIONAL
    target_kinds = frozenset({TargetKind.CLASS})

    def run(
        self, model: Classifier, batch: Batch, params: FoolingImageParams, job: Job
    ) -> FoolingImageResult:
        space = Centred.of(model)
        real = space.from_input(batch.inputs)
        origin, z = _origin(model, batch, params, space, real)
        first = torch.full((len(_LEVELS), len(z)), -1.0, dtype=z.dtype, device=z.device)
        limits = torch.tensor(_LEVELS, dtype=torch.float64, device=z.device)[:, None]
        taken = torch.zeros_like(first[0])
        running = torch.ones(len(z), dtype=torch.bool, device=z.device)
        previews = max(1, params.steps // 20)
        for step in job.track(params.steps + 1):
            chance, gradient = _climb(model, batch, space, z, params)
            first = torch.where((first < 0) & running & (chance > limits), float(step), first)
            if params.stop:
                running = running & (chance <= params.confidence)
            if step == params.steps or not running.any():
                break
            penalised = z - origin if params.form == "distortion" else z
            gradient = gradient - 2 * params.l2 * penalised
            size = gradient.flatten(1).abs().mean(1)
            change = per_row(params.rate / size.clamp_min(torch.finfo(size.dtype).tiny), z)
            z = torch.where(per_row(running, z), space.clip(z + change * gradient), z)
            taken = taken + running
            if step % previews == 0:
                job.preview(images=space.to_input(z, clip=True))
        base = real if params.form == "added" else origin
        images = model.carry(space.to_input(base + (z - origin), clip=True), batch.inputs)
        distortion = images - space.to_input(base)
        with torch.no_grad():
            logits = model(images)
        probability = batch.targets.select(logits.softmax(1))
        job.warn(
            chance <= params.confidence,
            "p(c|x) stayed under the confidence asked for: take more steps or a larger rate",
        )
        flat = distortion.flatten(1) / space.scale
        return FoolingImageResult(
            images,
            distortion,
            probability,
            first[0],
            first[1],
            first[2],
            taken,
            flat.square().mean(1).sqrt(),
            flat.abs().amax(1),
            logits,
        )


def _origin(
    model: Classifier, batch: Batch, params: FoolingImageParams, space: Centred, real: Tensor
) -> tuple[Tensor, Tensor]:
    """What distortions are counted from, and where the ascent begins, in z."""
    wanted = params.form != "image" or params.start == "inputs"
    if wanted and not batch.has_inputs:
        raise InvalidRequest.field("inputs", f"the form {params.form} needs the images to change")
    if params.form == "distortion" or (params.form == "image" and params.start == "inputs"):
        return real, real
    neutral = torch.zeros_like(real)
    if params.form == "image" and params.start == "noise":
        start = space.clip(neutral + params.noise * batch.normal(params.steps))
        return start, start
    return neutral, neutral


def _climb(
    model: Classifier, batch: Batch, space: Centred, z: Tensor, params: FoolingImageParams
) -> tuple[Tensor, Tensor]:
    """p(c|x) in float64, and the gradient by z of what climbs."""
    leaf = z.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(model.carry(space.to_input(leaf, clip=True), batch.inputs))
        chosen = logits.log_softmax(1) if params.ascend == "log_probability" else logits
        (gradient,) = torch.autograd.grad(batch.targets.select(chosen).sum(), leaf)
    chance = batch.targets.select(logits.detach().double().softmax(1))
    return chance, gradient
