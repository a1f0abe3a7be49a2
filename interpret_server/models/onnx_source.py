"""An ONNX file as it runs by itself, and as it can be lowered."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import FailedPrecondition, InterpretError, InvalidModel
from .inputs import FileInput
from .lowered import Lowered, Unlowerable
from .sources import Source

if TYPE_CHECKING:
    from .onnx.runtime import Runtime


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
        self.files = header.files
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

    def fall_back(self, failure: Exception | None, example: Sequence[Tensor]) -> bool:
        from .onnx import Lacking

        lacks = isinstance(failure, Lacking)
        if not (lacks or _runs(self._lowered, example)):
            return False
        if self.executor == "onnxruntime":
            verb = "lacks an operator of" if lacks else "fails on"
            self._runtime = self._evaluator(f"onnxruntime {verb} the file")
        else:
            self._runtime = None
            self.notes = [note for note in self.notes if "evaluator" not in note]
            self.notes.append("Nothing else runs the file, so the network was not verified.")
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

    def drop_graph(self) -> None:
        self._lowered = None

    def lower(self, *examples: Tensor) -> Lowered:
        lowered, self._lowered = self._lowered or self._import(), None
        return lowered


@torch.no_grad()
def _runs(lowered: Lowered | None, example: Sequence[Tensor]) -> bool:
    try:
        return lowered is not None and lowered.graph.forward(*example) is not None
    except Exception:  # whatever a foreign program raises
        return False


class _Runtime(nn.Module):
    """What runs an original ONNX file, as a module; without gradients."""

    def __init__(self, session: "Runtime") -> None:
        super().__init__()
        self.session = session

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        device = inputs[0].device
        found = self.session.run(*(value.detach().cpu() for value in inputs))
        return tuple(value.to(device) for value in found)
