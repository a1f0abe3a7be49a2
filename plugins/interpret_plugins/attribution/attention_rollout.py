"""Attention rollout, and its class-specific form."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.models.relevance.attention import (
    Attention,
    Tokens,
    attention,
    check_attention,
    tokens,
)
from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Params,
    Plugin,
    logits_before,
    metric,
    output,
)

from .activation_maps import enlarge
from .gradients import warn_of_zeros
from .map_layers import spatial_axes

_ZERO = "no token has any weight: the gradient at the attention is nowhere above zero, or is zero"


class AttentionRolloutParams(Params):
    method: Literal["rollout", "gradient"] = Field(
        "rollout",
        description="`rollout`: attention alone, the same for every target; `gradient`: attention "
        "weighted by the target's gradient, specific to it.",
    )
    heads: Literal["mean", "max", "min"] = Field(
        "mean", description="How the heads of a layer become one matrix."
    )
    residual: float = Field(
        0.5, ge=0, lt=1, description="Share of the residual connection, of `rollout`."
    )
    discard: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the smallest weights of each layer's matrix that count as 0, of "
        "`rollout`.",
    )
    query: int | None = Field(
        None,
        ge=0,
        description="The token whose sources are shown; null: the mean over those that the target "
        "reads after the last attention.",
    )
    upsample: Literal["nearest", "linear", "none"] = Field(
        "nearest",
        description="How the grid of patches is brought to the input's size: the nearest value, "
        "interpolation linear along each axis, or not at all.",
    )


@dataclass(frozen=True)
class AttentionRolloutResult:
    attributions: Tensor = output(
        "The patches' weights at the input's spatial size, `(N, *spatial)`, without a channel "
        "axis; at the grid's where `upsample` is none; those of all tokens where these are no "
        "patches.",
        like_input=False,
    )
    tokens: Tensor = output("The weight of each token, `(N, T)`.", like_input=False)
    rollout: Tensor = output(
        "How much of token j there is in token i after the last attention, `(N, T, T)`.",
        like_input=False,
    )
    tokens_read: Tensor = metric(
        "How many tokens the target reads after the last attention: 1 for a class token, all for a "
        "mean."
    )
    logits: Tensor | None = logits_before()


class AttentionRollout(Plugin[AttentionRolloutParams, AttentionRolloutResult]):
    """How much of each token reaches those that the target reads, through all attention layers.

    `rollout`: `R = A_L ... A_1`, where `A_l` is a layer's attention, fused over its heads, with the
    residual connection: `A_l = (1 - residual) W_l + residual I`, its rows scaled to sum to 1. All
    values are at least 0, and a row of R sums to 1. `gradient`: R starts as I, and each layer makes
    it `R + G_l R`, where `G_l` is the attention times the target's gradient by it where that is
    positive, fused over the heads; I is then taken off.

    The tokens that the target reads are those whose attention has a gradient: a class token is one,
    an average reads all. Tokens at the ends that do not depend on the input, such as a class token,
    are left out of the map. Models in which no softmax over keys weighs values, or in which it does
    among different sets of tokens (windows, merged patches, encoder and decoder), are refused.

    Source: Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers" (rollout); Chefer,
    Gur & Wolf 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and
    Encoder-Decoder Transformers" (gradient, self-attention).
    """

    name = "attention_rollout"
    kind = Kind.ATTRIBUTION
    requires = frozenset({Capability.GRADIENT, Capability.LAYERS})

    def check(self, model: Classifier, params: AttentionRolloutParams) -> None:
        count = check_attention(model)
        if None not in model.input_sizes:
            _check_query(params, count)

    def run(
        self, model: Classifier, batch: Batch, params: AttentionRolloutParams, job: Job
    ) -> AttentionRolloutResult:
        for _ in job.track(1):
            found = attention(model, batch.inputs, batch.targets)
            lie = tokens(model, batch.targets.layer, _spatial(model))
        flow = _weighted(found, params) if params.method == "gradient" else _rollout(found, params)
        _check_query(params, flow.shape[-1])
        read = found.gradients[-1].abs().sum((1, 3)) > 0
        chosen = read
        if params.query is not None:
            chosen = torch.zeros_like(read)
            chosen[:, params.query] = True
        share = chosen.to(flow.dtype) / chosen.sum(1, keepdim=True).clamp(min=1)
        weights = (share[:, None] @ flow)[:, 0]
        warn_of_zeros(job, weights, _ZERO)
        shown = _over_input(model, batch, params, lie, weights)
        return AttentionRolloutResult(shown, weights, flow, read.sum(1), found.logits)


def _check_query(params: AttentionRolloutParams, count: int) -> None:
    if params.query is not None and params.query >= count:
        raise InvalidRequest.field("params.query", f"there are {count} tokens, from 0")


def _rollout(found: Attention, params: AttentionRolloutParams) -> Tensor:
    """The product of all layers' matrices, `(N, T, T)`."""
    flow: Tensor | None = None
    for weights in found.weights:
        fused = _discarded(_fused(weights, params.heads), params.discard)
        identity = torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device)
        layer = (1 - params.residual) * fused + params.residual * identity
        layer = layer / layer.sum(-1, keepdim=True).clamp(min=torch.finfo(layer.dtype).tiny)
        flow = layer if flow is None else layer @ flow
    assert flow is not None
    return flow


