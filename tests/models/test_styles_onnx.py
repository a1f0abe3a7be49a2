"""ONNX files in the manner of the frameworks that wrote them over the years."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from styles import Sketch, check, load, run
from torch import Tensor

from interpret_server.models.loading import LoadedModel


def _conv(s: Sketch, x: str, name: str, inner: int, outer: int, size: int, **options: Any) -> str:
    weight = s.weight(f"{name}_w", outer, inner, size, size, scale=1 / size)
    return s.add("Conv", [x, weight], f"{name}_out", label=name, kernel_shape=[size] * 2, **options)


def _norm(s: Sketch, x: str, name: str, channels: int, **options: Any) -> str:
    weights = [s.weight(f"{name}_{part}", channels) for part in ("gamma", "beta", "running_mean")]
    variance = np.abs(s.noise.standard_normal(channels)).astype(np.float32) + 0.5
    weights.append(s.store(f"{name}_running_var", variance))
    return s.add("BatchNormalization", [x, *weights], f"{name}_out", label=name, **options)


def _affine(s: Sketch, x: str, name: str, inner: int, outer: int, **options: Any) -> str:
    weights = [s.weight(f"{name}_w", outer, inner), s.weight(f"{name}_b", outer)]
    return s.add("Gemm", [x, *weights], f"{name}_out", label=name, transB=1, **options)


def cntk() -> Sketch:
    """Batch 1, weights reshaped by nodes, a mask beside dropout, values named after nodes."""
    s = Sketch(8, as_inputs=True)
    x = s.input("Input3", [1, 1, 20, 20])
    x = s.add("Sub", [x, s.store("Constant339", np.float32(127.5))], "Minus340_Output_0")
    x = s.add("Div", [x, s.store("Constant343", np.float32(255))], "Block352_Output_0")
    same = {"auto_pad": "SAME_UPPER", "strides": [1, 1]}
    x = _conv(s, x, "Convolution28", 1, 4, 5, **same)
    x = s.add("Add", [x, s.weight("Parameter6", 4, 1, 1)], "Plus30_Output_0", label="Plus30")
    x = s.add("Relu", [x], "ReLU32_Output_0", label="ReLU32")
    x = s.add("MaxPool", [x], "Pooling66_Output_0", kernel_shape=[3, 3], strides=[2, 2],
              auto_pad="SAME_UPPER", pads=[0, 0, 0, 0])  # fmt: skip
    x = s.add("Dropout", [x], "Dropout75_Output_0", "mask", ratio=0.25)
    x = s.add("Reshape", [x, s.store("to_row", np.array([1, 400]))], "Times212_reshape0")
    s.weight("Parameter193", 4, 10, 10, 6, scale=0.1)
    matrix = ["Parameter193", s.store("to_matrix", np.array([400, 6]))]
    s.add("Reshape", matrix, "Parameter193_reshape1")
    x = s.add("MatMul", [x, "Parameter193_reshape1"], "Times212_Output_0", label="Times212")
    s.add("Add", [x, s.weight("Parameter194", 1, 6)], "Plus214_Output_0", label="Plus214")
    s.output("Plus214_Output_0", [1, 6])
    return s


def mxnet() -> Sketch:
    """Preprocessing by scalars, attributes of old opsets, slopes per channel, a last norm."""
    s = Sketch(8, as_inputs=True)
    x = s.input("data", [1, 3, 16, 16])
    x = s.add("Sub", [x, s.store("scalar1", np.array([127.5], np.float32))], "_minusscalar0")
    x = s.add("Mul", [x, s.store("scalar2", np.array([1 / 64], np.float32))], "_mulscalar0")
    x = _conv(s, x, "conv0_fwd", 3, 8, 3, strides=[2, 2], pads=[1] * 4, dilations=[1, 1], group=1)
    x = _norm(s, x, "batchnorm0_fwd", 8, epsilon=1e-5, momentum=0.9, spatial=1)
    x = s.add("Clip", [x], "relu60_fwd", min=0.0, max=6.0)
    x = _conv(s, x, "dw", 1, 8, 3, strides=[1, 1], pads=[1] * 4, group=8)
    slope = np.abs(s.noise.standard_normal((8, 1, 1))).astype(np.float32)
    x = s.add("PRelu", [x, s.store("relu0_gamma", slope)], "relu0", label="relu0")
    x = s.add("LeakyRelu", [x], "leaky", alpha=0.1)
    x = s.add("Flatten", [x], "flatten0")
    x = _affine(s, s.add("Dropout", [x], "dropout0", ratio=0.4), "pre_fc1", 512, 5)
    x = _norm(s, x, "fc1", 5, epsilon=2e-5, momentum=0.9, spatial=0)
    s.output(x, [1, 5])
    return s


def caffe2(opset: int) -> Sketch:
    """Local response normalisation, uneven pads, `is_test`, softmax over all that follows."""
    s = Sketch(opset, as_inputs=True)
    x = s.input("data_0", [1, 3, 24, 24])
    old = {"is_test": 1} if opset < 7 else {}
    x = _conv(s, x, "conv1_1", 3, 8, 5, strides=[2, 2], pads=[0] * 4)
    x = s.add("Relu", [x], "conv1_2")
    x = s.add("LRN", [x], "norm1_1", alpha=1e-4, beta=0.75, bias=1.0, size=5)
    x = s.add("MaxPool", [x], "pool1_1", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    narrow = s.add("Relu", [_conv(s, x, "fire2/squeeze", 8, 6, 1)], "fire2/squeeze_2")
    wide = s.add("Relu", [_conv(s, x, "fire2/expand", 8, 6, 3, pads=[1] * 4)], "fire2/expand_2")
    axis = {} if opset < 4 else {"axis": 1}
    x = s.add("Concat", [narrow, wide], "fire2/concat_1", **axis)
    x = s.add("Dropout", [x], "fire9/concat_2", "_mask", ratio=0.5, **old)
    x = s.add("GlobalAveragePool", [_conv(s, x, "conv10_1", 12, 7, 1)], "pool10_1")
    s.add("Softmax", [x], "softmaxout_1")
    s.output("softmaxout_1", [1, 7, 1, 1])
    return s


def consumed(opset: int) -> Sketch:
    """Operands aligned at an axis, in-place hints, a shape among the attributes."""
    s = Sketch(opset, as_inputs=True)
    x = s.input("data_0", [1, 3, 8, 8])
    hint = {"consumed_inputs": [0]} if opset < 6 else {}
    hints = {"consumed_inputs": [0, 0, 0, 1, 1]} if opset < 6 else {}
    x = _conv(s, x, "conv1", 3, 6, 3, pads=[1] * 4)
    x = _norm(s, x, "bn1", 6, epsilon=1e-5, is_test=1, **hints)
    x = s.add("Mul", [x, s.weight("scale_w", 6)], "scaled", broadcast=1, axis=1, **hint)
    x = s.add("Add", [x, s.weight("scale_b", 6)], "shifted", broadcast=1, axis=1, **hint)
    x = s.add("PRelu", [x, s.weight("slope", 6, shift=0.3, scale=0.05)], "prelu", **hint)
    x = s.add("AveragePool", [x], "pool", kernel_shape=[8, 8])
    if opset < 5:
        x = s.add("Reshape", [x], "row", shape=[1, -1], **hint)
    else:
        x = s.add("Reshape", [x, s.store("to_row", np.array([1, -1]))], "row")
    s.output(_affine(s, x, "fc", 6, 4, broadcast=1), [1, 4])
    return s


def pytorch() -> Sketch:
    """Numbered values, shapes computed by chains of nodes, attributes where inputs came later."""
    s = Sketch(9, as_inputs=True)
    x = s.input("0", ["N", 3, 12, 12])
    x = _conv(s, x, "11", 3, 4, 3, pads=[1] * 4, dilations=[1, 1], group=1, strides=[1, 1])
    x = s.add("Relu", [_norm(s, x, "12", 4, epsilon=1e-5, momentum=0.9)], "13")
    x = s.add("Pad", [x], "14", mode="reflect", pads=[0, 0, 1, 1, 0, 0, 1, 1])
    x = s.add("Slice", [x], "15", axes=[2, 3], starts=[1, 1], ends=[-1, 2**63 - 1])
    scales = s.add("Constant", [], "16", value=helper.make_tensor("s", 1, [4], [1, 1, 2, 2]))
    x = s.add("Upsample", [x, scales], "17", mode="nearest")
    x = s.add("GlobalAveragePool", [x], "18")
    s.add("Shape", [x], "19")
    s.add("Constant", [], "20", value=helper.make_tensor("i", 7, [], [0]))
    s.add("Gather", ["19", "20"], "21", axis=0)
    s.add("Constant", [], "22", value=helper.make_tensor("m", 7, [], [-1]))
    s.add("Unsqueeze", ["21"], "23", axes=[0])
    s.add("Unsqueeze", ["22"], "24", axes=[0])
    s.add("Concat", ["23", "24"], "25", axis=0)
    x = s.add("Reshape", [x, "25"], "26")
    s.output(_affine(s, x, "27", 4, 5, alpha=1.0, beta=1.0), ["N", 5])
    return s


def tf2onnx() -> Sketch:
    """Channels last around every convolution, long scopes, the winner beside the scores."""
    s = Sketch(13, ir=7)
    scope = "StatefulPartitionedCall/model/"
    x = s.input("input_1:0", ["unk__100", 12, 12, 3])
    x = s.add("Transpose", [x], f"{scope}conv__6:0", perm=[0, 3, 1, 2])
    x = _conv(s, x, f"{scope}conv/Conv2D", 3, 6, 3, pads=[0, 0, 1, 1], strides=[2, 2])
    x = s.add("Relu", [x], f"{scope}relu/Relu:0", label=f"{scope}relu/Relu")
    x = s.add("Transpose", [x], "last", perm=[0, 2, 3, 1])
    x = s.add("Pad", [x, s.store("pads", np.array([0, 0, 0, 0, 0, 1, 1, 0]))], "padded")
    x = _conv(s, s.add("Transpose", [x], "first", perm=[0, 3, 1, 2]), "dw", 1, 6, 3, group=6)
    limits = [s.store("zero", np.float32(0)), s.store("six", np.float32(6))]
    x = s.add("ReduceMean", [s.add("Clip", [x, *limits], "relu6")], "mean", axes=[2, 3], keepdims=1)
    x = s.add("Squeeze", [x, s.store("axes", np.array([2, 3]))], "row")
    x = s.add("MatMul", [x, s.weight("kernel", 6, 4)], "matmul", label=f"{scope}dense/MatMul")
    x = s.add("Add", [x, s.weight("bias", 4)], "sum", label=f"{scope}dense/BiasAdd")
    s.add("Identity", [s.add("Softmax", [x], "softmax", axis=1)], "probs")
    s.add("Cast", [s.add("ArgMax", ["probs"], "ArgMax:0", axis=1, keepdims=0)], "classes", to=6)
    s.output("probs", ["unk__101", 4])
    s.output("classes", ["unk__101"], TensorProto.INT32)
    return s


def paddle() -> Sketch:
    """Weights by Constant nodes, hard swish in parts, a shape cut and joined again."""
    s = Sketch(11, ir=6)

    def constant(name: str, values: Any) -> str:
        return s.add("Constant", [], name, value=numpy_helper.from_array(np.asarray(values)))

    x = s.input("x", [None, 3, 12, 12])
    weight = constant("conv.w_0", s.noise.standard_normal((4, 3, 3, 3)).astype(np.float32))
    x = s.add("Conv", [x, s.add("Identity", [weight], "w")], "conv.tmp_0", strides=[2, 2])
    ends = [constant("hs_0", np.float32(0)), constant("hs_6", np.float32(6))]
    shifted = s.add("Add", [x, constant("hs_3", np.array([3], np.float32))], "hs_a")
    x = s.add("Mul", [x, s.add("Clip", [shifted, *ends], "hs_c")], "hs_m")
    x = s.add("Div", [x, constant("hs_d", np.array([6], np.float32))], "hardswish")
    x = s.add("GlobalAveragePool", [x], "pool")
    s.add("Shape", [x], "shape")
    cuts = [constant(f"cut_{k}", np.array([k])) for k in (0, 1, 4)]
    s.add("Slice", ["shape", cuts[0], cuts[1], cuts[0]], "rows")
    s.add("Slice", ["shape", cuts[1], cuts[2], cuts[0]], "others")
    s.add("ReduceProd", ["others"], "product", keepdims=1)
    x = s.add("Reshape", [x, s.add("Concat", ["rows", "product"], "to", axis=0)], "flat")
    x = s.add("MatMul", [x, constant("fc", s.noise.standard_normal((4, 5)).astype("f"))], "fc.0")
    x = s.add("Add", [x, constant("b", s.noise.standard_normal(5).astype("f"))], "fc.1")
    s.output(s.add("Softmax", [x], "softmax_0.tmp_0", axis=-1), [None, 5])
    return s


def matlab() -> Sketch:
    """A mean image, and weights that an old file does not list among its inputs."""
    s = Sketch(8, ir=3)
    x = s.input("input", ["BatchSize", 1, 10, 10])
    x = s.add("Sub", [x, s.weight("input_Mean", 1, 1, 10, 10)], "input_Sub")
    x = s.add("Flatten", [_conv(s, x, "fc", 1, 4, 10)], "flat", axis=1)
    s.output(s.add("Softmax", [x], "softmax", axis=1), ["BatchSize", 4])
    return s


# How a file is made, the fields of its manifest, and the same network as onnxruntime runs it.
FILES: dict[str, tuple[Callable[[], Sketch], dict[str, Any], Callable[[], Sketch]]] = {
    "cntk": (cntk, {"bounds": [0, 255]}, cntk),
    "mxnet": (mxnet, {"bounds": [0, 255]}, mxnet),
    "caffe2-3": (lambda: caffe2(3), {}, lambda: caffe2(8)),
    "caffe2-6": (lambda: caffe2(6), {}, lambda: caffe2(8)),
    "caffe2-8": (lambda: caffe2(8), {}, lambda: caffe2(8)),
    "pytorch": (pytorch, {}, pytorch),
    "tf2onnx": (tf2onnx, {"bounds": [0, 1]}, tf2onnx),
    "paddle": (paddle, {}, paddle),
    "matlab": (matlab, {}, matlab),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_many_frameworks(name: str, tmp_path: Path) -> None:
    build, manifest, oracle = FILES[name]
    path = build().save(tmp_path / "m.onnx")
    assert load(path).info.form == "graph"
    loaded = load(path, **manifest)
    assert {"gradient", "layers"} <= loaded.info.capabilities
    other = oracle().save(tmp_path / "oracle.onnx")
    low, high = manifest.get("bounds", (-1, 1))
    check(loaded, lambda x: _scores(loaded, other, x), low, high)


def _scores(loaded: LoadedModel, path: Path, x: Tensor) -> Tensor:
    scores = torch.tensor(run(path, x)[0]).flatten(1)
    return scores if loaded.info.logits_from == "logits" else scores.double().log()


@pytest.mark.parametrize("opset", [1, 5, 6])
def test_operands_aligned_at_an_axis(opset: int, tmp_path: Path) -> None:
    """Of which neither executor is a witness: the same network, written in a newer opset."""
    old = load(consumed(opset).save(tmp_path / "old.onnx"))
    s = Sketch(9, ir=4)
    x = s.input("data_0", ["N", 3, 8, 8])
    x = _norm(s, _conv(s, x, "conv1", 3, 6, 3, pads=[1] * 4), "bn1", 6, epsilon=1e-5)
    names = ("scale_w", "scale_b", "slope")
    for kind, name in zip(("Mul", "Add", "PRelu"), names, strict=True):
        weight = s.weight(name, 6, shift=0.3, scale=0.05) if name == "slope" else s.weight(name, 6)
        shaped = s.add("Unsqueeze", [weight], f"{name}_3d", axes=[1, 2])
        x = s.add(kind, [x, shaped], f"{name}_out")
    x = s.add("Flatten", [s.add("GlobalAveragePool", [x], "pool")], "row")
    s.output(_affine(s, x, "fc", 6, 4), ["N", 4])
    path = s.save(tmp_path / "new.onnx")
    check(old, lambda x: _scores(old, path, x))
    assert "rectifiers" in old.info.capabilities


def test_names_of_a_file_are_its_layers(tmp_path: Path) -> None:
    layers = load(cntk().save(tmp_path / "m.onnx")).classifier.layers
    assert [layers[name].kind for name in ("Convolution28", "ReLU32", "Plus214")] == [
        "conv2d", "relu", "linear"
    ]  # fmt: skip
    layers = load(tf2onnx().save(tmp_path / "t.onnx")).classifier.layers
    assert layers["StatefulPartitionedCall/model/relu/Relu"].kind == "relu"
