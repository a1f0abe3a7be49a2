"""Files that were exported in training mode are served and compared in their inference form."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from loading_files import load
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from interpret_server.models.onnx.inference import in_training, to_inference


def write(folder: Path, opset: int, *, used: bool = False) -> tuple[Path, dict[str, torch.Tensor]]:
    """Batch norm, dropout and a linear layer, the first two as in training."""
    torch.manual_seed(opset)
    weights = {
        "scale": torch.rand(4) + 0.5,
        "bias": torch.randn(4),
        "mean": torch.randn(4),
        "variance": torch.rand(4) + 0.5,
        "weight": torch.randn(3, 4),
        "ratio": torch.tensor(0.5),
    }
    names = ["x", "scale", "bias", "mean", "variance"]
    if opset >= 14:
        norm = helper.make_node(
            "BatchNormalization", names, ["n", "m1", "v1"], "norm", training_mode=1
        )
    else:
        outputs = ["n", "m1", "v1", "m2", "v2"]  # what only training gives
        norm = helper.make_node("BatchNormalization", names, outputs, "norm")
    nodes = [
        norm,
        helper.make_node("Dropout", ["n", "ratio", "yes"], ["d"], "dropout"),
        helper.make_node("Gemm", ["d", "weight"], ["y"], "last", transB=1),
    ]
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])]
    if used:
        results.append(helper.make_tensor_value_info("m1", TensorProto.FLOAT, [4]))
    constants = [numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array(True), "yes"))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        results,
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return path, weights


@pytest.mark.parametrize("opset", [13, 14, 17])
def test_training_is_left_out_told_and_verified(opset: int, tmp_path: Path) -> None:
    path, weights = write(tmp_path, opset)
    loaded = load(path)
    x = torch.randn(5, 4)
    normal = F.batch_norm(
        x, weights["mean"], weights["variance"], weights["scale"], weights["bias"]
    )
    torch.testing.assert_close(loaded.classifier(x), normal @ weights["weight"].T)
    assert loaded.info.verification.reference == "onnxruntime"
    assert loaded.info.verification.relative_difference < 1e-5
    assert "deterministic" in loaded.info.capabilities
    (note,) = (note for note in loaded.info.notes if "training mode" in note)
    assert "norm" in note
    assert "dropout" in note


def test_a_node_whose_statistics_are_used_keeps_its_form(tmp_path: Path) -> None:
    model = onnx.load(str(write(tmp_path, 17, used=True)[0]))
    assert [node.name for node in in_training(model)] == ["norm", "dropout"]
    assert to_inference(model) == ("dropout",)
    assert [node.name for node in in_training(model)] == ["norm"]


@pytest.mark.filterwarnings("ignore")
def test_a_file_in_inference_mode_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)).eval()
    torch.onnx.export(net, (torch.rand(2, 4),), str(path), dynamo=False)
    model = onnx.load(str(path))
    before = model.SerializeToString()
    assert to_inference(model) == ()
    assert model.SerializeToString() == before
