"""Runs of the methods that hide parts of the input, for their tests."""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from onnx import TensorProto, helper, load, save
from torch import Tensor, nn

from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job, Plugin

SHAPE = (3, 9, 10)
SAVERS = ("scripted", "exported", "onnx", "runtime")


class Recorder(Job):
    """Keeps what a plugin says."""

    def __init__(self, max_rows: int = 64) -> None:
        self.max_rows = max_rows
        self.totals: list[int] = []
        self.done = 0
        self.warnings: list[tuple[list[bool], str]] = []

    def track(self, total: int) -> Iterator[int]:
        self.totals.append(total)
        for step in range(total):
            yield step
            self.done += 1

    def warn(self, rows: Tensor, message: str) -> None:
        self.warnings.append((rows.tolist(), message))


class Counted:
    """How many rows each pass through a classifier has."""

    def __init__(self, model: Classifier) -> None:
        self.rows: list[int] = []
        model.module.register_forward_pre_hook(lambda _, given: self.rows.append(len(given[0])))


def run(
    plugin: Plugin[Any, Any],
    model: Classifier,
    x: Tensor,
    targets: Targets,
    job: Job | None = None,
    tensors: dict[str, Tensor] | None = None,
    **params: object,
) -> Any:
    """A plugin's result, its parameters having been checked as the server does."""
    made = plugin.params_type.model_validate(params)
    plugin.check(model, made)
    batch = Batch(x, targets, tuple(range(len(x))), tensors or {})
    return plugin.run(model, batch, made, job or Job())


def network() -> nn.Sequential:
    """Images to four classes."""
    layers = (nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3, 2), nn.ReLU(), nn.Flatten())
    net = nn.Sequential(*layers, nn.Linear(36, 4)).eval()
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.3)
    return net


def images(rows: int) -> Tensor:
    """Random images."""
    return torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(6))


def loaded(module: nn.Module, saver: str, folder: Path) -> Classifier:
    """A module as the server loads it from one of the forms of `SAVERS`."""
    path = folder / {"scripted": "net.pt", "exported": "net.pt2"}.get(saver, "net.onnx")
    module, x = copy.deepcopy(module), images(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that its exporters are deprecated
        if saver == "scripted":
            torch.jit.script(module).save(str(path))
        elif saver == "exported":
            sizes = ({0: torch.export.Dim("n", min=1, max=512)},)
            torch.export.save(torch.export.export(module, (x,), dynamic_shapes=sizes), path)
        else:
            axes = {"x": {0: "n"}, "y": {0: "n"}}
            torch.onnx.export(
                module, (x,), str(path), dynamo=False, input_names=["x"], output_names=["y"],
                dynamic_axes=axes,
            )  # fmt: skip
    if saver == "runtime":
        _without_graph(path)
    manifest = Manifest.model_validate({"shape": SHAPE, "bounds": (0, 1)})
    return load_classifier("net", path, manifest, device=torch.device("cpu")).classifier


def _without_graph(path: Path) -> None:
    """Ends an ONNX file in an operator that only onnxruntime has, and that changes nothing."""
    model = load(str(path))
    last = helper.make_node(
        "LinearRegressor",
        ["y"],
        ["z"],
        domain="ai.onnx.ml",
        coefficients=torch.eye(4).reshape(-1).tolist(),
        targets=4,
    )
    model.graph.node.append(last)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    save(model, str(path))
