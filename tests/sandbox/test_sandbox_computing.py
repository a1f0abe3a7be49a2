"""What models need works inside: one process imports torch, and confines a child for each case."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sandbox_child import needs_landlock
from torch import nn

CASES = {
    "forward_and_backward": 2.0,
    "torchscript": 5,
    "exported": 5,
    "runtime": 5,
    "served net.pt": "graph",
    "served net.onnx": "graph",
    "served net.pt2": "graph",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("computing")
    models = folder / "models"
    models.mkdir()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    torch.jit.script(net).save(models / "net.pt")
    torch.jit.script(net).save(folder / "outside.pt")
    rows = {0: torch.export.Dim("rows", min=2)}
    program = torch.export.export(net, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=(rows,))
    torch.export.save(program, models / "net.pt2")
    write_onnx(models / "net.onnx")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("sandbox_computing.py"), models],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


def write_onnx(path: Path) -> None:
    """192 values through a linear layer and a ReLU to 5."""
    weight = np.random.default_rng(0).normal(size=(192, 5)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("Relu", ["flat"], ["rectified"]),
            helper.make_node("MatMul", ["rectified", "weight"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


@pytest.mark.parametrize("case", CASES)
def test_models_load_and_compute_confined(case: str, answers: dict[str, Any]) -> None:
    assert answers[case] == CASES[case]


def test_too_much_memory_is_an_error_that_the_process_survives(answers: dict[str, Any]) -> None:
    assert "can't allocate memory" in answers["too_much_memory"]


@needs_landlock
def test_an_archive_elsewhere_is_refused_to_torch_as_well(answers: dict[str, Any]) -> None:
    assert "Permission denied" in answers["outside"]
