"""Model files out of the architectures: TorchScript, torch.export, ONNX by both exporters."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import torch
from torch import nn

from .architectures import ZOO, Architecture, eager

_WHOLE = (nn.ModuleList, nn.ModuleDict, nn.RNNBase)  # which cannot be scripted by themselves


class Exporter(StrEnum):
    """What writes the file."""

    SCRIPT = "script"
    TRACE = "trace"
    FREEZE = "freeze"  # scripted, then frozen
    FREEZE_TRACE = "freezetrace"
    MIXED = "mixed"  # traced, with one child scripted
    EXPORT = "export"  # torch.export
    LEGACY = "onnx"  # ONNX by way of TorchScript
    DYNAMO = "dynamo"  # ONNX by way of torch.export


@dataclass(frozen=True)
class Export:
    """How a file is written.

    Args:
        exporter: what writes it.
        opset: of ONNX; 0 for the other formats.
        dynamic: whether the batch is free; else it is 1.
        dtype: of the weights.
    """

    exporter: Exporter
    opset: int = 0
    dynamic: bool = True
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        batch = "" if self.dynamic else "-batch1"
        width = "-float64" if self.dtype is torch.float64 else ""
        return f"{self.exporter}{self.opset or ''}{batch}{width}"

    @property
    def suffix(self) -> str:
        """Of the file's name."""
        if self.exporter in (Exporter.LEGACY, Exporter.DYNAMO):
            return ".onnx"
        return ".pt2" if self.exporter is Exporter.EXPORT else ".pt"


def write(name: str, export: Export, path: Path) -> None:
    """Export an architecture to a file; raises whatever the exporter raises."""
    with _quiet():
        match export.exporter:
            case Exporter.EXPORT:
                torch.export.save(_program(name, export.dynamic, export.dtype), path)
            case Exporter.LEGACY:
                _legacy(name, export, path)
            case Exporter.DYNAMO:
                _dynamo(name, export, path)
            case _:
                torch.jit.save(_archive(name, export), str(path))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print, warn and log at length."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _archive(name: str, export: Export) -> torch.jit.ScriptModule:
    module = eager(name, export.dtype)
    match export.exporter:
        case Exporter.SCRIPT:
            return torch.jit.script(module)
        case Exporter.FREEZE:
            return torch.jit.freeze(torch.jit.script(module))
        case Exporter.MIXED:
            module = _with_scripted_child(module)
    example = ZOO[name].example(3, export.dtype)
    with torch.no_grad():  # as most people trace; attention then takes its fused form
        traced: torch.jit.ScriptModule = torch.jit.trace(module, example, check_trace=False)
    return torch.jit.freeze(traced) if export.exporter is Exporter.FREEZE_TRACE else traced


def _with_scripted_child(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module)
    children = {n: parameters(m) for n, m in module.named_children() if not isinstance(m, _WHOLE)}
    largest = max(children, key=children.__getitem__)
    setattr(module, largest, torch.jit.script(module.get_submodule(largest)))
    return module


@cache
def _program(name: str, dynamic: bool, dtype: torch.dtype) -> torch.export.ExportedProgram:
    architecture = ZOO[name]
    example = architecture.example(3 if dynamic else 1, dtype)
    with torch.set_grad_enabled(dynamic):  # both are common; without, attention is fused
        return torch.export.export(
            eager(name, dtype), example, dynamic_shapes=_free_axes(architecture, dynamic)
        )


def _free_axes(architecture: Architecture, dynamic: bool) -> tuple[dict[int, object], ...] | None:
    free: dict[int, object] = {0: torch.export.Dim("batch", min=1, max=4096)} if dynamic else {}
    for axis in architecture.free:
        free[axis] = torch.export.Dim.DYNAMIC
    return tuple(free for _ in architecture.names) if free else None


def _legacy(name: str, export: Export, path: Path) -> None:
    architecture, module = ZOO[name], eager(name, export.dtype)
    free = {axis: f"size{axis}" for axis in architecture.free}
    if export.dynamic:
        free[0] = "batch"
    outputs = _output_names(name)
    axes = dict.fromkeys(architecture.names, free)
    if export.dynamic:
        axes |= {output: {0: "batch"} for output in outputs}
    torch.onnx.export(
        module,
        architecture.example(3 if export.dynamic else 1, export.dtype),
        str(path),
        dynamo=False,
        opset_version=export.opset,
        input_names=list(architecture.names),
        output_names=list(outputs),
        dynamic_axes=axes if free else None,
    )


def _dynamo(name: str, export: Export, path: Path) -> None:
    torch.onnx.export(
        _program(name, export.dynamic, export.dtype),
        (),
        path,
        dynamo=True,
        opset_version=export.opset,
        input_names=list(ZOO[name].names),
        output_names=list(_output_names(name)),
        external_data=False,
        verbose=False,
    )


def _output_names(name: str) -> tuple[str, ...]:
    return ("map", "scores") if name == "unet" else ("scores",)


def parameters(module: nn.Module) -> int:
    """How many numbers a module has learnt."""
    return sum(parameter.numel() for parameter in module.parameters())
