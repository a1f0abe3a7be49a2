"""Operators without weights that become modules: activations, dropout, pooling, flattening."""

import torch
from torch import nn

from .canonical import Builders, Call, Layer, NotCanonical, expanded
from .rectifiers import RECTIFIERS
from .values import DTYPES, Value

PLAIN_LAYERS = Builders(RECTIFIERS)

# Activations: operator -> module from the names of the schema's arguments.

_ACTIVATIONS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "relu": (nn.ReLU, ()),
    "relu6": (nn.ReLU6, ()),
    "selu": (nn.SELU, ()),
    "celu": (nn.CELU, ("alpha",)),
    "silu": (nn.SiLU, ()),
    "mish": (nn.Mish, ()),
    "sigmoid": (nn.Sigmoid, ()),
    "tanh": (nn.Tanh, ()),
    "hardswish": (nn.Hardswish, ()),
    "hardsigmoid": (nn.Hardsigmoid, ()),
    "log_sigmoid": (nn.LogSigmoid, ()),
    "leaky_relu": (nn.LeakyReLU, ("negative_slope",)),
    "softplus": (nn.Softplus, ("beta", "threshold")),
    "threshold": (nn.Threshold, ("threshold", "value")),
    "hardshrink": (nn.Hardshrink, ("lambd",)),
    "softshrink": (nn.Softshrink, ("lambd",)),
    "glu": (nn.GLU, ("dim",)),
}


def _activation(call: Call) -> Layer:
    module, arguments = _ACTIVATIONS[call.operator]
    return Layer(
        module(*(call.static(argument) for argument in arguments)),
        call.tensor("self"),
        call.operator,
    )


PLAIN_LAYERS.update(dict.fromkeys(_ACTIVATIONS, _activation))


@PLAIN_LAYERS.register("gelu")
def _gelu(call: Call) -> Layer:
    approximate = call.static("approximate") if "approximate" in call.items else "none"
    return Layer(nn.GELU(approximate), call.tensor("self"), "gelu")


@PLAIN_LAYERS.register("elu")
def _elu(call: Call) -> Layer:
    if call.static("scale") != 1 or call.static("input_scale") != 1:
        raise NotCanonical
    return Layer(nn.ELU(call.static("alpha")), call.tensor("self"), "elu")


@PLAIN_LAYERS.register("hardtanh")
def _hardtanh(call: Call) -> Layer:
    limits = call.static("min_val"), call.static("max_val")
    if limits == (0, 6):
        return Layer(nn.ReLU6(), call.tensor("self"), "relu6")
    return Layer(nn.Hardtanh(*limits), call.tensor("self"), "hardtanh")


@PLAIN_LAYERS.register("prelu")
def _prelu(call: Call) -> Layer:
    weight = call.required("weight")
    module = nn.PReLU(weight.numel(), device="meta")
    module.weight = nn.Parameter(weight.reshape(-1), requires_grad=False)
    return Layer(module, call.tensor("self"), "prelu")


@PLAIN_LAYERS.register("rrelu")
def _rrelu(call: Call) -> Layer:
    if call.static("training"):
        call.recorder.note("rrelu was random in the file; it is served in its inference form")
    return Layer(nn.RReLU(call.static("lower"), call.static("upper")), call.tensor("self"), "rrelu")


@PLAIN_LAYERS.register("softmax", "log_softmax")
def _softmax(call: Call) -> Layer:
    source = call.tensor("self")
    dtype = call.static("dtype") if "dtype" in call.items else None
    if dtype is not None and DTYPES[dtype] is not source.value.dtype:
        result = source.value.to(DTYPES[dtype])
        source = call.recorder.function(
            torch.ops.aten.to.dtype,
            (source, Value(DTYPES[dtype])),
            {},
            result,
            source.origin,
            kind="cast",
        )
    module = nn.Softmax if call.operator == "softmax" else nn.LogSoftmax
    return Layer(module(call.static("dim")), source, call.operator)


@PLAIN_LAYERS.register("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def _dropout(call: Call) -> Layer:
    if call.static("train") and call.static("p"):
        call.recorder.note("dropout was active in the file; it is served in its inference form")
    module = {
        "dropout": nn.Dropout,
        "feature_dropout": nn.Dropout2d,
        "alpha_dropout": nn.AlphaDropout,
        "feature_alpha_dropout": nn.FeatureAlphaDropout,
    }[call.operator]
    return Layer(module(call.static("p")), call.tensor("input"), "dropout")


@PLAIN_LAYERS.register("flatten")
def _flatten(call: Call) -> Layer:
    if "start_dim" not in call.items or "out_dim" in call.items:
        raise NotCanonical
    limits = call.static("start_dim"), call.static("end_dim")
    return Layer(nn.Flatten(*limits), call.tensor("self"), "flatten")


# Pooling


@PLAIN_LAYERS.register("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pool(call: Call) -> Layer:
    axes = int(call.operator[-2])
    kernel = expanded(call.static("kernel_size"), axes)
    module = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1](
        kernel,
        expanded(call.static("stride") or kernel, axes),
        expanded(call.static("padding"), axes),
        expanded(call.static("dilation"), axes),
        ceil_mode=call.static("ceil_mode"),
    )
    return Layer(module, call.tensor("self"), call.operator)


@PLAIN_LAYERS.register("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(call: Call) -> Layer:
    axes = int(call.operator[-2])
    kernel = expanded(call.static("kernel_size"), axes)
    options = {"divisor_override": call.static("divisor_override")} if axes > 1 else {}
    module = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[axes - 1](
        kernel,
        expanded(call.static("stride") or kernel, axes),
        expanded(call.static("padding"), axes),
        call.static("ceil_mode"),
        call.static("count_include_pad"),
        **options,
    )
    return Layer(module, call.tensor("self"), call.operator)


_ADAPTIVE = {
    "avg": (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    "max": (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
}


@PLAIN_LAYERS.register("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
@PLAIN_LAYERS.register("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_pool(call: Call) -> Layer:
    axes, source = int(call.operator[-2]), call.tensor("self")
    sizes = expanded(call.items["output_size"], axes)
    kept = [
        None if call.is_size(size, source, axis) else call.constant(size)
        for axis, size in enumerate(sizes, start=source.value.dim() - axes)
    ]
    module = _ADAPTIVE[call.operator[9:12]][axes - 1](tuple(kept) if axes > 1 else kept[0])
    return Layer(module, source, call.operator)
