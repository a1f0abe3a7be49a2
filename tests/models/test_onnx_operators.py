"""Operators, one row of a table each, against onnxruntime; gradients against differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from interpret_server.errors import InvalidModel
from interpret_server.models.lowered import Lowered, Unlowerable
from interpret_server.models.onnx import import_model, runtime, to_module

IMAGE = (2, 3, 7, 6)
_SCALED = {"Resize", "Upsample"}  # their scales are float32 whatever the input is


@dataclass(frozen=True)
class Case:
    """One node with one input `x`, and constants after it.

    Args:
        x: shape of the input.
        constants: stored inputs; None for one that is left out.
        outputs: how many; the first one is compared, or all where they are numbers.
        smooth: whether the gradient is checked.
        positive: the input is drawn from [0.5, 1.5) rather than a normal distribution.
    """

    operator: str
    x: tuple[int, ...] = IMAGE
    attributes: Mapping[str, Any] = field(default_factory=dict)
    constants: Sequence[Any] = ()
    opset: int = 17
    outputs: int = 1
    smooth: bool = True
    positive: bool = False

    def __str__(self) -> str:
        told = [f"{key}={value}" for key, value in self.attributes.items()]
        told += [
            str(value.tolist() if value.size < 7 else list(value.shape))
            for value in map(np.asarray, self.constants)
        ]
        return "-".join([f"{self.operator}:{self.opset}", str(list(self.x)), *told])

    def write(self, path: Path, dtype: type = np.float32) -> None:
        """Save the file, with floating-point values of one data type."""
        number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        inputs, stored = ["x"], []
        for index, value in enumerate(self.constants):
            inputs.append("" if value is None else f"c{index}")
            if value is not None:
                array = np.asarray(value)
                if array.dtype.kind == "f" and self.operator not in _SCALED:
                    array = array.astype(dtype)
                stored.append(numpy_helper.from_array(array, f"c{index}"))
        outputs = [f"y{index}" for index in range(self.outputs)]
        node = helper.make_node(self.operator, inputs, outputs, "node", **self.attributes)
        write(path, [node], self.x, stored, self.opset, outputs, number)


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str | None],
    stored: Sequence[onnx.TensorProto] = (),
    opset: int = 17,
    outputs: Sequence[str] = ("y",),
    dtype: int = TensorProto.FLOAT,
) -> None:
    """Save a graph of one input `x`; the types of its outputs are inferred."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        list(stored),
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=min(10, 4 + opset // 2))
    inferred = {item.name: item for item in onnx.shape_inference.infer_shapes(model).graph.output}
    for item in model.graph.output:
        item.CopyFrom(inferred[item.name])
        if not item.type.tensor_type.HasField("shape"):
            item.CopyFrom(helper.make_tensor_value_info(item.name, dtype, ["?"] * len(shape)))
    path.write_bytes(model.SerializeToString())


def weights(*shape: int) -> np.ndarray:
    """Fixed numbers between -1 and 1."""
    return np.sin(np.arange(math.prod(shape)) * 1.7 + 0.3).reshape(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def real(value: float) -> np.ndarray:
    return np.array(value, np.float32)


SLOPES = ((1,), (3, 1, 1), (6,), (7, 6), (1, 3, 1, 1))
SAMPLES = ((4, 3), (4, 3, 5), IMAGE, (2, 3, 2, 3, 2))
TYPES = (TensorProto.INT64, TensorProto.BOOL)
W, TRANSPOSED, KERNEL = weights(4, 3, 3, 3), weights(3, 2, 3, 3), {"kernel_shape": [3, 2]}
STATISTICS = (weights(3), weights(3), weights(3), np.abs(weights(3)) + 0.5)

CASES = [
    *(
        Case("Conv", x, attributes, (W,))
        for x in (IMAGE, (1, 3, 8, 9))
        for attributes in (
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
            {"auto_pad": "VALID"},
            {"pads": [0, 1, 2, 0]},
            {"pads": [1, 1, 1, 1], "strides": [2, 1]},
        )
    ),
    Case("Conv", IMAGE, {"group": 3, "pads": [2] * 4, "dilations": [2, 2]}, (weights(6, 1, 3, 3),)),
    Case("Conv", (2, 3, 9), {"pads": [2, 1]}, (weights(4, 3, 4), weights(4))),
    Case("Conv", (1, 2, 4, 5, 3), {"pads": [1] * 6}, (weights(2, 2, 3, 3, 3), weights(2))),
    *(
        Case("ConvTranspose", IMAGE, {"strides": [2, 2], **attributes}, (TRANSPOSED, weights(2)))
        for attributes in (
            {"output_padding": [1, 0]},
            {"pads": [0, 1, 2, 0]},
            {"pads": [1, 1, 1, 1]},
            {"auto_pad": "SAME_UPPER"},
            {"auto_pad": "SAME_LOWER"},
            {"output_shape": [14, 13]},
        )
    ),
    Case("ConvTranspose", (2, 4, 5), {"group": 2, "dilations": [2]}, (weights(4, 1, 3),)),
    *(
        Case(operator, IMAGE, {**KERNEL, **attributes})
        for operator in ("MaxPool", "AveragePool")
        for attributes in (
            {},
            {"strides": [2, 2], "ceil_mode": 1},
            {"strides": [3, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
            {"strides": [2, 2], "pads": [0, 0, 1, 1]},
            {"strides": [2, 2], "pads": [1, 0, 2, 1], "ceil_mode": 1},
            {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
            {"strides": [3, 2], "auto_pad": "SAME_LOWER"},
            {"auto_pad": "VALID"},
        )
    ),
    *(
        Case("AveragePool", IMAGE, {**KERNEL, "count_include_pad": 1, **attributes})
        for attributes in (
            {"pads": [1, 1, 1, 1]},
            {"pads": [2, 0, 0, 1], "strides": [2, 2]},
            {"pads": [1, 0, 1, 0], "strides": [2, 2]},
        )
    ),
    Case("AveragePool", IMAGE, {**KERNEL, "dilations": [2, 2]}, opset=19),
    Case("AveragePool", (2, 3, 9), {"kernel_shape": [4], "strides": [3]}),
    Case("MaxPool", IMAGE, {**KERNEL, "dilations": [2, 3]}),
    Case("MaxPool", IMAGE, {**KERNEL, "pads": [1, 0, 1, 1]}, outputs=2),
    Case("MaxPool", IMAGE, {**KERNEL, "storage_order": 1}, outputs=2),
    Case("MaxPool", (1, 2, 5, 4, 5), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    Case("LpPool", IMAGE, {**KERNEL, "p": 3, "pads": [1, 1, 0, 0]}, opset=18, positive=True),
    *(Case(name, x) for name in ("GlobalAveragePool", "GlobalMaxPool") for x in (IMAGE, (2, 3, 5))),
    Case("GlobalLpPool", IMAGE, {"p": 2}),
    # Before opset 13, softmax flattens everything from its axis on.
    *(
        Case(operator, x, attributes, opset=opset)
        for operator in ("Softmax", "LogSoftmax")
        for opset, x, attributes in (
            (7, IMAGE, {}),
            (11, IMAGE, {"axis": 2}),
            (11, (2, 3, 4), {"axis": 0}),
            (11, (2, 5, 1, 1), {"axis": 1}),
            (12, IMAGE, {"axis": -1}),
            (13, IMAGE, {"axis": 1}),
            (13, IMAGE, {}),
        )
    ),
    Case("Hardmax", (3, 4, 5), {"axis": 1}, smooth=False),
    Case("Hardmax", (3, 4, 5), {"axis": 1}, opset=11, smooth=False),
    Case("Clip", IMAGE, {"min": 0.0}, opset=6),
    Case("Clip", IMAGE, {"min": -0.3, "max": 0.5}, opset=10),
    Case("Clip", IMAGE, {}, (real(0.0),)),
    Case("Clip", IMAGE, {}, (real(-0.5), real(0.25))),
    Case("Clip", IMAGE, {}, (real(0.0), real(6.0))),
    Case("Clip", IMAGE, {}, (None, real(0.25))),
    Case("Clip", IMAGE, {}, (real(0.5), real(0.5))),
    Case("Clip"),
    Case("Relu"),
    Case("LeakyRelu"),
    Case("LeakyRelu", attributes={"alpha": 0.3}),
    *(Case("PRelu", IMAGE, {}, (weights(*s),)) for s in SLOPES),
    Case("PRelu", (2, 5), {}, (weights(5),)),
    Case("Elu", attributes={"alpha": 0.7}),
    Case("Selu"),
    Case("Selu", attributes={"alpha": 1.1, "gamma": 2.0}),
    Case("Celu", attributes={"alpha": 1.3}),
    *(Case("Gelu", IMAGE, {"approximate": how}, opset=20) for how in ("none", "tanh")),
    *(Case(name) for name in ("Sigmoid", "Tanh", "Softplus", "Softsign", "HardSwish")),
    *(Case(name) for name in ("Erf", "Exp")),
    Case("HardSigmoid"),
    Case("HardSigmoid", attributes={"alpha": 1 / 6, "beta": 0.5}),
    Case("ThresholdedRelu", attributes={"alpha": 0.4}),
    Case("Shrink", attributes={"lambd": 0.4, "bias": 0.1}),
    Case("Mish", opset=18),
    *(Case(name, positive=True) for name in ("Log", "Sqrt", "Reciprocal")),
    *(Case(name) for name in ("Abs", "Neg", "Sin", "Cos", "Tan", "Sinh", "Atan", "Asinh")),
    *(Case(name, smooth=False) for name in ("Floor", "Ceil", "Round", "Sign", "IsNaN", "IsInf")),
    Case("Identity"),
    Case("Dropout", opset=7, smooth=False),
    *(Case("BatchNormalization", x, {}, STATISTICS) for x in SAMPLES),
    Case("BatchNormalization", IMAGE, {"epsilon": 0.1}, STATISTICS, opset=9),
    *(Case("InstanceNormalization", x, {}, STATISTICS[:2]) for x in (IMAGE, (2, 3, 5))),
    Case("LayerNormalization", (2, 5, 6), {}, (weights(6), weights(6))),
    Case("LayerNormalization", (2, 5, 6), {"axis": 1, "epsilon": 0.01}, (weights(5, 6),)),
    Case("LayerNormalization", (2, 5, 6), {"axis": 1}, (weights(6),), smooth=False),
    Case("GroupNormalization", (2, 6, 4), {"num_groups": 3}, (weights(6), weights(6)), opset=21),
    Case("LRN", IMAGE, {"size": 3, "alpha": 0.5}),
    Case("LpNormalization", IMAGE, {"axis": 1}),
    Case("Gemm", (4, 5), {}, (weights(5, 3), weights(3))),
    Case("Gemm", (4, 5), {"transB": 1, "alpha": 0.5, "beta": 2.0}, (weights(3, 5), weights(1, 3))),
    Case("Gemm", (5, 4), {"transA": 1}, (weights(5, 3), real(0.5))),
    Case("Gemm", (4, 5), {}, (weights(5, 3), weights(4, 3))),
    Case("Gemm", (4, 5), {}, (weights(5, 3), weights(4, 1))),
    Case("Gemm", (4, 5), {"beta": 0.5}, (weights(5, 3),)),
    Case("MatMul", (2, 4, 5), {}, (weights(5, 3),)),
    Case("MatMul", (2, 4, 5), {}, (weights(2, 5, 3),)),
    Case("MatMul", (5,), {}, (weights(5, 3),)),
    Case("Einsum", (2, 4, 5), {"equation": "b i j, j k -> b k i"}, (weights(5, 3),)),
    *(
        Case("Resize", IMAGE, attributes, (None, np.array(scales, np.float32)))
        for scales in ((1, 1, 2, 1.5), (1, 1, 0.6, 0.8))
        for attributes in (
            {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
            {"mode": "linear"},
            {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
            {"mode": "cubic"},
            {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
        )
    ),
    Case("Resize", IMAGE, {"mode": "linear"}, (None, None, ints(2, 3, 9, 4))),
    Case(
        "Resize",
        IMAGE,
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        (None, None, ints(2, 3, 4, 11)),
    ),
    Case("Resize", IMAGE, {"mode": "linear"}, (np.array([1, 1, 2, 2], np.float32),), opset=10),
    Case("Upsample", IMAGE, {"mode": "nearest"}, (np.array([1, 1, 2, 3], np.float32),), opset=9),
    Case("Upsample", IMAGE, {"mode": "linear", "scales": [1.0, 1.0, 2.0, 2.0]}, opset=7),
    Case("Slice", IMAGE, {"starts": [1, 0], "ends": [2**31 - 1, -2], "axes": [2, 3]}, opset=9),
    Case("Slice", IMAGE, {}, (ints(-1), ints(-100), ints(2), ints(-1))),
    Case("Slice", IMAGE, {}, (ints(5, -1), ints(0, 1), ints(2, -1), ints(-2, -3))),
    Case("Slice", IMAGE, {}, (ints(0, 1, 1), ints(9, 9, 2**62))),
    Case("Slice", IMAGE, {}, (ints(1, 0), ints(6, 5), ints(-2, 3), ints(2, 3))),
    Case("Slice", IMAGE, {}, (ints(5), ints(2), ints(2))),
    Case("Split", (2, 9), {"axis": 1}, outputs=3),
    Case("Split", (2, 9), {"axis": -1}, (ints(2, 3, 4),), outputs=3),
    Case("Split", (2, 9), {"axis": 1, "split": [4, 5]}, opset=11, outputs=2),
    Case("Split", (2, 10), {"axis": 1, "num_outputs": 4}, opset=18, outputs=4),
    Case("Gather", IMAGE, {"axis": 1}, (ints(0, -1),)),
    Case("Gather", IMAGE, {"axis": 2}, (np.array([[0, 1], [2, -3]], np.int64),)),
    Case("Gather", IMAGE, {"axis": -1}, (np.array(-2, np.int64),)),
    Case("GatherElements", (3, 4), {"axis": 1}, (np.array([[0, -1], [1, 2], [3, 3]], np.int64),)),
    Case("GatherND", (3, 4, 2), {}, (np.array([[0, 1], [-1, 3]], np.int64),)),
    Case("ScatterElements", (3, 4), {"axis": 1}, (np.array([[1], [-1]], np.int64), weights(2, 1))),
    Case("ScatterND", (4, 3), {}, (np.array([[1], [3]], np.int64), weights(2, 3))),
    Case("Pad", IMAGE, {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "value": 0.5}, opset=2),
    Case("Pad", IMAGE, {}, (ints(0, 1, 0, 2, 0, 0, 1, 0), real(-1.5))),
    Case("Pad", IMAGE, {}, (ints(0, 0, -1, 2, 0, 0, 0, -2),)),
    Case("Pad", IMAGE, {"mode": "reflect"}, (ints(0, 0, 2, 3, 0, 0, 1, 4),)),
    Case("Pad", IMAGE, {"mode": "edge"}, (ints(0, 0, 2, 3, 0, 1, 1, 4),)),
    Case("Pad", IMAGE, {}, (ints(1, 2), real(0.5), ints(-1)), opset=18),
    Case("Squeeze", (2, 1, 3, 1)),
    Case("Squeeze", (2, 1, 3, 1), {"axes": [1]}, opset=11),
    Case("Squeeze", (2, 1, 3, 1), {}, (ints(-1),)),
    Case("Unsqueeze", (2, 3), {"axes": [0, 3]}, opset=11),
    Case("Unsqueeze", (2, 3), {}, (ints(-1, 1),)),
    Case("Transpose", (2, 3, 4)),
    Case("Transpose", IMAGE, {"perm": [0, 2, 3, 1]}),
    *(Case("Flatten", IMAGE, {"axis": axis}) for axis in (0, 1, 2, 4, -1)),
    Case("Flatten"),
    Case("Reshape", IMAGE, {}, (ints(0, -1, 6),)),
    Case("Reshape", IMAGE, {}, (ints(2, 126),)),
    Case("Expand", (2, 1, 3), {}, (ints(4, 1, 5, 1),)),
    Case("Tile", (2, 3), {}, (ints(2, 3),)),
    Case("Concat", (2, 3), {"axis": -1}, (weights(2, 4),)),
    *(Case("DepthToSpace", (2, 8, 2, 3), {"blocksize": 2, "mode": m}) for m in ("DCR", "CRD")),
    Case("SpaceToDepth", (2, 2, 4, 6), {"blocksize": 2}),
    Case("Trilu", (2, 4, 5), {"upper": 0}, (np.array(1, np.int64),)),
    *(
        Case(name, IMAGE, {"axes": [1, -1], "keepdims": 0}, opset=13, positive=True)
        for name in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1")
    ),
    *(
        Case(name, IMAGE, {}, opset=13, positive=True)
        for name in ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare", "ReduceSum")
    ),
    Case("ReduceSum", IMAGE, {"keepdims": 0}, (ints(2, 3),)),
    Case("ReduceSum", IMAGE, {"noop_with_empty_axes": 1}),
    Case("ReduceMean", IMAGE, {}, (ints(-1),), opset=18),
    *(Case(name, IMAGE, {"axis": 1}, smooth=False) for name in ("ArgMax", "ArgMin")),
    Case("ArgMax", IMAGE, {"axis": -1, "keepdims": 0, "select_last_index": 1}, smooth=False),
    Case("TopK", (3, 6), {"largest": 0}, (ints(2),), outputs=2),
    Case("TopK", (6, 3), {"axis": 0}, (ints(4),), outputs=2),
    Case("CumSum", (3, 4), {"exclusive": 1, "reverse": 1}, (np.array(1, np.int64),)),
    *(Case(name, (2, 3), {}, (weights(4, 1, 3),)) for name in ("Add", "Sub", "Mul", "Div")),
    *(Case(name, (2, 3), {}, (weights(4, 1, 3),)) for name in ("Max", "Min")),
    Case("Pow", (2, 3), {}, (real(2.5),), positive=True),
    Case("Mod", (2, 3), {"fmod": 1}, (weights(3),), smooth=False),
    *(Case(name, (2, 3), {}, (weights(2, 3), weights(3))) for name in ("Sum", "Mean", "Max")),
    *(
        Case(name, (2, 3), {}, (weights(3),), smooth=False)
        for name in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    ),
    *(Case("Cast", (2, 3), {"to": to}, smooth=False) for to in TYPES),
    Case("Cast", (2, 3), {"to": TensorProto.DOUBLE}),
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def draw(case: Case, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    if case.positive:
        return torch.rand(case.x, dtype=dtype) + 0.5
    return torch.randn(case.x, dtype=dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_agrees_with_onnxruntime(case, path):
    case.write(path)
    x = draw(case)
    reference = runtime(path).run(x)
    for ours, expected in zip(to_module(path)(x), reference, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-6)


NOT_IN_RUNTIME = [
    Case("Conv", IMAGE, {"auto_pad": "SAME_UPPER", "dilations": [2, 1]}, (W,)),
    Case("OneHot", (2, 3), {"axis": 1}, (np.array(4), weights(2))),
    Case("Acosh", positive=True),
]


@pytest.mark.parametrize("case", NOT_IN_RUNTIME, ids=str)
def test_operator_that_the_runtime_lacks_agrees_with_the_reference(case, path):
    case.write(path)
    x = draw(case) + 1 if case.positive else draw(case).round()
    expected = ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})
    for ours, value in zip(to_module(path)(x), expected, strict=True):
        torch.testing.assert_close(ours, torch.tensor(value), rtol=2e-5, atol=2e-6)


def test_response_over_an_even_number_of_channels_reaches_further_up(path):
    Case("LRN", (2, 6, 3, 3), {"size": 4, "alpha": 0.5, "beta": 0.75, "bias": 2.0}).write(path)
    x = torch.randn(2, 6, 3, 3)
    (y,) = to_module(path)(x)
    for channel in range(6):
        squares = x[:, max(channel - 1, 0) : channel + 3].square().sum(1)
        expected = x[:, channel] / (2.0 + 0.5 / 4 * squares) ** 0.75
        torch.testing.assert_close(y[:, channel], expected)


def test_broadcasting_before_opset_7_aligns_at_an_axis(path):
    Case("Add", IMAGE, {"broadcast": 1, "axis": 1}, (weights(3),), opset=6).write(path)
    x = torch.randn(IMAGE)
    (y,) = to_module(path)(x)
    assert torch.equal(y, x + torch.tensor(weights(3)).reshape(3, 1, 1))


@pytest.mark.parametrize("case", [case for case in CASES if case.smooth], ids=str)
def test_gradient_agrees_with_differences(case, path):
    case.write(path, np.float64)
    module, x = to_module(path), draw(case, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: [y for y in module(x) if y.is_floating_point()], (x,), fast_mode=True
    )


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), outputs, **attributes)


def store(**values: Any) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]


def operators(lowered: Lowered) -> set[str]:
    graph = lowered.graph.graph
    return {getattr(n.target, "__name__", "") for n in graph.nodes if n.op == "call_function"}


def test_shape_arithmetic_follows_the_batch_without_waiting_for_the_device(path):
    write(
        path,
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape zero", "rows"),
            node("Mul", "rows two", "double"),
            node("Unsqueeze", "double axis", "first"),
            node("Concat", "first rest", "sizes", axis=0),
            node("Reshape", "x sizes", "y"),
        ],
        ["n", 4, 3],
        store(zero=np.int64(0), two=np.int64(2), axis=ints(0), rest=ints(2, -1)),
    )
    lowered = import_model(path)
    for rows in (1, 2, 5):
        assert lowered.graph(torch.zeros(rows, 4, 3)).shape == (2 * rows, 2, 3)
    assert "to_numbers" not in operators(lowered)


def test_sizes_that_do_not_depend_on_the_batch_become_literals(path):
    write(
        path,
        [
            node("Shape", "x", "shape"),
            node("Slice", "shape one three axis", "inner"),
            node("ReduceProd", "inner", "count", keepdims=1),
            node("Concat", "minus count", "sizes", axis=0),
            node("Reshape", "x sizes", "y"),
        ],
        ["n", 4, 3],
        store(one=ints(1), three=ints(3), axis=ints(0), minus=ints(-1)),
    )
    lowered = import_model(path)
    assert lowered.graph(torch.zeros(5, 4, 3)).shape == (5, 12)
    assert operators(lowered) == {"reshape"}


def test_values_made_in_the_shape_of_the_input_follow_its_batch_size(path):
    write(
        path,
        [
            node("Shape", "x", "shape"),
            node("ConstantOfShape", "shape", "ones", value=store(one=np.ones(1, np.float32))[0]),
            node("Gather", "shape zero", "rows"),
            node("Range", "zero rows step", "count"),
            node("Cast", "count", "number", to=TensorProto.FLOAT),
            node("Unsqueeze", "number axis", "column"),
            node("Add", "ones column", "sum"),
            node("Mul", "sum x", "y"),
        ],
        ["n", 3],
        store(zero=np.int64(0), step=np.int64(1), axis=ints(1)),
    )
    graph = import_model(path).graph
    for rows in (1, 4):
        expected = (1 + torch.arange(float(rows)))[:, None].expand(rows, 3)
        assert torch.equal(graph(torch.ones(rows, 3)), expected)


def branches(path: Path, condition: Sequence[onnx.NodeProto], **stored: Any) -> None:
    def branch(operator: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
        return helper.make_graph([node(operator, "x", "z")], operator, [], [output])

    choice = node("If", "condition", "y", then_branch=branch("Relu"), else_branch=branch("Neg"))
    write(path, [*condition, choice], ["n", 3], store(**stored))


def test_a_branch_decided_by_shapes_is_inlined(path):
    branches(
        path,
        [
            node("Shape", "x", "shape"),
            node("Gather", "shape one", "width"),
            node("Equal", "width three", "condition"),
        ],
        one=np.int64(1),
        three=np.int64(3),
    )
    lowered = import_model(path)
    assert torch.equal(lowered.graph(torch.tensor([[-1.0, 0, 2]])), torch.tensor([[0.0, 0, 2]]))


def test_a_branch_decided_by_values_is_refused_by_name(path):
    branches(
        path,
        [node("ReduceSum", "x", "sum", keepdims=0), node("Greater", "sum zero", "condition")],
        zero=real(0),
    )
    with pytest.raises(Unlowerable, match="If"):
        import_model(path)


def test_a_product_and_a_sum_with_constants_are_one_linear_layer(path):
    write(
        path,
        [node("MatMul", "x w", "product"), node("Add", "b product", "y")],
        ["n", 3],
        store(w=weights(3, 2), b=weights(2)),
    )
    lowered = import_model(path)
    (linear,) = (m for m in lowered.graph.modules() if isinstance(m, nn.Linear))
    assert linear.bias is not None
    assert list(lowered.layers) == ["y"]
    x = torch.randn(4, 3)
    expected = x @ torch.tensor(weights(3, 2)) + torch.tensor(weights(2))
    torch.testing.assert_close(lowered.graph(x), expected)


def test_a_product_that_is_used_twice_keeps_its_own_value(path):
    write(
        path,
        [
            node("MatMul", "x w", "product"),
            node("Relu", "product", "positive"),
            node("Add", "product b", "sum"),
            node("Mul", "positive sum", "y"),
        ],
        ["n", 3],
        store(w=weights(3, 2), b=weights(2)),
    )
    lowered = import_model(path)
    assert {"product", "positive", "sum", "y"} == set(lowered.layers)
    x = torch.randn(4, 3)
    product = x @ torch.tensor(weights(3, 2))
    expected = product.relu() * (product + torch.tensor(weights(2)))
    torch.testing.assert_close(lowered.graph(x), expected)


@pytest.mark.parametrize(
    ("bounds", "kind"), [((0.0, None), nn.ReLU), ((0.0, 6.0), nn.ReLU6), ((-1.0, 1.0), nn.Hardtanh)]
)
def test_clip_with_constant_bounds_is_an_activation_module(bounds, kind, path):
    Case("Clip", constants=[None if b is None else real(b) for b in bounds]).write(path)
    assert [type(module) for module in import_model(path).graph.children()] == [kind]


def test_an_operator_known_only_by_its_standard_body_is_expanded(path):
    write(
        path,
        [node("NegativeLogLikelihoodLoss", "x t", "y", reduction="none")],
        [3, 4],
        store(t=ints(0, 2, 1)),
    )
    x = torch.randn(3, 4)
    torch.testing.assert_close(to_module(path)(x)[0], -x[torch.arange(3), torch.tensor([0, 2, 1])])


def test_a_function_of_the_files_own_is_expanded(path):
    body = helper.make_function(
        "own",
        "Twice",
        ["a"],
        ["b"],
        [
            helper.make_node("Add", ["a", "a"], ["sum"]),
            onnx.parser.parse_node("b = LeakyRelu <alpha: float = @slope> (sum)"),
        ],
        [helper.make_opsetid("", 17)],
        ["slope"],
    )
    graph = helper.make_graph(
        [helper.make_node("Twice", ["x"], ["y"], domain="own", slope=0.5)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=8)
    path.write_bytes(model.SerializeToString())
    y = import_model(path).graph(torch.tensor([[-1.0, 3.0]]))
    assert torch.equal(y, torch.tensor([[-1.0, 6.0]]))


def test_an_unknown_operator_is_named_with_its_domain_and_opset(path):
    graph = helper.make_graph(
        [helper.make_node("Mystery", ["x"], ["y"], domain="elsewhere")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("elsewhere", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(Unlowerable, match=r"Mystery \(domain elsewhere, opset 3\)"):
        import_model(path)


BOMBS = {
    "ConstantOfShape": ([node("ConstantOfShape", "s", "c")], {"s": ints(2**40)}),
    "Range": ([node("Range", "a b d", "c")], {"a": real(0), "b": real(1e12), "d": real(1)}),
    "Expand": ([node("Expand", "v s", "c")], {"v": real(1), "s": ints(2**20, 2**20)}),
    "Tile": ([node("Tile", "v s", "c")], {"v": weights(4), "s": ints(2**40)}),
    "Pad": ([node("Pad", "v s", "c")], {"v": weights(4), "s": ints(2**39, 2**39)}),
    "Resize": (
        [node("Resize", "v r s", "c")],
        {"v": weights(4), "r": np.zeros(0, np.float32), "s": np.array([1e12], np.float32)},
    ),
    "Conv": (
        [node("Conv", "v w", "c", pads=[2**40, 2**40])],
        {"v": weights(1, 1, 4), "w": weights(1, 1, 1)},
    ),
    "doubling": (
        [node("ConstantOfShape", "s", "c0")]
        + [node("Concat", f"c{i} c{i}", f"c{i + 1}", axis=0) for i in range(40)]
        + [node("Identity", "c40", "c")],
        {"s": ints(2**20)},
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_constant_too_large_to_compute_is_refused(name, path):
    nodes, stored = BOMBS[name]
    nodes = [*nodes, node("ReduceSum", "c", "total", keepdims=0), node("Add", "x total", "y")]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        store(**stored),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    assert path.stat().st_size < 5000
    with pytest.raises(InvalidModel, match="constant"):
        import_model(path)
