"""What audits ask of a worker: a file's own answers, and attacks."""

import json
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..data.arrays import as_array
from ..engine.api import Call, Event, ModelInfo, Progress, Result, Target, Worker
from ..errors import FailedPrecondition, InterpretError, InvalidRequest
from .files import Given
from .plan import Stage
from .records import Rows

Report = Callable[[int, int], None]  # told how many steps are done, of how many


@dataclass(frozen=True)
class Answers:
    """What a model's file answers to N rows.

    Args:
        inputs: `(N, *input_shape)`, the rows as plugins see them.
        decisions: `(N,)`, the file's classes.
        scores: `(N, K)` float64, the file's; None where it names the winner alone.
        confidences: `(N,)` float64, the probability of each decision; NaN without scores.
        served: `(N,)`, the classes that the served form gives.
    """

    inputs: Rows
    decisions: NDArray[np.int64]
    scores: NDArray[np.float64] | None
    confidences: NDArray[np.float64]
    served: NDArray[np.int64]

    def margins(self, labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """By how much each decision's score exceeds that of the label; NaN without scores."""
        if self.scores is None:
            return np.full(len(self.decisions), np.nan)
        rows = np.arange(len(labels))
        return self.scores[rows, self.decisions] - self.scores[rows, labels]

    def leave(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Where the decision is another class than the label; equal scores are no decision."""
        left: NDArray[np.bool_] = self.decisions != labels
        if self.scores is not None:
            left &= self.margins(labels) > 0
        return left


@dataclass(frozen=True)
class Attacked:
    """What an attack says that it found.

    Args:
        adversarial: `(N, *input_shape)`.
        success: `(N,)` bool.
        queries: `(N,)`.
        warnings: sentences, each with the rows of the call that it is about.
    """

    adversarial: Rows
    success: NDArray[np.bool_]
    queries: NDArray[np.int64]
    warnings: tuple[tuple[str, tuple[int, ...]], ...]


async def answers(worker: Worker, model: ModelInfo, rows: Given | Rows, seed: int = 0) -> Answers:
    """The answers of a model's file, run by onnxruntime, torch.jit or torch.export.

    Args:
        seed: for networks that draw random numbers from torch.

    Raises:
        FailedPrecondition: nothing runs the file here, or it has changed.
    """
    result = await _result(worker, _call(model, "_original", rows, seeds=(seed,)))
    scores = _array(result, "scores").astype(np.float64)
    decisions = _array(result, "classes").astype(np.int64)
    named = model.logits_from in ("argmax", "classes")
    return Answers(
        inputs=_array(result, "inputs").astype(np.float32),
        decisions=decisions,
        scores=None if named else scores,
        confidences=_confidences(model.logits_from, scores, decisions),
        served=_array(result, "logits").argmax(1).astype(np.int64),
    )


async def check_images(
    worker: Worker, model: ModelInfo, images: tuple[bytes, ...], first: int
) -> None:
    """Have a worker decode images as it does in every call; this process never does.

    Args:
        first: number of the first one among the samples.

    Raises:
        InvalidRequest: the model takes no images, or `inputs` has one that is none or does not
            fit, with its number.
    """
    try:
        await _result(worker, _call(model, "_decode", images))
    except InvalidRequest as error:
        place = re.match(r"inputs\.images\[(\d+)\]: ", error.message)
        if place is None:
            raise
        told = error.message[place.end() :]
        raise InvalidRequest.field("inputs", f"row {first + int(place[1])}: {told}") from None


async def attack(
    worker: Worker,
    model: ModelInfo,
    stage: Stage,
    inputs: Rows,
    labels: Sequence[int],
    seeds: Sequence[int],
    report: Report,
) -> Attacked:
    """Run a stage's attack on some rows.

    Raises:
        FailedPrecondition: the plugin's result is not that of an attack.
    """
    call = _call(
        model,
        stage.plugin,
        inputs,
        params=json.dumps(stage.params, sort_keys=True),
        targets=tuple(Target("class", (label,)) for label in labels),
        seeds=tuple(seeds),
    )
    result = await _result(worker, call, report)
    missing = {"adversarial", "success"} - set(result.tensors)
    if missing:
        raise FailedPrecondition(f"{stage.plugin} gives no {' and no '.join(sorted(missing))}")
    spent = result.metrics.get("queries", (0.0,) * len(labels))
    return Attacked(
        adversarial=_array(result, "adversarial").astype(np.float32),
        success=_array(result, "success").astype(bool).reshape(len(labels)),
        queries=np.asarray(spent).astype(np.int64),
        warnings=tuple((item.message, item.rows) for item in result.warnings),
    )


def _call(model: ModelInfo, plugin: str, rows: Given | Rows, **fields: Any) -> Call:
    inputs = as_array(rows) if isinstance(rows, np.ndarray) else rows
    return Call(
        model=model.name,
        plugin=plugin,
        inputs=inputs,
        client="audit",
        priority=-1,
        alone=True,
        **fields,
    )


async def _result(worker: Worker, call: Call, report: Report | None = None) -> Result:
    """The result of a call, which is closed at once where its reader is cancelled."""
    async with aclosing(cast(AsyncGenerator[Event, None], worker.run(call))) as events:
        async for event in events:
            if isinstance(event, Result):
                return event
            if report is not None and isinstance(event, Progress):
                report(event.done, event.total)
    raise InterpretError("the worker ended a call without a result")


def _array(result: Result, name: str) -> NDArray[Any]:
    found = result.tensors[name]
    return np.frombuffer(found.data, np.dtype(found.dtype).newbyteorder("<")).reshape(found.shape)


def _confidences(
    source: str, scores: NDArray[np.float64], decisions: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The probability that a file gives its decisions.

    Args:
        source: what its scores are; see `ModelInfo.logits_from`.
    """
    rows = np.arange(len(decisions))
    if source in ("argmax", "classes"):
        return np.full(len(decisions), np.nan)
    if source in ("softmax", "probabilities", "sigmoid"):
        return scores[rows, decisions]
    if source in ("log_softmax", "log_probabilities"):
        return np.asarray(np.exp(scores[rows, decisions]))
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(powers[rows, decisions] / powers.sum(1))
