"""A model file as it runs by itself, and as it can be lowered."""

import contextlib
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn

from ..errors import FailedPrecondition, InterpretError, InvalidModel
from .inputs import FileInput
from .lowered import Lowered, Unlowerable
from .manifest import Format

if TYPE_CHECKING:
    from .onnx.runtime import Runtime


def brief(error: BaseException) -> str:
    """The last line of an error's message, without what came before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return re.sub(r"^[\w.]*(Error|Exception): ", "", last)[:300]


_log = logging.getLogger(__name__)


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
    """

    form: ClassVar[str]
    decides_by_size: ClassVar[bool] = False
    inputs: tuple[FileInput, ...]
    output_names: tuple[str, ...] = ()
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

    def fall_back(self, failure: Exception | None) -> bool:
        """Put another executor, or none, in the place of one that failed for lack of an operator.

        False where `failure` is no such one, and `original` remains as it was.
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


class OnnxSource(Source):
    """An ONNX file; onnxruntime runs the original, or else the onnx package's own evaluator."""

    form = "runtime"

    def __init__(self, path: Path, *, straight_through: bool = False) -> None:
        from .onnx import read_header

        super().__init__(straight_through)
        self.path = path
        header = read_header(path)
        for item in header.inputs:
            if item.dtype is None:
                raise InvalidModel(
                    f"the input {item.name!r} is no tensor of numbers; export the model without "
                    "the steps that read texts, and send what they make of them"
                )
        self.inputs = tuple(FileInput(item.name, item.shape, item.dtype) for item in header.inputs)
        self.output_names = tuple(item.name for item in header.outputs)
        floating = [
            item.dtype for item in header.inputs if item.dtype and item.dtype.is_floating_point
        ]
        self.dtype = floating[0] if floating else self.dtype
        self._lowered: Lowered | None = None
        with contextlib.suppress(Unlowerable):  # first: the importer limits what a file may ask for
            self._lowered = self.graph()
        if not floating and self._lowered is not None:
            weights = {weight.dtype for weight in self._lowered.graph.parameters()}
            self.dtype = torch.float64 if torch.float64 in weights else self.dtype
        self._runtime = self._open()
        if self._runtime is not None and self._runtime.session.trained:
            listed = ", ".join(self._runtime.session.trained[:5])
            self.notes.append(
                f"The file was in training mode ({listed}); it is served in its inference form."
            )
        self.executor = "none" if self._runtime is None else self._runtime.session.executor

    def _open(self) -> "_Runtime | None":
        from .onnx import runtime

        refusal = "onnxruntime refuses the file"
        try:
            return _Runtime(runtime(self.path))
        except FailedPrecondition:
            refusal = "onnxruntime is not installed"
        except InvalidModel:  # a corrupt file was refused by the importer
            pass
        return self._evaluator(refusal)

    def _evaluator(self, refusal: str) -> "_Runtime | None":
        from .onnx import reference

        try:
            original = _Runtime(reference(self.path))
        except InvalidModel:
            self.notes.append(f"{refusal}, so the network was not verified.")
            return None
        self.notes.append(
            f"{refusal}, so the network was verified against the onnx package's evaluator."
        )
        return original

    @property
    def original(self) -> nn.Module | None:
        return self._runtime

    @property
    def precision(self) -> torch.dtype:
        coarse = self.executor == "onnx.reference" and self.dtype is torch.float64
        return torch.float32 if coarse else self.dtype  # its Erf, for one, rounds to float32

    def fall_back(self, failure: Exception | None) -> bool:
        from .onnx import Lacking

        if not isinstance(failure, Lacking):
            return False
        self._runtime = self._evaluator("onnxruntime lacks an operator of the file")
        self.executor = "none" if self._runtime is None else self._runtime.session.executor
        return True

    def doubt(self) -> bool:
        if self.executor != "onnxruntime":
            return False
        told = len(self.notes)
        other = self._evaluator("onnxruntime rounds this network coarsely")
        if other is None:
            del self.notes[told:]
            return False
        self._runtime, self.executor = other, other.session.executor
        return True

    def values(
        self, lowered: Lowered, examples: Sequence[Tensor], layers: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """The file's own values of layers, by a session that gives them all."""
        from .onnx import runtime

        wanted = {name: lowered.origins[name] for name in layers if name in lowered.origins}
        given = {*self.output_names, *(item.name for item in self.inputs)}
        try:
            session = runtime(self.path, also=sorted({*wanted.values()} - given))
            found = session.run(*(value.detach().cpu() for value in examples))
        except InterpretError:
            return {}
        by_name = dict(zip(session.output_names, found, strict=True))
        return {name: by_name[value] for name, value in wanted.items() if value in by_name}

    def has_control_flow(self) -> bool:
        return not {"If", "Loop", "Scan"}.isdisjoint(self.operators())

    def operators(self) -> Iterator[str]:
        import onnx

        model = onnx.load(str(self.path), load_external_data=False)
        pending = [model.graph.node, *(function.node for function in model.functions)]
        while pending:
            for node in pending.pop():
                yield node.op_type
                pending += [item.g.node for item in node.attribute if item.HasField("g")]

    @property
    def winners(self) -> int | None:
        session = None if self._runtime is None else self._runtime.session
        names = () if session is None else session.output_names
        if session is None or names != self.output_names:
            return None
        told = [i for i, name in enumerate(names) if name in session.named]
        return next((i for i in told if session.named[names[i]].winners), None)

    def labels(self, output: str) -> tuple[str, ...] | None:
        named = {} if self._runtime is None else self._runtime.session.named
        own = named.get(output)
        told = {item.labels for item in ({own} if own else {*named.values()})}
        if own is None or own.counted:  # perhaps names replace the positions further on
            told = {item.labels for item in named.values() if not item.counted} or told
        return told.pop() if len(told) == 1 else None

    def _import(self) -> Lowered:
        from .onnx import import_model

        return import_model(self.path, straight_through=self.straight_through)

    def lower(self, *examples: Tensor) -> Lowered:
        lowered, self._lowered = self._lowered or self._import(), None
        return lowered


class _Runtime(nn.Module):
    """What runs an original ONNX file, as a module; without gradients."""

    def __init__(self, session: "Runtime") -> None:
        super().__init__()
        self.session = session

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        device = inputs[0].device
        found = self.session.run(*(value.detach().cpu() for value in inputs))
        return tuple(value.to(device) for value in found)
