"""Model files out of the architectures, for the benchmarks."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from ._architectures import Built


def _scripted(built: Built, path: Path) -> None:
    torch.jit.script(built.module).save(str(path))


def _traced(built: Built, path: Path) -> None:
    torch.jit.trace(built.module, torch.rand(2, *built.shape)).save(str(path))


def _frozen(built: Built, path: Path) -> None:
    torch.jit.freeze(torch.jit.script(built.module)).save(str(path))


def _program(built: Built) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("rows", min=1, max=4096)},)
    return torch.export.export(built.module, (torch.rand(2, *built.shape),), dynamic_shapes=shapes)


def _exported(built: Built, path: Path) -> None:
    torch.export.save(_program(built), path)


def _onnx(built: Built, path: Path) -> None:
    program = torch.onnx.export(_program(built), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(path))


def _onnx_by_script(built: Built, path: Path) -> None:
    torch.onnx.export(
        built.module,
        (torch.rand(2, *built.shape),),
        str(path),
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "rows"}},
    )


FORMATS: dict[str, tuple[str, Callable[[Built, Path], None]]] = {
    "scripted": (".pt", _scripted),
    "traced": (".pt", _traced),
    "frozen": (".pt", _frozen),
    "exported": (".pt2", _exported),
    "onnx": (".onnx", _onnx),
    "onnx_by_script": (".onnx", _onnx_by_script),
}


def export(built: Built, form: str, folder: Path) -> Path:
    """Write a network to a file; raises whatever the exporter raises.

    Args:
        built: the network.
        form: a key of `FORMATS`.
        folder: for the file.
    """
    suffix, write = FORMATS[form]
    path = folder / f"{built.name}_{form}{suffix}"
    with quiet():
        write(built, path)
    return path


def fresh(module: nn.Module) -> nn.Module:
    """A module in its inference form, parameters frozen."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print, warn and log at length."""
    before = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
