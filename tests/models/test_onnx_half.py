"""Half-precision files: computed in float32 by the graph, and as written by the plain module."""

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_networks import Convolutional, export
from onnx_node import save
from torch import Tensor, nn

from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.onnx import import_model, runtime, to_module

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Convolutional().eval()


def halved(network: nn.Module, path: Path, *, keep_types: bool) -> nn.Module:
    """Save a network in float16; the same network with its weights rounded, in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    export(network, (IMAGES,), path)
    model = onnx.load(path)
    onnx.save(
        convert_float_to_float16(model, keep_io_types=keep_types, min_positive_val=6e-8), path
    )
    return copy.deepcopy(network).half().float()


def as_bfloat16(path: Path) -> None:
    """Turn the floating-point weights, inputs and outputs of a file into bfloat16."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            kind = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(kind), tensor.name))
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.elem_type = TensorProto.BFLOAT16
    del model.graph.value_info[:]
    model.opset_import[0].version = 22
    model.ir_version = 10
    onnx.save(model, path)


def gradient(module: Any, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    return torch.autograd.grad((y * torch.linspace(-1, 1, y.shape[1])).sum(), leaf)[0]


@pytest.mark.parametrize("keep_types", [False, True])
def test_a_float16_file_is_served_in_float32(keep_types, network, tmp_path):
    path = tmp_path / "model.onnx"
    rounded = halved(network, path, keep_types=keep_types)
    loaded = load_classifier("half", path, Manifest(), device=CPU)
    classifier, info = loaded.classifier, loaded.info
    assert any("float16" in note for note in info.notes)
    assert info.verification.reference == "onnxruntime"
    assert classifier.dtype is torch.float32
    assert classifier(IMAGES).dtype is torch.float32
    torch.testing.assert_close(classifier(IMAGES), rounded(IMAGES), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradient(classifier, IMAGES), gradient(rounded, IMAGES), rtol=1e-4, atol=1e-6
    )


def test_a_float16_file_stays_float16_as_a_module(network, tmp_path):
    path = tmp_path / "model.onnx"
    halved(network, path, keep_types=False)
    (y,) = to_module(path)(IMAGES.half())
    (expected,) = runtime(path).run(IMAGES)
    assert y.dtype is expected.dtype is torch.float16
    torch.testing.assert_close(y, expected, rtol=5e-3, atol=5e-3)


def test_a_bfloat16_file_is_served_in_float32(tmp_path):
    path = tmp_path / "model.onnx"
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.randn(4, 6)
    export(network, (x,), path)
    as_bfloat16(path)
    rounded = copy.deepcopy(network).bfloat16().float()
    loaded = load_classifier("half", path, Manifest(), device=CPU)
    assert loaded.info.verification.reference != "none"
    torch.testing.assert_close(loaded.classifier(x), rounded(x))
    torch.testing.assert_close(gradient(loaded.classifier, x), gradient(rounded, x))
    (y,) = to_module(path)(x.bfloat16())
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), rounded(x), rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_casts_to_half_precision_round_in_the_module_alone(kind, tmp_path):
    path = tmp_path / "model.onnx"
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=kind),
        helper.make_node("Exp", ["low"], ["power"]),
        helper.make_node("CastLike", ["power", "x"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in "xy"]
    save(path, nodes, infos[:1], [], infos[1:])
    x = torch.linspace(-1, 1, 20)
    torch.testing.assert_close(import_model(path).graph(x), x.exp(), rtol=1e-6, atol=0)
    dtype = torch.float16 if kind == TensorProto.FLOAT16 else torch.bfloat16
    assert torch.equal(to_module(path)(x)[0], x.to(dtype).exp().float())


def test_half_precision_numbers_that_are_computed_from_constants_are_kept(tmp_path):
    path = tmp_path / "model.onnx"
    shape = numpy_helper.from_array(np.array([3], np.int64), "shape")
    fill = numpy_helper.from_array(np.array([0.1], np.float16), "fill")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["scale"], value=fill),
        helper.make_node("Mul", ["x", "scale"], ["y"]),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, ["rows", 3]) for n in "xy"]
    save(path, nodes, infos[:1], [shape], infos[1:])
    x = torch.randn(4, 3)
    y = import_model(path).graph(x)
    assert y.dtype is torch.float32
    assert torch.equal(y, x * float(np.float16(0.1)))
