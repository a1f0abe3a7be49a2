"""Operators as one row of a table each: a node, its input and its constants."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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

NOT_IN_RUNTIME = [
    Case("Conv", IMAGE, {"auto_pad": "SAME_UPPER", "dilations": [2, 1]}, (W,)),
    Case("OneHot", (2, 3), {"axis": 1}, (np.array(4), weights(2))),
    Case("Acosh", positive=True),
]
