"""Code inversion: an input whose code at a layer is a given one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

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
    Params,
    Plugin,
    TargetKind,
    logits_after,
    metric,
    output,
)

from .centred import Centred
from .descent import LBFGS, Adam, Minimizer, Momentum, Point, better
from .spatial import Axes, total_variation

_REFERENCE_SIDE = 227  # pixels, of the network that the published weights were chosen for
_RATES: Mapping[str, float] = {"momentum": 0.004, "adam": 0.05, "lbfgs": 1.0}

Phase = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1e6)]]


class CodeInversionParams(Params):
    """The objective's weights are quoted for pixels of `pixel_scale` width, the published 255 by
    default, and carried over to the model's own units; 1 means centred inputs z.
    """

    layer: str | None = Field(
        None, description="The layer whose code is inverted; null: the logits."
    )
    alpha: float = Field(
        6.0, ge=1, le=20, description="Exponent of the norm of the centred input, |z|_a^a."
    )
    alpha_weight: float = Field(8e-10, ge=0, le=1e12, description="Weight of |z|_a^a.")
    tv_beta: float = Field(2.0, ge=1, le=10, description="Exponent of the total variation.")
    tv_weight: float | None = Field(
        None,
        ge=0,
        le=1e12,
        description="Weight of the total variation; null: 1, 10 or 100 for a layer of the first, "
        "second or last third, times (shorter side / 227)^2.",
    )
    pixel_scale: float = Field(
        255.0, gt=0, le=1e6, description="Width of the pixel range that weights are quoted for."
    )
    balance: Literal["reference", "none"] = Field(
        "reference",
        description="reference: both regularisers are divided by twice, and gradient rates "
        "multiplied by, the squared norm of a typical input; none: weights and rates as they are.",
    )
    typical_rms: float = Field(
        0.25,
        gt=0,
        le=10,
        description="Root mean square of a typical centred input, and of the noise that a chain "
        "without a start begins from, in widths of the bounds.",
    )
    optimizer: Literal["momentum", "adam", "lbfgs"] = Field(
        "adam",
        description="momentum: the published one (with 400 steps), reset at each change of rate; "
        "adam; lbfgs.",
    )
    steps: int = Field(200, ge=1, le=100_000, description="Steps in all.")
    rate: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="First learning rate; null: 0.004 for momentum, 0.05 (in widths of the "
        "bounds) for adam, 1 for lbfgs.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Share of the last step that is kept.")
    schedule: tuple[Phase, ...] = Field(
        ((0.25, 1.0), (0.5, 0.1), (0.25, 0.01)),
        min_length=1,
        max_length=32,
        description="Phases as (share of the steps, factor of the rate), for momentum and adam.",
    )
    clip: bool = Field(
        True,
        description="Keep images inside the model's bounds: after each step, or with lbfgs at the "
        "end only.",
    )

    @model_validator(mode="after")
    def _whole_schedule(self) -> Self:
        if abs(sum(share for share, _ in self.schedule) - 1) > 1e-6:
            raise ValueError("the shares of schedule must add up to 1")
        return self

    def factor(self, step: int) -> float:
        """The rate at a step over the first rate."""
        reached = 0.0
        for share, factor in self.schedule:
            reached += share * self.steps
            if step + 0.5 < reached:
                return factor
        return self.schedule[-1][1]


@dataclass(frozen=True)
class CodeInversionResult:
    """The reconstructions and how close their codes are."""

    images: Tensor = output("Inputs whose code is close to the given one.")
    reconstruction_error: Tensor = metric("|code(images) - code|^2 / |code|^2.")
    logits: Tensor = logits_after()


class CodeInversion(Plugin[CodeInversionParams, CodeInversionResult]):
    """Reconstruct an input from its code at a layer.

    Minimises `|f(x) - c|^2 / |c|^2 + alpha_weight * |z|_a^a + tv_weight * TV_b(z)` over centred
    inputs z, f(x) being the layer's value and c the code: that of the inputs, or the tensor `code`.
    Starts from noise, or from the inputs where `code` is given with them. Returned is the state of
    lowest objective. Mahendran & Vedaldi 2014, "Understanding deep image representations by
    inverting them", section 2.

    A weight for pixels of width s is multiplied by s^alpha (or s^beta), a gradient rate divided by
    s^2. With balance `reference`, as in the authors' implementation, the regularisers are then
    divided by 2 r^2 and rates multiplied by r^2, where r is the norm of a typical input on the
    same scale.
    """

    name = "code_inversion"
    kind = Kind.SYNTHESIS
    requires = frozenset({Capability.GRADIENT, Capability.LAYERS})
    inputs = Inputs.OPTIONAL
    target_kinds = frozenset({TargetKind.NONE})
    tensors: ClassVar[Mapping[str, AuxTensor]] = {
        "code": AuxTensor(
            "The code to invert, shaped like the layer; the inputs are then only starting points.",
            like_input=False,
        )
    }

    def check(self, model: Classifier, params: CodeInversionParams) -> None:
        if params.layer is not None:
            model.layer(params.layer)

    def run(
        self, model: Classifier, batch: Batch, params: CodeInversionParams, job: Job
    ) -> CodeInversionResult:
        space = Centred.of(model)
        code = _code(model, batch, params)
        energy = _norm(code)
        job.warn(energy == 0, "the code is all zeros, so the error is not divided by its norm")
        energy = torch.where(energy > 0, energy, 1)
        weights = _Weights.of(model, params)

        def error(x: Tensor) -> Tensor:
            return _norm(_features(model, x, params) - code) / energy

        def evaluate(z: Tensor) -> Point:
            leaf = z.detach().clone().requires_grad_()
            with torch.enable_grad():
                value = error(space.to_input(leaf)) + weights.penalty(leaf)
                (gradient,) = torch.autograd.grad(value.sum(), leaf)
            return Point(leaf.detach(), value.detach(), gradient)

        if "code" in batch.tensors and batch.has_inputs:
            z = space.from_input(batch.inputs)
        else:
            z = params.typical_rms * batch.normal()
        project = space.clip if params.clip else _unchanged
        minimizer, rate = _minimizer(params, weights, project)
        point = evaluate(project(z))
        best = point
        previews = max(1, params.steps // 20)
        for step in job.track(params.steps):
            factor = 1.0 if params.optimizer == "lbfgs" else params.factor(step)
            point = minimizer.step(point, evaluate, rate * factor)
            best = better(point, best)
            if step % previews == 0:
                job.preview(images=space.to_input(best.z, clip=params.clip))
        images = space.to_input(best.z, clip=params.clip)
        with torch.no_grad():
            return CodeInversionResult(images, error(images), model(images))


@dataclass(frozen=True)
class _Weights:
    """The regularisers in centred units, and the squared norm r^2 of a typical centred input."""

    axes: Axes
    alpha: float
    alpha_weight: float
    tv_beta: float
    tv_weight: float
    norm: float  # r^2
    gradient_rate: float

    @classmethod
    def of(cls, model: Classifier, params: CodeInversionParams) -> Self:
        axes, scale = Axes.of(model), params.pixel_scale
        norm = params.typical_rms**2 * math.prod(model.input_shape)
        tv_weight = params.tv_weight
        if tv_weight is None:
            tv_weight = _default_tv_weight(model, params.layer, axes)
        reference = params.balance == "reference"
        share = 1 / (2 * norm * scale**2) if reference else 1.0
        return cls(
            axes=axes,
            alpha=params.alpha,
            alpha_weight=params.alpha_weight * scale**params.alpha * share,
            tv_beta=params.tv_beta,
            tv_weight=tv_weight * scale**params.tv_beta * share,
            norm=norm,
            gradient_rate=norm if reference else 1 / scale**2,
        )

    def penalty(self, z: Tensor) -> Tensor:
        value = z.new_zeros(len(z))
        if self.alpha_weight:
            value = value + self.alpha_weight * (z.abs() ** self.alpha).flatten(1).sum(1)
        if self.tv_weight:
            value = value + self.tv_weight * total_variation(z, self.axes, self.tv_beta)
        return value


def _default_tv_weight(model: Classifier, layer: str | None, axes: Axes) -> float:
    names = list(model.layers)
    depth = 1.0 if layer is None else names.index(layer) / len(names)
    side = min(axes.sizes((0, *model.input_shape)), default=1)
    weight: float = (1.0, 10.0, 100.0)[min(2, int(3 * depth))] * (side / _REFERENCE_SIDE) ** 2
    return weight


def _minimizer(
    params: CodeInversionParams, weights: _Weights, project: Callable[[Tensor], Tensor]
) -> tuple[Minimizer, float]:
    rate = _RATES[params.optimizer] if params.rate is None else params.rate
    match params.optimizer:
        case "momentum":
            return Momentum(params.momentum, project), rate * weights.gradient_rate
        case "adam":
            return Adam(project), rate
        case "lbfgs":
            return LBFGS(0.1 * weights.norm**0.5), rate


def _features(model: Classifier, x: Tensor, params: CodeInversionParams) -> Tensor:
    return model(x) if params.layer is None else model.activations(x, [params.layer])[0]


def _code(model: Classifier, batch: Batch, params: CodeInversionParams) -> Tensor:
    if "code" in batch.tensors:
        shape = (model.classes,) if params.layer is None else model.layer(params.layer).shape
        code = batch.tensors["code"].to(batch.inputs)
        if tuple(code.shape[1:]) != shape:
            raise InvalidRequest.field(
                "tensors.code",
                f"each row must have the layer's shape {list(shape)}, not {list(code.shape[1:])}",
            )
        return code
    if not batch.has_inputs:
        raise InvalidRequest.field("inputs", "give the inputs to reconstruct, or a tensor `code`")
    with torch.no_grad():
        return _features(model, batch.inputs, params)


def _norm(values: Tensor) -> Tensor:
    return values.square().flatten(1).sum(1)


def _unchanged(z: Tensor) -> Tensor:
    return z
