"""Small networks as every kind of file, and how the tests of the internals run plugins."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job, Plugin

SHAPE = (3, 8, 8)
FORMS = ("scripted", "traced", "onnx", "single", "exported")


class Recorder(Job):
    """Remembers steps and warnings."""

    def __init__(self, max_rows: int = 64) -> None:
        self.max_rows = max_rows
        self.steps: list[int] = []
        self.warnings: list[tuple[list[bool], str]] = []

    def track(self, total: int) -> Iterator[int]:
        self.steps.append(total)
        yield from range(total)

    def warn(self, rows: Tensor, message: str) -> None:
        self.warnings.append((rows.tolist(), message))


class Network(nn.Module):
    """Two paths between the first convolution and the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 3, padding=1)
        self.one, self.two = nn.Tanh(), nn.ReLU()
        self.hidden, self.last = nn.Linear(45, 6), nn.Linear(6, 4)
        self.three = nn.Tanh()
        source = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.first(x))
        x = x + self.two(self.second(x))
        x = nn.functional.max_pool2d(x, 2)
        return self.last(self.three(self.hidden(torch.flatten(x, 1))))


def images(rows: int, stream: int = 6) -> Tensor:
    """Random images."""
    return torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(stream))


def loaded(module: nn.Module, form: str, folder: Path, example: Tensor | None = None) -> Classifier:
    """A module as the server loads it from a file; `single` is an ONNX file for one row."""
    example = images(2) if example is None else example
    onnx = form in ("onnx", "single")
    path = folder / ("net.onnx" if onnx else "net.pt2" if form == "exported" else "net.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that its exporters are deprecated
        if form == "scripted":
            torch.jit.script(module).save(str(path))
        elif form == "traced":
            torch.jit.trace(module, example).save(str(path))
        elif form == "exported":
            free = ({0: torch.export.Dim.DYNAMIC},)
            torch.export.save(torch.export.export(module, (example,), dynamic_shapes=free), path)
        else:
            given = example[:1] if form == "single" else example
            axes = None if form == "single" else {"x": {0: "n"}}
            torch.onnx.export(
                module, (given,), str(path), dynamo=False, input_names=["x"], dynamic_axes=axes
            )
    manifest = Manifest.model_validate({"shape": tuple(example.shape[1:]), "bounds": (0, 1)})
    return load_classifier("net", path, manifest, device=torch.device("cpu")).classifier


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


def classes(*labels: int) -> Targets:
    """One class per row."""
    return Targets.classes(torch.tensor(labels))
