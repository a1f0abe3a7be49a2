"""Audits as messages, and messages as audits."""

import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from interpret_api.v1 import audit_service_pb2 as pb
from interpret_api.v1 import types_pb2 as types

from . import _codec as codec
from ._chunks import CHUNK_BYTES
from .audits import FORMS, Audit, AuditOrigin, AuditPlan, AuditStep
from .errors import InvalidRequest, ServerError
from .results import Array, DataSet

Epsilon = float | Sequence[float]
Attack = str | Mapping[str, Any]
Labels = NDArray[np.int64]


def encode_spec(
    threats: Mapping[str, Epsilon], attacks: Sequence[Attack], suite: str, **fields: Any
) -> pb.AuditSpec:
    """What an audit is asked to do.

    Args:
        threats: norm -> epsilon, or several.
        attacks: names of plugins, or `{"plugin": ..., "name": ..., "params": {...}}`.
        suite: its name.
        fields: those of the message that need no reading.

    Raises:
        InvalidRequest: naming the argument.
    """
    try:
        return pb.AuditSpec(
            suite=_number(suite, pb.AuditSuite, "AUDIT_SUITE_", "suite"),
            threats=[
                pb.AuditThreat(
                    norm=_number(norm, pb.AuditNorm, "AUDIT_NORM_", "norm"),
                    epsilons=_epsilons(epsilon),
                )
                for norm, epsilon in threats.items()
            ],
            attacks=[_attack(item, index) for index, item in enumerate(attacks)],
            **fields,
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest(f"an argument cannot be sent: {error}") from error


def _number(word: str, enum: Any, prefix: str, field: str) -> Any:
    known = [name.removeprefix(prefix).lower() for name in enum.keys()[1:]]
    if word not in known:
        raise InvalidRequest.field(field, f"{word!r} is none of {', '.join(known)}")
    return enum.Value(prefix + word.upper())


def _epsilons(epsilon: Epsilon) -> list[float]:
    try:
        values = np.asarray(epsilon, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise InvalidRequest.field("epsilon", "give a number, or several") from None
    return [float(value) for value in values]


def _attack(item: Attack, index: int) -> pb.AuditAttack:
    if isinstance(item, str):
        return pb.AuditAttack(plugin=item)
    unknown = set(item) - {"plugin", "name", "params"}
    if unknown or "plugin" not in item:
        raise InvalidRequest.field(
            f"attacks[{index}]", "give the name of a plugin, or plugin, name and params"
        )
    return pb.AuditAttack(
        plugin=item["plugin"],
        name=item.get("name", ""),
        params_json=codec.encode_params(item.get("params")),
    )


def encode_form(form: str) -> Any:
    """The form of a report. Raises InvalidRequest."""
    if form not in FORMS:
        raise InvalidRequest.field("form", f"{form!r} is none of {', '.join(FORMS)}")
    return pb.ReportForm.Value(f"REPORT_FORM_{form.upper()}")


class Data:
    """The samples of an audit, and how they travel.

    Args:
        inputs: `(N, *input_shape)`, or encoded images: paths or bytes, one per sample; files are
            read when they are sent.
        labels: `(N,)`.
        dataset: on the server, in place of both; rows by name.

    Raises:
        InvalidRequest: naming the argument.
    """

    def __init__(self, inputs: Any, labels: Any, dataset: DataSet | str | None) -> None:
        if isinstance(inputs, DataSet) and dataset is None:
            inputs, dataset = None, inputs
        if (inputs is None) == (dataset is None):
            raise InvalidRequest.field("inputs", "give inputs with labels, or a data set")
        self._dataset = DataSet(dataset) if isinstance(dataset, str) else dataset
        self._inputs, self._labels = _read_inputs(inputs), _read_labels(labels)
        if self._dataset is not None and len(self._labels):
            raise InvalidRequest.field("labels", "those of a data set lie on the server")
        if self._dataset is None and len(self._inputs) != len(self._labels):
            raise InvalidRequest.field(
                "labels", f"{len(self._labels)} labels for {len(self._inputs)} samples"
            )
        if self._dataset is None and not len(self._inputs):
            raise InvalidRequest.field("inputs", "there are no samples")

    def messages(self, spec: pb.AuditSpec) -> Iterator[Message]:
        """Those of the call."""
        header = pb.AuditHeader(spec=spec, samples=len(self._labels))
        yield pb.CreateAuditRequest(header=header)
        if self._dataset is not None:
            inputs = codec.encode_inputs(self._dataset)
            yield pb.CreateAuditRequest(samples=pb.AuditSamples(inputs=inputs))
            return
        cut = _arrays if isinstance(self._inputs, np.ndarray) else _images
        start = 0
        for count, inputs in cut(self._inputs):
            labels = self._labels[start : start + count].tolist()
            yield pb.CreateAuditRequest(samples=pb.AuditSamples(inputs=inputs, labels=labels))
            start += count


def _read_inputs(inputs: Any) -> Any:
    if inputs is None:
        return ()
    if isinstance(inputs, Mapping):
        raise InvalidRequest.field("inputs", "audits are of models with one input")
    if isinstance(inputs, str | PathLike | bytes):
        inputs = [inputs]
    if isinstance(inputs, list | tuple) and any(
        isinstance(item, str | PathLike | bytes) for item in inputs
    ):
        for row, item in enumerate(inputs):
            if not isinstance(item, bytes) and not Path(item).is_file():
                raise InvalidRequest.field(f"inputs[{row}]", f"there is no file {str(item)!r}")
        return inputs
    array = codec.to_array(inputs, "inputs")
    if not array.ndim:
        raise InvalidRequest.field("inputs", "give one row per sample")
    return array


def _read_labels(labels: Any) -> Labels:
    if labels is None:
        return np.zeros(0, np.int64)
    array = codec.to_array(labels, "labels")
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise InvalidRequest.field("labels", "give the true class of every sample")
    return array.astype(np.int64)


def _arrays(rows: Array) -> Iterator[tuple[int, types.Inputs]]:
    step = max(1, CHUNK_BYTES // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        yield len(part), types.Inputs(tensor=codec.encode_tensor(part, "inputs"))


def _images(items: Sequence[Any]) -> Iterator[tuple[int, types.Inputs]]:
    waiting: list[bytes] = []
    for position, item in enumerate(items, 1):
        waiting.append(item if isinstance(item, bytes) else Path(item).read_bytes())
        if sum(map(len, waiting)) >= CHUNK_BYTES or position == len(items):
            yield len(waiting), types.Inputs(images=types.EncodedImages(images=waiting))
            waiting = []


def decode_audit(message: pb.Audit) -> Audit:
    """An audit as it stands."""
    if not message.id:
        raise ServerError("the server sent no audit")
    progress, plan, step = message.progress, message.plan, message.current
    return Audit(
        id=message.id,
        state=_word(message.state, pb.AuditState, "AUDIT_STATE_"),
        error=message.error,
        spec=_spec(message.spec),
        plan=AuditPlan(plan.samples, plan.batch_size, tuple(plan.stages), tuple(plan.notes)),
        origin=_origin(message.origin),
        done=progress.done,
        total=progress.total,
        samples=progress.samples,
        correct=progress.correct,
        standing=progress.standing,
        created=message.created,
        started=message.started if message.HasField("started") else None,
        finished=message.finished if message.HasField("finished") else None,
        seconds=message.seconds,
        current=AuditStep(step.batch, step.stage, step.done, step.total)
        if message.HasField("current")
        else None,
    )


def _word(number: int, enum: Any, prefix: str) -> str:
    names = {value: name for name, value in enum.items()}
    return str(names.get(number, f"{prefix}UNKNOWN").removeprefix(prefix).lower())


def _spec(spec: pb.AuditSpec) -> dict[str, Any]:
    return {
        "model": spec.model,
        "title": spec.title,
        "suite": _word(spec.suite, pb.AuditSuite, "AUDIT_SUITE_"),
        "attacks": [
            {"plugin": item.plugin, "name": item.name, "params": _json(item.params_json)}
            for item in spec.attacks
        ],
        "threats": [
            {
                "norm": _word(item.norm, pb.AuditNorm, "AUDIT_NORM_"),
                "epsilons": list(item.epsilons),
            }
            for item in spec.threats
        ],
        "minimal": spec.minimal,
        "seed": spec.seed,
        "batch_size": spec.batch_size if spec.HasField("batch_size") else None,
        "budget": {
            name: getattr(spec.budget, name) if spec.budget.HasField(name) else None
            for name in ("seconds", "queries")
        },
        "confirm_small_epsilon": spec.confirm_small_epsilon,
    }


def _origin(origin: pb.AuditOrigin) -> AuditOrigin:
    bounds = (origin.bounds.lower, origin.bounds.upper) if origin.HasField("bounds") else None
    return AuditOrigin(
        model=origin.model,
        model_version=origin.model_version,
        model_sha256=origin.model_sha256,
        model_format=origin.model_format,
        manifest=_json(origin.manifest_json),
        input_shape=tuple(origin.input_shape),
        bounds=bounds,
        classes=origin.classes,
        labels=tuple(origin.labels),
        data=origin.data,
        data_sha256=origin.data_sha256,
        versions=dict(sorted(origin.versions.items())),
        device=origin.device,
        precision=origin.precision,
    )


def _json(text: str) -> Mapping[str, Any]:
    value = json.loads(text) if text else {}
    if not isinstance(value, dict):
        raise ServerError("the server sent JSON that is no object")
    return value
