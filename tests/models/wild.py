"""Networks as people write and export them, checked against the eager module."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interpret_server.models.loading import LoadedModel, load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Wild:
    """A network, its inputs, and what the manifest says of it.

    Args:
        build: the module.
        inputs: from a number of rows to the inputs.
        names: of the inputs.
        fields: of the manifest, for inputs by name.
        output: of the manifest.
        embedding: path of the module at whose output the first input's gradient is taken, or None.
        free: axes of every input that has them, besides the batch, of which the size is free.
        logits: from the module's output to logits.
        exporters: that can write it.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    names: tuple[str, ...] = ("x",)
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    output: Mapping[str, Any] = field(default_factory=dict)
    embedding: str | None = None
    free: tuple[int, ...] = ()
    logits: Callable[[Any], Tensor] = lambda output: output
    exporters: tuple[str, ...] = ("script", "trace", "export", "onnx", "dynamo")

    def module(self) -> nn.Module:
        """The module with seeded weights, and statistics for its batch norms."""
        torch.manual_seed(0)
        module = self.build().train()
        if any(isinstance(item, nn.modules.batchnorm._BatchNorm) for item in module.modules()):
            with torch.no_grad():
                for _ in range(4):
                    module(*self.inputs(8))
        return module.eval()

    def manifest(self) -> Manifest:
        """What its owner would write."""
        rows = self.inputs(2)
        listed = []
        for name, values in zip(self.names, rows, strict=True):
            sizes = tuple(values.shape[1:])
            shape = [None if axis + 1 in self.free else size for axis, size in enumerate(sizes)]
            spec = {"name": name, "shape": shape, **self.fields.get(name, {})}
            listed.append({**spec, "example": sizes} if None in shape else spec)
        return Manifest.model_validate({"inputs": listed, "output": dict(self.output)})


def export(wild: Wild, module: nn.Module, exporter: str, folder: Path) -> Path:
    """Write a file; a name that ends in `1` has batch 1 in it."""
    kind, rows = exporter.rstrip("1"), 1 if exporter.endswith("1") else 3
    example = wild.inputs(rows)
    path = folder / {"onnx": "m.onnx", "dynamo": "m.onnx", "export": "m.pt2"}.get(kind, "m.pt")
    with quiet():
        if kind == "script":
            torch.jit.save(torch.jit.script(module), str(path))
        elif kind == "trace":
            with torch.no_grad():
                traced = torch.jit.trace(module, example, check_trace=False, strict=False)
            torch.jit.save(traced, str(path))
        elif kind == "export":
            free = None if rows == 1 else _free(wild, example)
            program = torch.export.export(module, example, dynamic_shapes=free)
            torch.export.save(program, path)
        else:
            _onnx(wild, module, kind == "dynamo", example, path)
    return path


def _free(wild: Wild, example: Inputs) -> tuple[dict[int, object], ...]:
    batch = torch.export.Dim("batch", min=1, max=1024)
    return tuple(
        {0: batch} | {axis: torch.export.Dim.DYNAMIC for axis in wild.free if axis < values.dim()}
        for values in example
    )


def _onnx(wild: Wild, module: nn.Module, dynamo: bool, example: Inputs, path: Path) -> None:
    fixed = len(example[0]) == 1
    common: dict[str, Any] = {"input_names": list(wild.names)}
    if dynamo:
        shapes = None if fixed else _free(wild, example)
        common |= {"dynamic_shapes": shapes, "external_data": False, "verbose": False}
        torch.onnx.export(module, example, str(path), dynamo=True, opset_version=20, **common)
        return
    axes = {
        name: {0: "batch"} | {axis: f"size{axis}" for axis in wild.free if axis < values.dim()}
        for name, values in zip(wild.names, example, strict=True)
    }
    common["dynamic_axes"] = None if fixed else axes
    torch.onnx.export(module, example, str(path), dynamo=False, opset_version=17, **common)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print, warn and log at length."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)


def load(wild: Wild, path: Path) -> LoadedModel:
    """The file with its manifest."""
    return load_classifier("net", path, wild.manifest(), device=torch.device("cpu"))


def check(wild: Wild, module: nn.Module, loaded: LoadedModel, tolerance: float = 1e-5) -> None:
    """Logits and gradients at batch 1 and 3 as the eager module's, and no row minds another."""
    classifier = loaded.classifier
    torch.manual_seed(5)
    for rows in (1, 3):
        inputs = wild.inputs(rows)
        x = classifier.encode(classifier.pack(inputs))
        logits, gradients = _eager(wild, module, inputs)
        together = classifier(x)
        _close(together, logits, tolerance)
        _close(torch.cat([classifier(row) for row in x.split(1)]), together, tolerance)
        found = classifier.split(classifier.gradient(x, _targets(logits)).inputs)
        found = {name or wild.names[0]: values for name, values in found.items()}
        assert found.keys() == gradients.keys()
        for name, expected in gradients.items():
            _close(found[name], expected, 10 * tolerance)


def _eager(wild: Wild, module: nn.Module, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    wanted = {n: x for n, x in zip(wild.names, leaves, strict=True) if x.requires_grad}
    cut: list[Tensor] = []

    def replace(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        cut.append(output.detach().clone().requires_grad_())
        return cut[-1]

    if wild.embedding is None:
        logits = wild.logits(module(*leaves))
    else:
        hook = module.get_submodule(wild.embedding).register_forward_hook(replace)
        logits = wild.logits(module(*leaves))
        hook.remove()
        wanted[wild.names[0]] = cut[0]
    objective = _targets(logits).select(logits).sum()
    slopes = torch.autograd.grad(objective, list(wanted.values()), materialize_grads=True)
    return logits.detach(), dict(zip(wanted, slopes, strict=True))


def _targets(logits: Tensor) -> Targets:
    rows, classes = logits.shape
    return Targets.classes(1 + torch.arange(rows) % (classes - 1))


def _close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within a share of the largest expected value."""
    assert found.shape == expected.shape
    gap = (found.detach().double() - expected.detach().double()).abs().max()
    assert float(gap) <= tolerance * float(expected.detach().abs().max().clamp(min=1e-30))
