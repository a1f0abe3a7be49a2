"""A small network as model files, for the tests of loading."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from interpret_server.models.loading import LoadedModel, load_classifier
from interpret_server.models.manifest import Manifest

SHAPE = (3, 8, 8)
IMAGE = {"shape": SHAPE, "bounds": (0, 1)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.last = nn.Linear(4 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x)

    def scores(self, x: Tensor) -> Tensor:
        return self.last(self.relu(self.conv(x)).flatten(1))


def load(path: Path, **fields: Any) -> LoadedModel:
    return load_classifier("net", path, Manifest.model_validate(fields), device=torch.device("cpu"))


def script(net: nn.Module, folder: Path, example: Tensor | None = None) -> Path:
    path, net = folder / "model.pt", net.eval()
    program = torch.jit.script(net) if example is None else torch.jit.trace(net, example)
    torch.jit.save(program, str(path))
    return path


def onnx_file(
    net: Net,
    folder: Path,
    *,
    rows: int | str = "N",
    end: Sequence[onnx.NodeProto] = (),
    output: str = "logits",
    element: int = TensorProto.FLOAT,
    reshape: Sequence[int] = (-1, 256),
) -> Path:
    """`net` as an ONNX file, whose `end` makes `output` out of `logits`."""
    weights = {
        "conv.weight": net.conv.weight,
        "conv.bias": net.conv.bias,
        "last.weight": net.last.weight,
        "last.bias": net.last.bias,
        "sizes": torch.tensor(reshape),
    }
    nodes = [
        helper.make_node(
            "Conv", ["x", "conv.weight", "conv.bias"], ["c"], "conv", pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Reshape", ["r", "sizes"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "last.weight", "last.bias"], ["logits"], "last", transB=1),
        *end,
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", element, [rows, *SHAPE])],
        [helper.make_tensor_value_info(output, element, [rows, 5])],
        [numpy_helper.from_array(v.detach().numpy(), name) for name, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return path
