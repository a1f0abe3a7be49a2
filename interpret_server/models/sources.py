"""A model file as it runs by itself, and as it can be lowered."""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn

from ..errors import InterpretError
from .inputs import FileInput
from .lowered import Lowered, Unlowerable
from .manifest import Format

_log = logging.getLogger(__name__)
_NO_KERNEL = re.compile(r"Could not run '[\w:.]{1,100}' with arguments from the '\w{1,50}' backend")


def brief(error: BaseException) -> str:
    """The last line of an error's message, without what came before it, in printable characters."""
    if missing := _NO_KERNEL.search(str(error)):  # what follows lists all kernels there are
        return missing[0]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    last = re.sub(r"^[\w.]*(Error|Exception): ", "", last)[:300]
    return "".join(character if character.isprintable() else "?" for character in last)


class Source(ABC):
    """One opened model file.

    Attributes:
        inputs: as the file declares them.
        dtype: that the file computes in.
        executor: what runs the original: `torch.jit`, `torch.export`, `onnxruntime`,
            `onnx.reference` or `none`.
        notes: one sentence each.
        straight_through: whether quantisation passes gradients as if it did not round.
        decides_by_size: the file's program may take other steps at other sizes.
        form: of the fallback, where there is no graph: `archive` or `runtime`.
        files: names of the files beside it that hold its data.
    """

    form: ClassVar[str]
    decides_by_size: ClassVar[bool] = False
    inputs: tuple[FileInput, ...]
    output_names: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    executor: str

    def __init__(self, straight_through: bool = False) -> None:
        self.straight_through = straight_through
        self.notes: list[str] = []

    @property
    @abstractmethod
    def original(self) -> nn.Module | None:
        """From inputs of `dtype` to the file's outputs, as the file computes them."""

    @property
    def precision(self) -> torch.dtype:
        """The data type whose rounding the original's outputs show."""
        return self.dtype

    @property
    def winners(self) -> int | None:
        """The position of an output that holds each row's winner, by its place in `labels`."""
        return None

    def labels(self, output: str) -> tuple[str, ...] | None:
        """The names of an output's classes, where the file keeps them as data."""
        return None

    @abstractmethod
    def has_control_flow(self) -> bool:
        """Whether the file's program branches or loops."""

    def operators(self) -> Iterator[str]:
        """The names of the operators of a file that has no graph, as far as they are known."""
        yield from ()

    @abstractmethod
    def lower(self, *examples: Tensor) -> Lowered:
        """The file as a graph, by an example of each of its inputs.

        Raises:
            Unlowerable: naming the operator or construct in the way.
        """

    def drop_graph(self) -> None:
        """Forget what was kept for `lower`, which nobody will ask for."""
        return

    def fall_back(self, failure: Exception | None, example: Sequence[Tensor]) -> bool:
        """Put another executor, or none, in the place of one that fails on a sound file.

        False where the file's graph does not run on `example` either: `original` remains.
        """
        return False

    def doubt(self) -> bool:
        """Put a more exact executor, if any, in the place of one that may round coarsely."""
        return False

    def values(
        self, lowered: Lowered, examples: Sequence[Tensor], layers: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """The file's own values of layers, as far as its execution shows them."""
        return {}

    def decided_otherwise(self, lowered: Lowered, examples: Sequence[Tensor]) -> str | None:
        """Why a graph is not the file's program for inputs of these sizes; None where it is."""
        return None

    def module_like(self, layer: str, ours: nn.Module) -> nn.Module | None:
        """The file's own module of that name and of the class of ours, if it has one."""
        return None

    def graph(self, *examples: Tensor) -> Lowered:
        """As `lower`; an unforeseen failure is logged and counts as unlowerable."""
        try:
            return self.lower(*examples)
        except (InterpretError, Unlowerable):
            raise
        except Exception as error:
            _log.exception("lowering failed")
            raise Unlowerable("this file's program could not be turned into a graph") from error


def open_source(file_format: Format, path: Path, *, straight_through: bool = False) -> Source:
    """Open a file of a known format.

    Args:
        file_format: as `identify` found it.
        path: the file.
        straight_through: whether quantisation passes gradients as if it did not round.

    Raises:
        InvalidModel: the file is corrupt.
        ModelRejected: it holds what is not served.
    """
    from .onnx_source import OnnxSource

    kinds: dict[Format, type[TorchScriptSource | OnnxSource | ExportedSource]] = {
        Format.TORCHSCRIPT: TorchScriptSource,
        Format.ONNX: OnnxSource,
        Format.EXPORTED_PROGRAM: ExportedSource,
    }
    return kinds[file_format](path, straight_through=straight_through)


class TorchScriptSource(Source):
    """A TorchScript archive. Opening it runs code of the file."""

    form = "archive"
    decides_by_size = True
    executor = "torch.jit"

    def __init__(self, path: Path, *, straight_through: bool = False) -> None:
        from .torchscript import ArchiveBody, open_archive

        super().__init__(straight_through)
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

        return lower(self.archive, examples, straight_through=self.straight_through)

    def decided_otherwise(self, lowered: Lowered, examples: Sequence[Tensor]) -> str | None:
        from .torchscript import decided_otherwise

        return decided_otherwise(lowered, examples)

    def module_like(self, layer: str, ours: nn.Module) -> nn.Module | None:
        module: Any = self.archive
        for name in layer.split("."):
            module = getattr(module, name, None)
        if getattr(module, "original_name", "") != type(ours).__name__:
            return None
        return type(self.body)(module)


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


class ExportedSource(Source):
    """A torch.export program. Opening it runs nothing of the file."""

    form = "archive"
    executor = "torch.export"

    def __init__(self, path: Path, *, straight_through: bool = False) -> None:
        from .exported import ProgramBody, inputs, open_program, output_names

        super().__init__(straight_through)
        self.program = open_program(path)
        self.inputs = inputs(self.program)
        self.output_names = output_names(self.program)
        self.body = ProgramBody(self.program)
        weights = [*self.program.state_dict.values(), *self.program.constants.values()]
        kept = (item.dtype for item in weights if isinstance(item, Tensor))
        self.dtype = next((dtype for dtype in kept if dtype.is_floating_point), self.dtype)

    @property
    def original(self) -> nn.Module | None:
        return self.body

    def has_control_flow(self) -> bool:
        graph = self.program.graph_module
        return any(isinstance(item, fx.GraphModule) for item in graph.children())

    def values(
        self, lowered: Lowered, examples: Sequence[Tensor], layers: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """What the program's own nodes of a module last gave, by the module's path."""
        from .exported import module_values

        return module_values(self.body, examples)

    def lower(self, *examples: Tensor) -> Lowered:
        from .exported import lower

        return lower(self.program, examples, straight_through=self.straight_through)
