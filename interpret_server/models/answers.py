"""What a model's file itself answers, run by onnxruntime, torch.jit or torch.export."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FailedPrecondition, InterpretError
from .assembly import Body
from .formats import digest, identify
from .inputs import resolve_inputs
from .manifest import Manifest
from .original import Original
from .sources import open_source

_DECISIONS = ("argmax", "classes")
_PROBABILITIES = ("probabilities", "sigmoid")


@dataclass(frozen=True)
class Answers:
    """What a file answers to N rows, on the CPU.

    Args:
        scores: `(N, K)`: the file's own output. A single number in a row becomes two classes:
            a logit z becomes (0, z), a probability p becomes (1 - p, p). A file that gives the
            winner alone has 1 there and 0 for all others.
        classes: `(N,)` int64, the file's decision: the largest score, the first of equal ones.
    """

    scores: Tensor
    classes: Tensor


class FileAnswers:
    """The answers of a model's file, which is opened again when they are first asked for.

    Args:
        path: of the file.
        sha256: of the file, as it was loaded.
        manifest: with which it was loaded.
        original: the opened file, which the served form was verified against.
        body: the served form.
        stays_open: it does in any case.
    """

    def __init__(
        self,
        path: Path,
        sha256: str,
        manifest: Manifest,
        original: Original,
        body: Body,
        *,
        stays_open: bool,
    ) -> None:
        self._path, self._sha256, self._manifest = path, sha256, manifest
        self._index, self._at_once = body.index, body.at_once
        self._source, self._classes = body.source, body.classes
        self._executor = original.source.executor
        self._original = original if stays_open else None

    def __call__(self, rows: Tensor) -> Answers:
        """The file's answers to callers' rows, on the CPU.

        Raises:
            FailedPrecondition: the file is gone or has changed, or nothing here runs it.
        """
        if self._original is None:
            with torch.random.fork_rng(devices=()):  # whether it is open may not show in answers
                self._original = self._open()
        return read_answers(
            self._original.output(self._index, self._at_once)(rows), self._source, self._classes
        )

    def _open(self) -> Original:
        manifest, path = self._manifest, self._path
        try:
            found = digest(path)[0]
        except OSError:
            found = ""
        if found != self._sha256:
            lost = "has changed since it was loaded" if found else "is no longer there"
            raise FailedPrecondition(f"model: its file {lost}; load it again")
        try:
            file_format = identify(path, manifest.format)
            source = open_source(file_format, path, straight_through=manifest.straight_through)
            original = Original(source, resolve_inputs(manifest, source.inputs, source.dtype))
        except InterpretError as error:
            raise FailedPrecondition(f"model: its file cannot be opened: {error.message}") from None
        source.drop_graph()
        if source.executor != self._executor:
            source.doubt()
        if original.module is None or source.executor != self._executor:
            raise FailedPrecondition("model: nothing here runs its file as it is")
        return original


def read_answers(values: Tensor, source: str, classes: int) -> Answers:
    """A file's chosen output as scores and decisions.

    Args:
        values: `(N, numbers in a row)`.
        source: what the logits were recovered from; see `ModelInfo.logits_from`.
        classes: K.
    """
    if source in _DECISIONS:
        decided = values[:, 0].round().long()
        return Answers((decided[:, None] == torch.arange(classes)).float(), decided)
    if values.shape[1] == 1 and source != "values":
        first = 1 - values if source in _PROBABILITIES else torch.zeros_like(values)
        values = torch.cat([first, values], 1)
    return Answers(values, values.argmax(1))
