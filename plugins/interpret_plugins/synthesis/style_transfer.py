"""Style transfer: the content of one image in the textures of others."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Capability,
    Classifier,
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
from .colours import brightened, recoloured
from .descent import LBFGS, Adam, Minimizer, better, evaluate
from .feature_layers import check_layers, content_layer, style_layers
from .spatial import Axes, total_variation

_RATES = {"lbfgs": 1.0, "adam": 0.02}
_START_RMS = 0.25  # of noise to start from, in widths of the bounds

Weight = Annotated[float, Field(ge=0, le=1e12)]


class StyleTransferParams(Params):
    """Layers, weights, colours, and the optimiser."""

    content_layers: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        max_length=32,
        description="Layers whose values are kept; null: the second wide activation of the last "
        "resolution but one, as relu4_2 of VGG.",
    )
    style_layers: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        max_length=32,
        description="Layers whose Gram matrices are taken from the styles; null: the first wide "
        "activation of each resolution, as relu1_1 to relu5_1 of VGG.",
    )
    style_layer_weights: tuple[Weight, ...] | None = Field(
        None, description="Weight of each of `style_layers`; null: 1 over their number."
    )
    style_weights: tuple[Weight, ...] | None = Field(
        None, description="Share of each style, divided by their sum; null: the same for each."
    )
    content_weight: Weight = Field(1.0, description="Weight of the content error.")
    style_weight: Weight = Field(100.0, description="Weight of the style error.")
    tv_weight: Weight = Field(
        30.0, description="Weight of the mean squared difference of neighbours in centred inputs."
    )
    balance: Literal["relative", "mean"] = Field(
        "relative",
        description="What an error is: relative: the squared distance over the squared norm of "
        "what is aimed at, which is alike on any network; mean: the mean squared distance, as in "
        "the reference implementation, whose weights are 5, 100 and 1e-3 for VGG on 0 to 255.",
    )
    colours: Literal["style", "luminance", "matched"] = Field(
        "style",
        description="style: the style's; luminance: only brightness is changed; matched: the "
        "style's pixels first get the mean and covariance of the content's.",
    )
    start: Literal["content", "noise"] = Field(
        "content", description="Where the optimiser begins: at the inputs, or at seeded noise."
    )
    optimizer: Literal["lbfgs", "adam"] = Field(
        "lbfgs", description="lbfgs clips to the bounds at its end, adam after each step."
    )
    steps: int = Field(150, ge=1, le=100_000, description="Steps of the optimiser.")
    rate: float | None = Field(
        None, gt=0, le=1e3, description="Step size; null: 1 for lbfgs, 0.02 for adam."
    )


@dataclass(frozen=True)
class StyleTransferResult:
    """The images, and how far they are from content and style."""

    images: Tensor = output("The content in the styles, inside the bounds.")
    content_error: Tensor | None = metric(
        "|F - P|^2 / |P|^2, its mean over the content layers; not with a content weight of 0."
    )
    style_error: Tensor | None = metric(
        "|G - A|^2 / |A|^2 of Gram matrices, weighted over layers and styles; not with a style "
        "weight of 0."
    )
    logits: Tensor = logits_after()


class StyleTransfer(Plugin[StyleTransferParams, StyleTransferResult]):
    """Give an image the textures of others, keeping what a deep layer sees in it.

    Minimises `content_weight * mean over layers of |F - P|^2 + style_weight * sum over styles s and
    layers l of share_s * weight_l * |G - A_s|^2 + tv_weight * TV(z) / values`, F and P being the
    layers' values at the image and at the input, `G = F F^T / (C * positions)` the Gram matrix over
    channels and A_s that of style s; squared distances are relative or means, as `balance` says,
    and z is the centred input. Gatys, Ecker & Bethge 2015, "A neural algorithm of artistic style";
    colours by Gatys et al. 2016, "Preserving color in neural artistic style transfer".

    With a style weight of 0 no styles are needed.
    """

    name = "style_transfer"
    kind = Kind.SYNTHESIS
    requires = frozenset({Capability.GRADIENT, Capability.LAYERS})
    target_kinds = frozenset({TargetKind.NONE})
    tensors: ClassVar[Mapping[str, AuxTensor]] = {
        "style": AuxTensor(
            "The styles of each row, `(N, S, *shape)`, or one style `(N, *shape)`.",
            like_input=False,
        )
    }

    def check(self, model: Classifier, params: StyleTransferParams) -> None:
        check_layers(model, params.content_layers, None, "content_layers")
        check_layers(model, params.style_layers, params.style_layer_weights, "style_layers")

    def run(
        self, model: Classifier, batch: Batch, params: StyleTransferParams, job: Job
    ) -> StyleTransferResult:
        axes, space, inputs = Axes.of(model), Centred.of(model), batch.inputs
        errors = _Errors(model, batch, params)

        def image(change: Tensor) -> Tensor:
            return inputs + space.scale * change

        def objective(change: Tensor) -> Tensor:
            x = image(change)
            content, style = errors(x, relative=params.balance == "relative")
            value = params.content_weight * content + params.style_weight * style
            roughness = total_variation(space.from_input(x), axes) / x[0].numel()
            return value + params.tv_weight * roughness

        def project(change: Tensor) -> Tensor:
            return (space.limited(image(change)) - inputs) / space.scale

        def shown(change: Tensor) -> Tensor:
            x = image(change)
            if params.colours == "luminance":
                x = brightened(inputs, x, axes)
            return model.carry(space.limited(x), inputs)

        change = torch.zeros_like(inputs)
        if params.start == "noise":
            change = _START_RMS * batch.normal() - space.from_input(inputs)
        typical = _START_RMS * inputs[0].numel() ** 0.5
        minimizer: Minimizer = (
            LBFGS(0.1 * typical) if params.optimizer == "lbfgs" else Adam(project)
        )
        rate = _RATES[params.optimizer] if params.rate is None else params.rate
        judge = partial(evaluate, objective)
        point = judge(change)
        best, previews = point, max(1, params.steps // 20)
        for step in job.track(params.steps):
            point = minimizer.step(point, judge, rate)
            best = better(point, best)
            if step % previews == 0:
                job.preview(images=partial(shown, best.z))
        images = shown(best.z)
        with torch.no_grad():
            content, style = errors(images, relative=True)
            return StyleTransferResult(
                images,
                content if errors.content_layers else None,
                style if errors.style_layers else None,
                model(images),
            )


def gram(values: Tensor) -> Tensor:
    """`F F^T / (C * positions)` of a layer's values `(N, C, *positions)`, `(N, C, C)`."""
    maps = values.flatten(2) if values.dim() > 2 else values[..., None]
    return maps @ maps.mT / (maps.shape[1] * maps.shape[2])


