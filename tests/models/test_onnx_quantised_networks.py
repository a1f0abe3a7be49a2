"""Whole networks that onnxruntime's quantiser wrote."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_networks import (
    TEXT,
    Calibration,
    Convolutional,
    Encoder,
    embedding_gradient,
    export,
    optimise,
    texts,
)
from onnx_node import Node, save
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
from torch import Tensor, nn

from interpret_server.models.classifier import Capability
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.onnx import import_model, runtime, to_module
from interpret_server.models.recording import first_undifferentiable

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Convolutional().eval()


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "float.onnx"
    export(network, (IMAGES,), path)
    return path


def gradient(module: nn.Module, x: Tensor) -> Tensor | None:
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    if not y.requires_grad:
        return None
    return torch.autograd.grad((y * torch.linspace(-1, 1, y.shape[1])).sum(), leaf)[0]


def one_step(path: Path) -> float:
    """The largest step of the numbers that the file gives out."""
    stored = {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
    last = [node for node in onnx.load(path).graph.node if node.op_type == "DequantizeLinear"][-1]
    return float(stored[last.input[1]].max())


@pytest.mark.parametrize("layout", QuantFormat)
@pytest.mark.parametrize(
    ("activations", "weights", "per_channel"),
    [
        (QuantType.QUInt8, QuantType.QInt8, False),
        (QuantType.QInt8, QuantType.QInt8, True),
        (QuantType.QUInt8, QuantType.QUInt8, False),
    ],
)
def test_statically_quantised_network(
    layout, activations, weights, per_channel, network, exported, tmp_path
):
    path = tmp_path / "model.onnx"
    quantize_static(
        str(exported),
        str(path),
        Calibration(),
        quant_format=layout,
        activation_type=activations,
        weight_type=weights,
        per_channel=per_channel,
    )
    (reference,) = runtime(path).run(IMAGES)
    plain = import_model(path)
    through = import_model(path, straight_through=True)
    for graph in (plain.graph, through.graph, to_module(path)):
        y = graph(IMAGES)
        gap = ((y if isinstance(y, Tensor) else y[0]) - reference).abs().max()
        if layout is QuantFormat.QOperator:
            assert gap == 0
        else:  # computed in floating point, where other sums round other ways
            assert gap <= 1.01 * one_step(path)
    assert any("lets no gradient through" in note for note in plain.notes)
    assert any("straight through" in note for note in through.notes)
    assert gradient(plain.graph, IMAGES) is None
    node = first_undifferentiable(plain.graph, IMAGES)
    assert node is not None
    assert node.meta["kind"] == "quantize_linear"
    found, expected = gradient(through.graph, IMAGES), gradient(network, IMAGES)
    assert found is not None
    assert expected is not None
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.95


def test_dynamically_quantised_rows_do_not_depend_on_their_neighbours(exported, tmp_path):
    path = tmp_path / "model.onnx"
    quantize_dynamic(str(exported), str(path), weight_type=QuantType.QUInt8)
    images = IMAGES * torch.tensor([0.1, 1, 2, 5]).reshape(4, 1, 1, 1)
    session = runtime(path)
    alone = torch.cat([session.run(images[i : i + 1])[0] for i in range(4)])
    assert (session.run(images)[0] - alone).abs().max() > 1e-3  # the file itself mixes its rows
    torch.testing.assert_close(to_module(path)(images)[0], session.run(images)[0])
    lowered = import_model(path)
    torch.testing.assert_close(lowered.graph(images), alone)
    torch.testing.assert_close(lowered.graph(images)[:1], lowered.graph(images[:1]))
    assert lowered.mixes_rows
    assert not lowered.row_by_row
    assert any("range" in note for note in lowered.notes)
    assert gradient(lowered.graph, images) is None


@pytest.mark.parametrize("how", ["plain", "Attention", "MultiHeadAttention"])
def test_dynamically_quantised_encoder(how, tmp_path):
    torch.manual_seed(0)
    network, path, inputs = Encoder().eval(), tmp_path / "model.onnx", texts()
    export(network, inputs, path, TEXT)
    if how != "plain":
        optimise(path, multi_head=how == "MultiHeadAttention")
    quantised = tmp_path / "quantised.onnx"
    quantize_dynamic(
        str(path), str(quantised), extra_options={"DefaultTensorType": TensorProto.FLOAT}
    )
    session = runtime(quantised)
    fed = [dict(zip(TEXT, inputs, strict=True))[name] for name in session.input_names]
    alone = torch.cat([session.run(*(x[i : i + 1] for x in fed))[0] for i in range(4)])
    lowered = import_model(quantised, straight_through=True)
    torch.testing.assert_close(lowered.graph(*fed), alone, rtol=1e-5, atol=1e-6)
    assert not lowered.row_by_row
    torch.testing.assert_close(to_module(quantised)(*fed)[0], session.run(*fed)[0])
    found, expected = embedding_gradient(lowered.graph, fed), embedding_gradient(network, inputs)
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.9


def test_a_range_that_operators_mix_runs_row_by_row(tmp_path):
    path = tmp_path / "model.onnx"
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"]),
        helper.make_node("Unsqueeze", ["scale", "axis"], ["wide"]),
        helper.make_node("DequantizeLinear", ["y", "wide", "zero1"], ["z"]),
        helper.make_node("Unsqueeze", ["zero", "axis"], ["zero1"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 5])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["rows", 5])
    axis = numpy_helper.from_array(np.array([0], np.int64), "axis")
    save(path, [*nodes[:2], nodes[3], nodes[2]], [x], [axis], [z], opset=13)
    lowered = import_model(path)
    assert lowered.row_by_row
    rows = torch.randn(3, 5)
    for row in rows.split(1):
        torch.testing.assert_close(lowered.graph(row), runtime(path).run(row)[0])


@pytest.mark.parametrize("operator", ["DequantizeLinear", "MatMulNBits"])
def test_weights_alone_quantised_leave_the_network_differentiable(operator, tmp_path):
    path = tmp_path / "model.onnx"
    x = torch.randn(3, 32)
    if operator == "MatMulNBits":
        packed = np.random.default_rng(0).integers(0, 256, (4, 2, 8)).astype(np.uint8)
        inputs = (x.numpy(), packed, np.full(8, 0.1, np.float32))
        attributes = {"K": 32, "N": 4, "bits": 4, "block_size": 16}
        Node(operator, inputs, attributes, domain="com.microsoft", results=[(np.float32, 2)]).write(
            path
        )
    else:
        weight = onnx.helper.make_tensor("w", TensorProto.INT4, [32, 4], list(range(-8, 8)) * 8)
        stored = [
            weight,
            numpy_helper.from_array(np.array([0.1, 0.2, 0.3, 0.4], np.float32), "s"),
            onnx.helper.make_tensor("z", TensorProto.INT4, [4], [1, -2, 0, 7]),
        ]
        nodes = [
            helper.make_node("DequantizeLinear", ["w", "s", "z"], ["float"], axis=1),
            helper.make_node("MatMul", ["x", "float"], ["y"]),
        ]
        infos = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
            for name, width in (("x", 32), ("y", 4))
        ]
        save(path, nodes, infos[:1], stored, infos[1:])
    graph = import_model(path).graph
    (linear,) = [item for item in graph.modules() if isinstance(item, nn.Linear)]
    torch.testing.assert_close(graph(x), runtime(path).run(x)[0], rtol=1e-5, atol=1e-5)
    found = gradient(graph, x)
    torch.testing.assert_close(found, (torch.linspace(-1, 1, 4) @ linear.weight).expand(3, 32))


def test_straight_through_gradient_ends_where_the_grid_does(tmp_path):
    path = tmp_path / "model.onnx"
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    stored = [
        numpy_helper.from_array(np.array(0.5, np.float32), "s"),
        numpy_helper.from_array(np.array(10, np.uint8), "z"),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows"]) for n in "xy"]
    save(path, nodes, infos[:1], stored, infos[1:])
    x = torch.tensor([-100.0, -5.01, -5.0, 0.26, 122.5, 122.6], requires_grad=True)
    y = import_model(path, straight_through=True).graph(x)
    assert y.tolist() == [-5, -5, -5, 0.5, 122.5, 122.5]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("code", ["FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4"])
def test_narrow_grids_agree_with_the_reference(code, tmp_path):
    from onnx.reference import ReferenceEvaluator

    path = tmp_path / "model.onnx"
    kind = getattr(TensorProto, code)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    stored = [
        numpy_helper.from_array(np.array(0.5, np.float32), "s"),
        helper.make_tensor("z", kind, [], [0]),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows"]) for n in "xy"]
    save(path, nodes, infos[:1], stored, infos[1:])
    x = torch.cat([torch.linspace(-9, 9, 101), torch.tensor([1e-3, 0.0, -0.2])])
    (expected,) = ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})
    for graph in (to_module(path), import_model(path, straight_through=True).graph):
        y = graph(x)
        assert torch.equal(y if isinstance(y, Tensor) else y[0], torch.tensor(expected))


def test_rounding_by_hand_passes_gradients_by_request(tmp_path):
    path = tmp_path / "model.onnx"
    nodes = [
        helper.make_node("Div", ["x", "s"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["whole"]),
        helper.make_node("Clip", ["whole", "low", "high"], ["kept"]),
        helper.make_node("Mul", ["kept", "s"], ["y"]),
    ]
    values = {"s": 0.5, "low": -2.0, "high": 3.0}
    stored = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in values.items()]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows"]) for n in "xy"]
    save(path, nodes, infos[:1], stored, infos[1:])
    x = torch.tensor([-2.0, -0.6, 0.2, 1.1, 9.0], requires_grad=True)
    for straight_through, expected in ((False, [0, 0, 0, 0, 0]), (True, [0, 1, 1, 1, 0])):
        y = import_model(path, straight_through=straight_through).graph(x)
        assert y.tolist() == [-1, -0.5, 0, 1, 1.5]
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == expected


def test_integers_cast_to_wider_ones_keep_their_gradient(tmp_path):
    path = tmp_path / "model.onnx"
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Cast", ["q"], ["wide"], to=TensorProto.INT32),
        helper.make_node("Cast", ["wide"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["number", "s"], ["y"]),
    ]
    stored = [
        numpy_helper.from_array(np.array(0.5, np.float32), "s"),
        numpy_helper.from_array(np.array(0, np.int8), "z"),
    ]
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows"]) for n in "xy"]
    save(path, nodes, infos[:1], stored, infos[1:])
    x = torch.tensor([-0.6, 0.2, 1.4], requires_grad=True)
    y = import_model(path, straight_through=True).graph(x)
    assert torch.equal(y, runtime(path).run(x)[0])
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("how", ["static", "dynamic"])
def test_a_quantised_file_is_served_with_gradients_by_request(how, exported, tmp_path):
    path = tmp_path / "model.onnx"
    if how == "static":
        quantize_static(str(exported), str(path), Calibration())
    else:
        quantize_dynamic(str(exported), str(path), weight_type=QuantType.QUInt8)
    plain, through = (
        load_classifier(
            "quantised", path, Manifest(straight_through=wanted), device=torch.device("cpu")
        )
        for wanted in (False, True)
    )
    assert Capability.GRADIENT not in plain.classifier.capabilities
    assert "quantize_linear" in plain.classifier.lacking[Capability.GRADIENT]
    assert Capability.GRADIENT in through.classifier.capabilities
    for loaded in (plain, through):
        assert loaded.info.form == "graph"
        assert loaded.info.form_reason == ""
        assert loaded.info.verification.reference == "onnxruntime"
        assert loaded.info.verification.relative_difference < (2e-2 if how == "static" else 1e-5)
