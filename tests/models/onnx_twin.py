"""The gradient of an official case, in float64, against central differences."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, numpy_helper
from onnx.defs import OpSchema
from onnx_official import Case
from torch import Tensor, nn

from interpret_server.models.onnx import to_module

_SINGLE, _DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_TYPE_ATTRIBUTES = ("to", "dtype", "stash_type", "softmax_precision", "output_dtype")
_STASHING = ("LayerNormalization", "RMSNormalization", "GroupNormalization")
_STEPS, _TOLERANCE = (1e-6, 1e-8, 1e-4), 1e-4  # a large network has corners within the first
_ROUNDING = 1e-7
_HUGE = 1e4  # at which a step would be rounded away
# Inputs that only have a float type: sizes, scales of a grid, bounds that a schema does not mark.
_SETTINGS = {
    "BatchNormalization": (3, 4),
    "Resize": (1, 2),
    "Upsample": (1,),
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
    "QLinearConv": (1, 4, 6),
    "QLinearMatMul": (1, 4, 6),
    "Range": (0, 1, 2),
    "OneHot": (1, 2),
    "Dropout": (1,),
    "Pad": (2,),
}


def compare_gradient(case: Case, inputs: Sequence[Tensor]) -> str:
    """`checked`, `zero` where it rightly is, `none` where there is none, or what is wrong."""
    chosen = _differentiable(case, inputs)
    if not chosen:
        return "none"
    objective = _Objective(_module(case))
    amount = 1.0 if case.suite == "light" else 1e-3
    point = next(filter(objective.is_smooth, _points(inputs, chosen, amount)), None)
    if point is None:
        return "none"
    direction = {index: _noise(point[index], index + 100) for index in chosen}
    leaves = {index: point[index].clone().requires_grad_() for index in chosen}
    total = objective([leaves.get(index, x) for index, x in enumerate(point)])
    gradients: Sequence[Tensor | None] = [None] * len(leaves)
    if total.requires_grad:
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    ours = sum(
        float((gradient * direction[index]).sum())
        for index, gradient in zip(leaves, gradients, strict=True)
        if gradient is not None
    )
    slope = 0.0
    for step in _STEPS:
        slope = objective.slope(point, direction, step)
        allowed = _TOLERANCE * abs(slope) + _ROUNDING * (1 + abs(float(total.detach())))
        if abs(slope - ours) <= allowed:
            return "checked" if any(g is not None and g.any() for g in gradients) else "zero"
    return f"{ours:.6g} rather than {slope:.6g}"


def _module(case: Case) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        whole = case.suite == "light"  # whose files make their weights themselves
        onnx.save(case.model if whole else to_double(case.model), path)
        module = to_module(path)
    return _drawn(module.double()) if whole else module


def _drawn(module: nn.Module) -> nn.Module:
    """Random weights in the place of constant ones, which make all classes alike."""
    generator = torch.Generator().manual_seed(0)
    for weight in filter(Tensor.is_floating_point, (*module.parameters(), *module.buffers())):
        if weight.numel() == max(weight.shape, default=1):
            weight.uniform_(0.5, 1.5, generator=generator)
        else:
            weight.normal_(std=(1 / weight[0].numel()) ** 0.5, generator=generator)
    return module


def _points(
    inputs: Sequence[Tensor], chosen: Sequence[int], amount: float
) -> Iterator[list[Tensor]]:
    """Points near the case's own, off ties and corners; then some that suit roots and powers."""
    point = [x.double() if x.is_floating_point() else x for x in inputs]
    for index in chosen:
        noise = _noise(point[index], index)
        huge = point[index].abs() > _HUGE
        point[index] = torch.where(
            huge & point[index].isfinite(), noise, point[index] + amount * noise
        )
    yield point
    yield [x.abs() + 0.1 if index in chosen else x for index, x in enumerate(point)]
    yield [x.abs() + 1.1 if index in chosen else x for index, x in enumerate(point)]


def _noise(x: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64)


class _Objective:
    """A random weighted sum of a module's floating-point outputs."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        outputs = [y.double() for y in self.module(*values) if y.is_floating_point()]
        parts = [(y * _noise(y, seed)).sum() for seed, y in enumerate(outputs)]
        return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)

    def is_smooth(self, point: Sequence[Tensor]) -> bool:
        """Whether all outputs are finite."""
        with torch.no_grad():
            return bool(self(point).isfinite())

    def slope(self, point: Sequence[Tensor], direction: dict[int, Tensor], step: float) -> float:
        """The central difference along a direction."""
        ends = [
            [x + sign * step * direction[i] if i in direction else x for i, x in enumerate(point)]
            for sign in (1, -1)
        ]
        with torch.no_grad():
            first, second = (float(self(end)) for end in ends)
        return (first - second) / (2 * step)


def _differentiable(case: Case, inputs: Sequence[Tensor]) -> list[int]:
    names = case.names
    settings = {
        node.input[place]
        for node in case.model.graph.node
        for place in _settings(node, case.opset)
        if place < len(node.input)
    }
    return [
        index
        for index, x in enumerate(inputs)
        if x.is_floating_point()
        and x.numel()
        and x.dim()
        and index < len(names)
        and names[index] not in settings
    ]


def _settings(node: Any, opset: int) -> list[int]:
    places = list(_SETTINGS.get(node.op_type, ()))
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return places
    none = OpSchema.DifferentiationCategory.NonDifferentiable
    return places + [
        place for place, item in enumerate(schema.inputs) if item.differentiation_category == none
    ]


def to_double(model: ModelProto) -> ModelProto:
    """The same graph with every floating-point value in float64."""
    twin = ModelProto()
    twin.CopyFrom(model)
    _graph(twin.graph)
    return twin


def _graph(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _tensor(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        if kind.elem_type in _FLOATS:
            kind.elem_type = _DOUBLE
    for node in graph.node:
        named = {item.name: item for item in node.attribute}
        if node.op_type in _STASHING and "stash_type" not in named:
            node.attribute.append(onnx.helper.make_attribute("stash_type", _DOUBLE))
        if node.op_type == "ConstantOfShape" and not named:
            zero = numpy_helper.from_array(np.zeros(1))
            node.attribute.append(onnx.helper.make_attribute("value", zero))
        for item in node.attribute:
            if item.type == AttributeProto.TENSOR:
                _tensor(item.t)
            elif item.type == AttributeProto.GRAPH:
                _graph(item.g)
            elif item.name in _TYPE_ATTRIBUTES and item.i in _FLOATS:
                item.i = _DOUBLE
            elif node.op_type == "Constant" and item.name in ("value_float", "value_floats"):
                values = item.f if item.type == AttributeProto.FLOAT else list(item.floats)
                tensor = numpy_helper.from_array(np.asarray(values, np.float64))
                item.CopyFrom(onnx.helper.make_attribute("value", tensor))


def _tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        values = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
