"""Normalisation layers. Batch normalisation uses the stored statistics, however it was exported."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..call import Call
from ..registry import operator
from ..values import Maybe, Output, Value
from .convolution import frozen

_BATCH: dict[int, Any] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
_INSTANCE: dict[int, Any] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def normalise_with(
    x: Tensor, mean: Tensor, variance: Tensor, scale: Tensor, bias: Tensor, epsilon: float
) -> Tensor:
    """Batch normalisation with given statistics."""
    mean, variance, scale, bias = (item.to(x.dtype) for item in (mean, variance, scale, bias))
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)


def normalise_in_training(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch normalisation with the batch's statistics, and the running statistics after it."""
    axes = (0, *range(2, x.dim()))
    now, spread = x.mean(axes), x.var(axes, correction=0)
    y = F.batch_norm(x, now, spread, scale, bias, training=False, eps=epsilon)
    return (
        y,
        mean * momentum + now * (1 - momentum),
        variance * momentum + spread * (1 - momentum),
    )


@operator("BatchNormalization")
def batch_normalization(
    call: Call, x: Value, scale: Value, bias: Value, mean: Value, variance: Value
) -> Output:
    epsilon = call.real("epsilon", 1e-5)
    if call.faithful and call.integer("training_mode"):
        return call.several(
            normalise_in_training,
            x,
            scale,
            bias,
            mean,
            variance,
            epsilon,
            call.real("momentum", 0.9),
            count=len(call.outputs),
        )
    statistics = (scale, bias, mean, variance)
    kind = _BATCH.get(call.rank(x) or 0)
    constants = [item for item in statistics if isinstance(item, Tensor)]
    if kind is None or len(constants) < len(statistics) or call.dtype(x) != constants[0].dtype:
        return [
            call.function(
                normalise_with, x, mean, variance, scale, bias, epsilon, kind="batch_norm"
            )
        ]
    module = kind(len(constants[0]), eps=epsilon, device="meta")
    module.weight, module.bias = frozen(constants[0]), frozen(constants[1])
    module.running_mean, module.running_var = constants[2], constants[3]
    module.num_batches_tracked = torch.tensor(0)
    return [call.module(module, x, kind="batch_norm")]


@operator("InstanceNormalization")
def instance_normalization(call: Call, x: Value, scale: Value, bias: Value) -> Output:
    epsilon = call.real("epsilon", 1e-5)
    kind = _INSTANCE.get(call.rank(x) or 0)
    if kind is None or not isinstance(scale, Tensor) or not isinstance(bias, Tensor):
        return call.function(normalise_instances, x, scale, bias, epsilon, kind="instance_norm")
    module = kind(len(scale), eps=epsilon, affine=True, device="meta")
    module.weight, module.bias = frozen(scale), frozen(bias)
    return call.module(module, x, kind="instance_norm")


