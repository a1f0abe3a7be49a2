"""Operators with constant weights that become modules; the weights are the archive's own memory."""

from typing import Any

import torch
from torch import Tensor, nn

from .canonical import Builders, Call, Layer, NotCanonical, expanded
from .values import Value

WEIGHTED_LAYERS = Builders()


def _set(module: nn.Module, **weights: Tensor | None) -> nn.Module:
    for name, tensor in weights.items():
        frozen = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
        setattr(module, name, frozen)
    return module


@WEIGHTED_LAYERS.register("conv1d", "conv2d", "conv3d")
@WEIGHTED_LAYERS.register("_convolution", "_convolution_mode", "convolution")
@WEIGHTED_LAYERS.register("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolution(call: Call) -> Layer:
    weight, bias = call.required("weight"), call.weight("bias")
    axes = weight.dim() - 2
    if axes not in (1, 2, 3):
        raise NotCanonical
    transposed = call.operator.startswith("conv_transpose") or (
        "transposed" in call.items and call.static("transposed")
    )
    groups = call.static("groups")
    padding = call.static("padding")
    options: dict[str, Any] = {
        "kernel_size": tuple(weight.shape[2:]),
        "stride": expanded(call.static("stride"), axes),
        "padding": padding if isinstance(padding, str) else expanded(padding, axes),
        "dilation": expanded(call.static("dilation"), axes),
        "groups": groups,
        "bias": False,
        "device": "meta",
    }
    if transposed:
        kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        options["output_padding"] = expanded(call.static("output_padding"), axes)
        module: nn.Module = kinds[axes - 1](weight.shape[0], weight.shape[1] * groups, **options)
        kind = f"conv_transpose{axes}d"
    else:
        plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        module = plain(weight.shape[1] * groups, weight.shape[0], **options)
        kind = f"conv{axes}d"
    return Layer(_set(module, weight=weight, bias=bias), call.tensor("input"), kind)


def _linear_layer(weight: Tensor, bias: Tensor | None, source: Value) -> Layer:
    """`source @ weight.T + bias`, weight `(out, in)`."""
    if weight.dim() != 2 or source.value.dim() < 1:
        raise NotCanonical
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    return Layer(_set(module, weight=weight, bias=bias), source, "linear")


@WEIGHTED_LAYERS.register("linear")
def _linear(call: Call) -> Layer:
    return _linear_layer(call.required("weight"), call.weight("bias"), call.tensor("input"))


@WEIGHTED_LAYERS.register("addmm")
def _addmm(call: Call) -> Layer:
    weight, bias = call.required("mat2").t(), call.required("self")
    if call.static("beta") != 1 or call.static("alpha") != 1:
        raise NotCanonical
    if bias.numel() != len(weight) or bias.shape[-1:] != weight.shape[:1]:
        raise NotCanonical
    return _linear_layer(weight, bias.reshape(-1), call.tensor("mat1"))


@WEIGHTED_LAYERS.register("matmul", "mm")
def _matmul(call: Call) -> Layer:
    weight = call.required("other" if call.operator == "matmul" else "mat2")
    if weight.dim() != 2:
        raise NotCanonical
    return _linear_layer(weight.t(), None, call.tensor("self"))


@WEIGHTED_LAYERS.register("embedding")
def _embedding(call: Call) -> Layer:
    weight = call.required("weight")
    module = nn.Embedding(weight.shape[0], weight.shape[1], device="meta")
    return Layer(_set(module, weight=weight), call.tensor("indices"), "embedding")


@WEIGHTED_LAYERS.register("index", "index_select")
def _lookup(call: Call) -> Layer:
    """`table[tokens]`: an embedding in other words, unless a token counts from the end."""
    weight = call.required("self")
    given = call.items["indices" if call.operator == "index" else "index"]
    tokens = given[0] if isinstance(given, list) and len(given) == 1 else given
    if call.operator == "index_select" and call.static("dim") not in (0, -2):
        raise NotCanonical
    if not isinstance(tokens, Value) or not tokens.is_tensor or weight.dim() != 2:
        raise NotCanonical
    if tokens.value.dtype not in (torch.int64, torch.int32) or bool((tokens.value < 0).any()):
        raise NotCanonical
    if not weight.is_floating_point():
        raise NotCanonical
    module = nn.Embedding(weight.shape[0], weight.shape[1], device="meta")
    return Layer(_set(module, weight=weight), tokens, "embedding")


# Normalisation


@WEIGHTED_LAYERS.register("batch_norm")
def _batch_norm(call: Call) -> Layer:
    source = call.tensor("input")
    mean, variance = call.weight("running_mean"), call.weight("running_var")
    weight, bias = call.weight("weight"), call.weight("bias")
    axes = max(source.value.dim() - 2, 1)
    if axes > 3:
        raise NotCanonical
    if mean is None or variance is None:
        call.recorder.note("batch_norm keeps no statistics: rows of one batch affect each other")
    elif call.static("training"):
        call.recorder.note("batch_norm was in training; it is served in its inference form")
    module = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1](
        source.value.shape[1],
        eps=call.static("eps"),
        affine=False,
        track_running_stats=mean is not None,
        device="meta",
    )
    module.num_batches_tracked = None
    module.running_mean, module.running_var = mean, variance
    return Layer(_set(module, weight=weight, bias=bias), source, "batch_norm")


@WEIGHTED_LAYERS.register("instance_norm")
def _instance_norm(call: Call) -> Layer:
    source = call.tensor("input")
    axes = source.value.dim() - 2
    if axes not in (1, 2, 3):
        raise NotCanonical
    own = bool(call.static("use_input_stats"))
    module = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[axes - 1](
        source.value.shape[1],
        eps=call.static("eps"),
        affine=False,
        track_running_stats=not own,
        device="meta",
    )
    if not own:
        module.num_batches_tracked = None
        module.running_mean = call.weight("running_mean")
        module.running_var = call.weight("running_var")
    _set(module, weight=call.weight("weight"), bias=call.weight("bias"))
    return Layer(module, source, "instance_norm")


@WEIGHTED_LAYERS.register("layer_norm")
def _layer_norm(call: Call) -> Layer:
    module = nn.LayerNorm(
        call.static("normalized_shape"), eps=call.static("eps"), elementwise_affine=False
    )
    _set(module, weight=call.weight("weight"), bias=call.weight("bias"))
    return Layer(module, call.tensor("input"), "layer_norm")


@WEIGHTED_LAYERS.register("group_norm")
def _group_norm(call: Call) -> Layer:
    source = call.tensor("input")
    module = nn.GroupNorm(
        call.static("num_groups"), source.value.shape[1], eps=call.static("eps"), affine=False
    )
    _set(module, weight=call.weight("weight"), bias=call.weight("bias"))
    return Layer(module, source, "group_norm")