def _weighted(found: Attention, params: AttentionRolloutParams) -> Tensor:
    """The same by attention times its positive gradient, without the tokens' own share."""
    first = found.weights[0]
    identity = torch.eye(first.shape[-1], dtype=first.dtype, device=first.device)
    flow = identity.expand(len(first), -1, -1)
    for weights, gradients in zip(found.weights, found.gradients, strict=True):
        flow = flow + _fused((weights * gradients).clamp(min=0), params.heads) @ flow
    return flow - identity


def _fused(weights: Tensor, heads: Literal["mean", "max", "min"]) -> Tensor:
    """`(N, heads, T, T)` to `(N, T, T)`."""
    if heads == "mean":
        return weights.mean(1)
    return weights.amax(1) if heads == "max" else weights.amin(1)


def _discarded(weights: Tensor, share: float) -> Tensor:
    """A layer's matrix with a share of its smallest values set to 0."""
    flat = weights.flatten(1)
    count = int(share * flat.shape[1])
    if not count:
        return weights
    return flat.scatter(1, flat.topk(count, largest=False).indices, 0).reshape(weights.shape)


def _spatial(model: Classifier) -> int:
    """How many spatial axes an input has; 0 for tokens and for several inputs."""
    if model.encoded or len(model.input_shape) not in (2, 3):
        return 0
    return len(model.input_shape) - 1


def _over_input(
    model: Classifier,
    batch: Batch,
    params: AttentionRolloutParams,
    lie: Tokens,
    weights: Tensor,
) -> Tensor:
    """The patches' weights over the input's spatial axes, or the tokens' where there is no grid."""
    patches = weights[:, lie.before : weights.shape[1] - lie.after]
    axes = spatial_axes(model, _spatial(model)) if _spatial(model) else ()
    sizes = [batch.inputs.shape[axis + 1] for axis in axes]
    grid = lie.grid if math.prod(lie.grid) == patches.shape[1] else _even(sizes, patches.shape[1])
    if not sizes or not grid:
        return weights
    drawn = patches.reshape(len(patches), *grid)
    return drawn if params.upsample == "none" else enlarge(drawn, sizes, params.upsample)


def _even(sizes: list[int], count: int) -> tuple[int, ...]:
    """A grid of `count` cells in the proportions of the input; empty where there is none."""
    if len(sizes) < 2:
        return (count,) if sizes else ()
    rows = round(math.sqrt(count * sizes[0] / sizes[1]))
    return (rows, count // rows) if rows and rows * (count // rows) == count else ()