def normalise_instances(x: Tensor, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Instance normalisation."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("LayerNormalization")
def layer_normalization(call: Call, x: Value, scale: Value, bias: Maybe = None) -> Output:
    axis, epsilon = call.integer("axis", -1), call.real("epsilon", 1e-5)
    shape = call.shape(x)
    wanted = len([name for name in call.outputs if name])
    if (
        shape is not None
        and isinstance(scale, Tensor)
        and (bias is None or isinstance(bias, Tensor))
        and shape[axis % len(shape) :] == tuple(scale.shape)
        and (bias is None or bias.shape == scale.shape)
        and wanted == 1
    ):
        module = nn.LayerNorm(tuple(scale.shape), epsilon, bias=bias is not None, device="meta")
        module.weight = frozen(scale)
        if bias is not None:
            module.bias = frozen(bias)
        return call.module(module, x, kind="layer_norm")
    return call.several(
        normalise_layer,
        x,
        scale,
        bias,
        axis,
        epsilon,
        call.target_dtype(call.integer("stash_type", 1)),
        count=len(call.outputs),
        kind="layer_norm",
    )


def normalise_layer(
    x: Tensor, scale: Tensor, bias: Tensor | None, axis: int, epsilon: float, stash: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer normalisation from `axis` on, with the mean and the inverse standard deviation."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = x.to(torch.promote_types(x.dtype, stash))
    mean = wide.mean(axes, keepdim=True)
    inverse = ((wide - mean).square().mean(axes, keepdim=True) + epsilon).rsqrt()
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    return y if bias is None else y + bias, mean, inverse


@operator("RMSNormalization")
def rms_normalization(call: Call, x: Value, scale: Value) -> Output:
    return call.function(
        normalise_scale,
        x,
        scale,
        call.integer("axis", -1),
        call.real("epsilon", 1e-5),
        call.target_dtype(call.integer("stash_type", 1)),
        kind="rms_norm",
    )


def normalise_scale(
    x: Tensor, scale: Tensor, axis: int, epsilon: float, stash: torch.dtype
) -> Tensor:
    """Division by the root mean square from `axis` on."""
    axes = tuple(range(axis % x.dim(), x.dim()))
    wide = x.to(torch.promote_types(x.dtype, stash))
    inverse = (wide.square().mean(axes, keepdim=True) + epsilon).rsqrt()
    return (wide * inverse).to(x.dtype) * scale


@operator("GroupNormalization", since=21)
def group_normalization(call: Call, x: Value, scale: Value, bias: Value) -> Output:
    groups, epsilon = call.integer("num_groups", 1), call.real("epsilon", 1e-5)
    if not isinstance(scale, Tensor) or not isinstance(bias, Tensor):
        return call.function(F.group_norm, x, groups, scale, bias, epsilon, kind="group_norm")
    module = nn.GroupNorm(groups, len(scale), epsilon, device="meta")
    module.weight, module.bias = frozen(scale), frozen(bias)
    return call.module(module, x, kind="group_norm")


@operator("GroupNormalization", since=18)
def group_normalization_by_group(call: Call, x: Value, scale: Value, bias: Value) -> Output:
    """Opset 18 has one scale and bias per group."""
    shape, groups = call.shape(x), call.integer("num_groups", 1)
    channels = shape[1] if shape is not None else None
    if channels is None:
        return call.function(
            normalise_groups, x, groups, scale, bias, call.real("epsilon", 1e-5), kind="group_norm"
        )
    scale, bias = (
        call.function(torch.repeat_interleave, item, channels // groups, kind="expand")
        for item in (scale, bias)
    )
    return group_normalization(call, x, scale, bias)


def normalise_groups(x: Tensor, groups: int, scale: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Group normalisation with one scale and bias per group."""
    width = x.shape[1] // groups
    return F.group_norm(
        x, groups, scale.repeat_interleave(width), bias.repeat_interleave(width), epsilon
    )


@operator("LRN")
def local_response(call: Call, x: Value) -> Output:
    size = call.integer("size", 1)
    arguments = (size, call.real("alpha", 1e-4), call.real("beta", 0.75), call.real("bias", 1.0))
    if size % 2 and (call.rank(x) or 0) > 2:
        return call.module(nn.LocalResponseNorm(*arguments), x, kind="local_response_norm")
    return call.function(normalise_response, x, *arguments, kind="local_response_norm")


def normalise_response(x: Tensor, size: int, alpha: float, beta: float, bias: float) -> Tensor:
    """Division by a power of the sum of squares over `size` neighbouring channels."""
    squares = x.square().movedim(1, -1)
    sums = F.pad(squares, ((size - 1) // 2, size // 2)).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (bias + alpha / size * sums) ** beta


@operator("MeanVarianceNormalization")
def mean_variance(call: Call, x: Value) -> Output:
    return call.function(normalise_variance, x, call.integers("axes") or [0, 2, 3])


def normalise_variance(x: Tensor, axes: list[int]) -> Tensor:
    """Zero mean and unit variance over `axes`."""
    centred = x - x.mean(tuple(axes), keepdim=True)
    deviation = centred.square().mean(tuple(axes), keepdim=True).sqrt()
    return centred / (deviation + 1e-9)


@operator("LpNormalization")
def lp_normalization(call: Call, x: Value) -> Output:
    return call.function(normalise_length, x, call.integer("axis", -1), call.integer("p", 2))


def normalise_length(x: Tensor, axis: int, p: int) -> Tensor:
    """Unit p-norm along an axis; a zero vector stays zero."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)
