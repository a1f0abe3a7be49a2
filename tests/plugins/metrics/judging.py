"""Models, files and runs for the tests of metrics."""

import copy
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
from interpret_server.testing import classifier

SHAPE = (2, 6, 7)
FORMS = ("scripted", "exported", "onnx")
LABELS = torch.tensor([1, 3, 0])
SEEDS = (5, 1 << 40, 2)


class Recorder(Job):
    """Keeps what a plugin says; cancels nothing."""

    def __init__(self, max_rows: int = 64) -> None:
        self.max_rows = max_rows
        self.totals: list[int] = []
        self.warnings: list[tuple[list[bool], str]] = []
        self._depth = 0

    def track(self, total: int) -> Iterator[int]:
        if not self._depth:
            self.totals.append(total)
        self._depth += 1
        try:
            yield from range(total)
        finally:
            self._depth -= 1

    def warn(self, rows: Tensor, message: str) -> None:
        self.warnings.append((rows.tolist(), message))


def run(
    plugin: Plugin[Any, Any],
    model: Classifier,
    batch: Batch,
    job: Job | None = None,
    **params: object,
) -> Any:
    """A plugin's result, its parameters having been checked as the server does."""
    made = plugin.params_type.model_validate(params)
    plugin.check(model, made)
    return plugin.run(model, batch, made, job or Job())


def network() -> nn.Sequential:
    """Images to four classes."""
    layers = (nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten())
    net = nn.Sequential(*layers, nn.Linear(24, 4)).eval()
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.4)
    return net


def flat(weight: Tensor, bias: float = 0.0) -> Classifier:
    """A linear model of rows like `weight[0]`, one logit for each row of `weight`."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(weight[0].numel(), len(weight)))
    with torch.no_grad():
        module[1].weight.copy_(weight.flatten(1))
        module[1].bias.fill_(bias)
    layout = {3: "CHW", 2: "CL"}.get(weight[0].dim(), "other")
    return classifier(module.double(), tuple(weight[0].shape), bounds=(-4, 4), input_layout=layout)


def images(rows: int = 3) -> Tensor:
    """Random images."""
    return torch.rand(rows, *SHAPE, generator=torch.Generator().manual_seed(6))


def batch_of(x: Tensor, labels: Tensor = LABELS, **tensors: Tensor) -> Batch:
    """Rows with seeds of their own."""
    return Batch(x, Targets.classes(labels[: len(x)]), SEEDS[: len(x)], tensors)


def eager(module: nn.Module) -> Classifier:
    """Without a file."""
    return classifier(copy.deepcopy(module), SHAPE, input_layout="CHW")


def loaded(module: nn.Module, form: str, folder: Path) -> Classifier:
    """A module as the server loads it from one of `FORMS`."""
    path = folder / {"scripted": "net.pt", "exported": "net.pt2", "onnx": "net.onnx"}[form]
    module, x = copy.deepcopy(module), images(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that its exporters are deprecated
        if form == "scripted":
            torch.jit.script(module).save(str(path))
        elif form == "exported":
            sizes = ({0: torch.export.Dim("n", min=1, max=512)},)
            torch.export.save(torch.export.export(module, (x,), dynamic_shapes=sizes), path)
        else:
            axes = {"x": {0: "n"}, "y": {0: "n"}}
            torch.onnx.export(
                module, (x,), str(path), dynamo=False, input_names=["x"], output_names=["y"],
                dynamic_axes=axes,
            )  # fmt: skip
    manifest = Manifest.model_validate({"shape": SHAPE, "bounds": (0, 1), "layout": "CHW"})
    return load_classifier("net", path, manifest, device=torch.device("cpu")).classifier


def close(found: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    """Equal to a share of the largest value."""
    largest = float(expected.detach().abs().max())
    assert largest > 1e-9
    torch.testing.assert_close(
        found.double(), expected.detach().double(), rtol=0, atol=share * largest
    )
