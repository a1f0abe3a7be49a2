"""Files in the manner of the world's exporters, and what they must give."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor

from interpret_server.models.classifier import Capability
from interpret_server.models.loading import LoadedModel, load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets

Axes = Sequence[int | str | None]


class Sketch:
    """An ONNX graph under construction; weights are seeded.

    Args:
        opset: of the default domain.
        as_inputs: whether weights are listed among the graph's inputs, as old exporters do.
        others: versions of other domains.
    """

    def __init__(self, opset: int, *, as_inputs: bool = False, ir: int = 3, **others: int) -> None:
        self.opset, self.as_inputs, self.ir = opset, as_inputs, ir
        self.others = others
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.noise = np.random.default_rng(0)

    def input(self, name: str, shape: Axes, kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, shape: Axes | None, kind: int = TensorProto.FLOAT) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def weight(self, name: str, *shape: int, scale: float = 0.5, shift: float = 0.0) -> str:
        values = self.noise.standard_normal(shape) * scale + shift
        return self.store(name, values.astype(np.float32))

    def store(self, name: str, values: Any) -> str:
        array = np.asarray(values)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        name = attributes.pop("label", "")
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, **attributes))
        return outputs[0]

    def model(self, producer: str = "") -> ModelProto:
        inputs = list(self.inputs)
        if self.as_inputs:
            inputs += [
                helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
                for item in self.weights
            ]
        graph = helper.make_graph(self.nodes, "net", inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [
            helper.make_opsetid(name.replace("_", "."), version)
            for name, version in self.others.items()
        ]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=self.ir, producer_name=producer
        )

    def save(self, path: Path, producer: str = "") -> Path:
        path.write_bytes(self.model(producer).SerializeToString())
        return path


def load(path: Path, **manifest: Any) -> LoadedModel:
    return load_classifier(
        "net", path, Manifest.model_validate(manifest), device=torch.device("cpu")
    )


def run(path: Path, *inputs: Tensor) -> list[Any]:
    """What onnxruntime itself says, one row at a time where the file fixes its batch."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    given = session.get_inputs()
    fixed = given[0].shape[0] if isinstance(given[0].shape[0], int) else len(inputs[0])
    parts = []
    for start in range(0, len(inputs[0]), fixed):
        feeds = {
            item.name: x[start : start + fixed].numpy()
            for item, x in zip(given, inputs, strict=True)
        }
        parts.append(session.run(None, feeds))
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def check(
    loaded: LoadedModel,
    expected: Callable[[Tensor], Tensor],
    low: float = -1,
    high: float = 1,
    *,
    slopes: bool = True,
) -> None:
    """Logits as expected, up to a constant per row, at batch 1 and 3; rows apart; slopes right.

    Args:
        loaded: the file.
        expected: logits for the file's own inputs.
        low: the smallest input to try.
        high: the largest.
        slopes: the file computes in float64 where its inputs do, so that differences tell slopes.
    """
    classifier = loaded.classifier
    noise = torch.Generator().manual_seed(3)
    for rows in (1, 3):
        x = torch.rand(rows, *classifier.input_shape, generator=noise, dtype=classifier.dtype)
        x = x * (high - low) + low
        found, wanted = classifier(x).detach(), expected(x)
        close(found - found.mean(1, keepdim=True), wanted - wanted.mean(1, keepdim=True))
        close(torch.cat([classifier(row).detach() for row in x.split(1)]), found)
        if slopes and Capability.GRADIENT in classifier.capabilities:
            _check_slope(classifier, x)


def _check_slope(classifier: Any, x: Tensor) -> None:
    """The gradient along a direction, against differences of the same module in float64."""
    double = copy.deepcopy(classifier.module).double()
    noise = torch.Generator().manual_seed(4)
    direction = torch.randn(x.shape, generator=noise, dtype=torch.float64)
    targets = torch.arange(len(x)) % classifier.classes
    gradient = classifier.gradient(x, Targets.classes(targets)).inputs.double()
    assert gradient.abs().max() > 0
    step = 1e-6
    with torch.no_grad():
        moved = [double(x.double() + sign * step * direction) for sign in (1, -1)]
    slopes = ((moved[0] - moved[1]) / (2 * step)).gather(1, targets[:, None])[:, 0]
    close((gradient * direction).flatten(1).sum(1), slopes, 1e-3)


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Within a share of the largest expected value."""
    assert found.shape == expected.shape
    gap = float((found.double() - expected.double()).abs().max())
    assert gap <= tolerance * max(float(expected.double().abs().max()), 1e-30), gap
