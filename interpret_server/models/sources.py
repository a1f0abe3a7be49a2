"""A model file as it runs by itself, and as it can be lowered."""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..errors import FailedPrecondition, InterpretError, InvalidModel
from .inputs import FileInput
from .lowered import Lowered, Unlowerable
from .manifest import Format


def brief(error: BaseException) -> str:
    """The last line of an error's message, without what came before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return re.sub(r"^\w*(Error|Exception): ", "", last)[:300]


_log = logging.getLogger(__name__)


class Source(ABC):
    """One opened model file.

    Attributes:
        inputs: as the file declares them.
        dtype: that the file computes in.
        executor: what runs the original: `torch.jit`, `onnxruntime`, or `none`.
        notes: one sentence each.
        form: of the fallback, where there is no graph: `archive` or `runtime`.
    """

    form: ClassVar[str]
    inputs: tuple[FileInput, ...]
    output_names: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    executor: str

    def __init__(self) -> None:
        self.notes: list[str] = []

    @property
    @abstractmethod
    def original(self) -> nn.Module | None:
        """From inputs of `dtype` to the file's outputs, as the file computes them."""

    @abstractmethod
    def has_control_flow(self) -> bool:
        """Whether the file's program branches or loops."""

    @abstractmethod
    def lower(self, *examples: Tensor) -> Lowered:
        """The file as a graph, by an example of each of its inputs.

        Raises:
            Unlowerable: naming the operator or construct in the way.
        """

    def graph(self, *examples: Tensor) -> Lowered:
        """As `lower`; an unforeseen failure is logged and counts as unlowerable."""
        try:
            return self.lower(*examples)
        except (InterpretError, Unlowerable):
            raise
        except Exception as error:
            _log.exception("lowering failed")
            raise Unlowerable("this file's program could not be turned into a graph") from error


def open_source(file_format: Format, path: Path) -> Source:
    """Open a file of a known format.

    Raises:
        InvalidModel: the file is corrupt.
    """
    return TorchScriptSource(path) if file_format is Format.TORCHSCRIPT else OnnxSource(path)


class TorchScriptSource(Source):
    """A TorchScript archive. Opening it runs code of the file."""

    form = "archive"
    executor = "torch.jit"

    def __init__(self, path: Path) -> None:
        from .torchscript import ArchiveBody, open_archive

        super().__init__()
        self.archive = open_archive(path)
        self.body = ArchiveBody(self.archive)
        self.dtype = next(_stored_dtypes(self.archive), self.dtype)
        schema = cast("Any", self.archive.forward).schema
        self.inputs = tuple(
            FileInput(argument.name)
            for argument in schema.arguments[1:]
            if not argument.has_default_value()
        )

    @property
    def original(self) -> nn.Module | None:
        return self.body

    def has_control_flow(self) -> bool:
        graph: Any = self.archive.inlined_graph
        return any(graph.findNode(kind) is not None for kind in ("prim::If", "prim::Loop"))

    def lower(self, *examples: Tensor) -> Lowered:
        from .torchscript import lower

        return lower(self.archive, examples)


def _stored_dtypes(archive: torch.jit.ScriptModule) -> Iterator[torch.dtype]:
    """The data types of an archive's weights, which a frozen archive holds as constants."""
    for tensor in (*archive.parameters(), *archive.buffers()):
        if tensor.is_floating_point():
            yield tensor.dtype
    graph: Any = archive.inlined_graph
    for node in graph.findAllNodes("prim::Constant"):
        value = node.output().toIValue() if node.hasAttribute("value") else None
        if isinstance(value, Tensor) and value.dim() and value.is_floating_point():
            yield value.dtype


class OnnxSource(Source):
    """An ONNX file; onnxruntime runs the original, where it is installed and takes the file."""

    form = "runtime"

    def __init__(self, path: Path) -> None:
        from .onnx import read_header

        super().__init__()
        self.path = path
        header = read_header(path)
        for item in header.inputs:
            if item.dtype is None:
                raise InvalidModel(f"the input {item.name!r} is no tensor of numbers")
        self.inputs = tuple(FileInput(item.name, item.shape, item.dtype) for item in header.inputs)
        self.output_names = tuple(item.name for item in header.outputs)
        floating = [
            item.dtype for item in header.inputs if item.dtype and item.dtype.is_floating_point
        ]
        self.dtype = floating[0] if floating else self.dtype
        self.executor = "onnxruntime"
        self._runtime: nn.Module | None = None
        try:
            self._runtime = _Runtime(path)
        except FailedPrecondition:
            self.executor = "none"
            self.notes.append("onnxruntime is not installed, so the network was not verified.")
        except InvalidModel:  # a corrupt file is refused by the importer too
            self.executor = "none"
            self.notes.append("onnxruntime refuses the file, so the network was not verified.")

    @property
    def original(self) -> nn.Module | None:
        return self._runtime

    def has_control_flow(self) -> bool:
        import onnx

        graph = onnx.load(str(self.path), load_external_data=False).graph
        return any(node.op_type in ("If", "Loop", "Scan") for node in graph.node)

    def lower(self, *examples: Tensor) -> Lowered:
        from .onnx import import_model

        return import_model(self.path)


class _Runtime(nn.Module):
    """onnxruntime as a module; without gradients."""

    def __init__(self, path: Path) -> None:
        from .onnx import runtime

        super().__init__()
        self.session = runtime(path)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        device = inputs[0].device
        found = self.session.run(*(value.detach().cpu() for value in inputs))
        return tuple(value.to(device) for value in found)
