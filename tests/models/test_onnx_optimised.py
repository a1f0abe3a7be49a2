"""Files that onnxruntime saved after its own graph optimisation."""

import logging
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from onnx_networks import TEXT, Calibration, Convolutional, Encoder, export, texts
from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static

from interpret_server.models.onnx import import_model, runtime

LEVELS = onnxruntime.GraphOptimizationLevel
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def save(source: Path, path: Path, level: LEVELS) -> set[str]:
    """Save an optimised file; its operators that are not of the default domain."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(path).graph.node if node.domain}


@pytest.mark.parametrize(
    ("how", "level", "expected"),
    [
        ("float", LEVELS.ORT_ENABLE_EXTENDED, {"FusedConv"}),
        ("static", LEVELS.ORT_ENABLE_EXTENDED, {"QGemm", "QLinearAdd", "QLinearConcat"}),
        ("static", LEVELS.ORT_ENABLE_ALL, {"QLinearConv", "NhwcMaxPool"}),
        ("dynamic", LEVELS.ORT_ENABLE_EXTENDED, {"DynamicQuantizeMatMul"}),
    ],
)
def test_optimised_convolutional_network(how, level, expected, tmp_path):
    torch.manual_seed(0)
    source, path = tmp_path / "source.onnx", tmp_path / "model.onnx"
    export(Convolutional().eval(), (IMAGES,), source)
    if how == "static":
        quantize_static(
            str(source),
            str(source),
            Calibration(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    elif how == "dynamic":
        quantize_dynamic(str(source), str(source), weight_type=QuantType.QUInt8)
    assert save(source, path, level) >= expected
    lowered, session = import_model(path, straight_through=True), runtime(path)
    rows = IMAGES.split(1) if lowered.mixes_rows else [IMAGES]
    reference = torch.cat([session.run(part)[0] for part in rows])
    images = IMAGES.clone().requires_grad_()
    y = lowered.graph(images)
    if how == "static":
        assert torch.equal(y, reference)
    torch.testing.assert_close(y, reference, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(y.sum(), images)[0].abs().sum() > 0


@pytest.mark.parametrize("quantised", [False, True])
def test_optimised_encoder(quantised, tmp_path):
    torch.manual_seed(0)
    source, path, inputs = tmp_path / "source.onnx", tmp_path / "model.onnx", texts()
    export(Encoder().eval(), inputs, source, TEXT)
    if quantised:
        quantize_dynamic(str(source), str(source))
    fused = save(source, path, LEVELS.ORT_ENABLE_EXTENDED)
    assert fused >= (
        {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"} if quantised else {"BiasGelu"}
    )
    lowered, session = import_model(path), runtime(path)
    reference = torch.cat([session.run(*(x[i : i + 1] for x in inputs))[0] for i in range(4)])
    torch.testing.assert_close(lowered.graph(*inputs), reference, rtol=1e-5, atol=1e-6)
    assert not lowered.row_by_row


def test_a_layout_for_one_kind_of_machine_is_refused_by_name(tmp_path):
    from interpret_server.models.lowered import Unlowerable

    source, path = tmp_path / "source.onnx", tmp_path / "model.onnx"
    export(Convolutional().eval(), (IMAGES,), source)
    if "ReorderInput" not in save(source, path, LEVELS.ORT_ENABLE_ALL):
        pytest.skip("onnxruntime has no such layout here")
    with pytest.raises(Unlowerable, match="nchwc"):
        import_model(path)