class _Errors:
    """Content and style errors of images `(N, *input_shape)`, each `(N,)`."""

    def __init__(self, model: Classifier, batch: Batch, params: StyleTransferParams) -> None:
        self.model, self.batch = model, batch
        self.contents: tuple[Tensor, ...] = ()
        self.content_layers: tuple[str, ...] = ()
        self.style_layers: tuple[str, ...] = ()
        with torch.no_grad():
            if params.content_weight:
                self.content_layers = params.content_layers or (content_layer(model).name,)
                self.contents = model.activations(batch.inputs, self.content_layers)
            if params.style_weight:
                names = tuple(layer.name for layer in style_layers(model))
                self.style_layers = params.style_layers or names
                count = len(self.style_layers)
                self.layer_weights = params.style_layer_weights or (1 / count,) * count
                styles = _styles(model, batch, params)
                self.grams = [
                    [gram(values) for values in model.activations(style, self.style_layers)]
                    for style in styles
                ]
                weights = params.style_weights or (1.0,) * len(styles)
                self.shares = [weight / sum(weights) for weight in weights]
        self.layers = tuple(dict.fromkeys(self.content_layers + self.style_layers))

    def __call__(self, x: Tensor, *, relative: bool) -> tuple[Tensor, Tensor]:
        content, style = x.new_zeros(len(x)), x.new_zeros(len(x))
        if not self.layers:
            return content, style
        values = self.model.activations(self.model.carry(x, self.batch.inputs), self.layers)
        found = dict(zip(self.layers, values, strict=True))
        for name, aim in zip(self.content_layers, self.contents, strict=True):
            content = content + _error(found[name], aim, relative) / len(self.content_layers)
        for number, name in enumerate(self.style_layers):
            own = gram(found[name])
            for share, grams in zip(self.shares, self.grams, strict=True):
                error = _error(own, grams[number], relative)
                style = style + share * self.layer_weights[number] * error
        return content, style


def _error(values: Tensor, aim: Tensor, relative: bool) -> Tensor:
    distance = (values - aim).square().flatten(1)
    if not relative:
        return distance.mean(1)
    norm = aim.square().flatten(1).sum(1)
    return distance.sum(1) / torch.where(norm > 0, norm, 1)


def _styles(model: Classifier, batch: Batch, params: StyleTransferParams) -> list[Tensor]:
    """The styles of the rows, each `(N, *shape)`, in the colours that are asked for."""
    if "style" not in batch.tensors:
        raise InvalidRequest.field("tensors.style", "give the styles, or a style weight of 0")
    styles = batch.tensors["style"].to(batch.inputs)
    rank = batch.inputs.dim()
    if styles.dim() == rank:
        styles = styles[:, None]
    shape = tuple(styles.shape[2:])
    if styles.dim() != rank + 1 or not model.accepts(shape) or not styles.shape[1]:
        wanted = ", ".join(map(str, batch.inputs.shape[1:]))
        raise InvalidRequest.field(
            "tensors.style",
            f"it must be (rows, styles, {wanted}), not {list(batch.tensors['style'].shape)}",
        )
    if params.style_weights is not None and len(params.style_weights) != styles.shape[1]:
        raise InvalidRequest.field(
            "params.style_weights", f"give one weight for each of the {styles.shape[1]} styles"
        )
    if params.style_weights is not None and not sum(params.style_weights):
        raise InvalidRequest.field("params.style_weights", "one weight must be above 0")
    found = list(styles.unbind(1))
    if params.colours == "matched":
        axes, space = Axes.of(model), Centred.of(model)
        found = [space.limited(recoloured(style, batch.inputs, axes)) for style in found]
    if shape == tuple(batch.inputs.shape[1:]):
        found = [model.carry(style, batch.inputs) for style in found]
    return found
