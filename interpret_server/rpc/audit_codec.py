"""Between the messages of `AuditService` and the values of `audits`."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from interpret_api.v1 import audit_service_pb2 as pb

from ..audits.ingest import DataChunk, StoredSet
from ..audits.records import Audit, Origin
from ..audits.spec import AuditSpec
from ..data import StoredRows
from ..engine.api import Array
from ..errors import InvalidRequest, Violation
from . import codec


def _words(enum: Any, prefix: str, default: str) -> dict[int, str]:
    """What the numbers of an enum stand for, in the words of `audits`."""
    known = {number: name.removeprefix(prefix).lower() for name, number in enum.items()}
    return {**known, 0: default}


_SUITES = _words(pb.AuditSuite, "AUDIT_SUITE_", "standard")
_NORMS = _words(pb.AuditNorm, "AUDIT_NORM_", "linf")
_FORMS = _words(pb.ReportForm, "REPORT_FORM_", "html")


def _word(number: int, words: Mapping[int, str], enum: Any, field: str) -> str:
    if number not in words:
        raise InvalidRequest.field(field, f"{number} is none of {', '.join(enum.keys()[1:])}")
    return words[number]


def to_form(number: int) -> str:
    """The form that a report is asked for in. Raises InvalidRequest."""
    return _word(number, _FORMS, pb.ReportForm, "form")


def to_spec(message: pb.AuditSpec) -> AuditSpec:
    """What an audit is asked to do.

    Raises:
        InvalidRequest: with one violation for every wrong field, such as `threats[0].epsilons[1]`.
    """
    budget = {
        name: getattr(message.budget, name)
        for name in ("seconds", "queries")
        if message.budget.HasField(name)
    }
    fields: dict[str, Any] = {
        "model": codec.required(message.model, "model", "a loaded model; ListModels lists them"),
        "title": message.title,
        "suite": _word(message.suite, _SUITES, pb.AuditSuite, "suite"),
        "attacks": [_attack(item, index) for index, item in enumerate(message.attacks)],
        "threats": [
            {
                "norm": _word(item.norm, _NORMS, pb.AuditNorm, f"threats[{index}].norm"),
                "epsilons": list(item.epsilons),
            }
            for index, item in enumerate(message.threats)
        ],
        "seed": message.seed,
        "budget": budget,
        "confirm_small_epsilon": message.confirm_small_epsilon,
    }
    for name in ("minimal", "batch_size"):
        if message.HasField(name):
            fields[name] = getattr(message, name)
    try:
        return AuditSpec.model_validate(fields)
    except ValidationError as error:
        found = [_violation(item) for item in error.errors(include_url=False)]
    violations = [
        item
        for item in found
        if not any(other.field.startswith(f"{item.field}[") for other in found)  # it says it better
    ]
    told = "; ".join(f"{item.field}: {item.description}" for item in violations)
    raise InvalidRequest(told, violations=violations)


def _attack(message: pb.AuditAttack, index: int) -> dict[str, Any]:
    try:
        params = json.loads(message.params_json or "{}")
    except (ValueError, RecursionError):
        params = None
    if not isinstance(params, dict):
        raise InvalidRequest.field(
            f"attacks[{index}].params_json", "give the parameters as a JSON object"
        )
    return {"plugin": message.plugin, "name": message.name, "params": params}


def _violation(item: Any) -> Violation:
    field = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]
    ).removeprefix(".")
    told = str(item["msg"]).removeprefix("Value error, ")
    if not field:  # about several fields; the first word says which
        field, _, told = told.partition(": ")
    return Violation(field, told[:1].lower() + told[1:])


def to_samples(message: pb.AuditSamples) -> DataChunk | StoredSet:
    """Some samples, or the data set on the server that has them all.

    Raises:
        InvalidRequest: naming `inputs` or `labels`.
    """
    match inputs := codec.to_inputs(message.inputs):
        case StoredRows():
            if message.labels:
                raise InvalidRequest.field("labels", "those of a data set lie on the server")
            if inputs.rows:
                raise InvalidRequest.field(
                    "inputs.dataset.rows",
                    "an audit takes rows that follow each other; give start and count",
                )
            return StoredSet(inputs.name, inputs.start, inputs.count)
        case Array() | tuple():
            if not message.labels:
                raise InvalidRequest.field("labels", "give the true class of every sample")
            return DataChunk(inputs, tuple(message.labels))
        case None:
            raise InvalidRequest.field("inputs", "give a tensor, encoded images or a data set")
        case _:
            raise InvalidRequest.field("inputs.named", "audits are of models with one input")


def from_audit(audit: Audit) -> pb.Audit:
    """An audit as it stands."""
    return pb.Audit(
        id=audit.id,
        state=f"AUDIT_STATE_{audit.state.name}",
        error=audit.error,
        spec=_from_spec(audit.spec),
        plan=pb.AuditPlan(
            samples=audit.plan.samples,
            batch_size=audit.plan.batch_size,
            stages=[stage.key for stage in audit.plan.stages],
            notes=audit.plan.notes,
        ),
        origin=_from_origin(audit.origin),
        progress=pb.AuditProgress(
            done=audit.done,
            total=audit.total,
            samples=audit.samples,
            correct=audit.correct,
            standing=audit.standing,
        ),
        created=audit.created,
        started=audit.started,
        finished=audit.finished,
        seconds=audit.seconds,
        current=None if audit.current is None else pb.AuditStep(**vars(audit.current)),
    )


def _from_spec(spec: AuditSpec) -> pb.AuditSpec:
    return pb.AuditSpec(
        model=spec.model,
        title=spec.title,
        suite=f"AUDIT_SUITE_{spec.suite.upper()}",
        attacks=[
            pb.AuditAttack(
                plugin=item.plugin, name=item.name, params_json=json.dumps(dict(item.params))
            )
            for item in spec.attacks
        ],
        threats=[
            pb.AuditThreat(norm=f"AUDIT_NORM_{item.norm.upper()}", epsilons=item.epsilons)
            for item in spec.threats
        ],
        minimal=spec.minimal,
        seed=spec.seed,
        batch_size=spec.batch_size,
        budget=pb.AuditBudget(seconds=spec.budget.seconds, queries=spec.budget.queries),
        confirm_small_epsilon=spec.confirm_small_epsilon,
    )


def _from_origin(origin: Origin) -> pb.AuditOrigin:
    message = pb.AuditOrigin(
        model=origin.model,
        model_version=origin.model_version,
        model_sha256=origin.model_sha256,
        model_format=origin.model_format,
        manifest_json=origin.manifest,
        input_shape=origin.input_shape,
        classes=origin.classes,
        labels=origin.labels,
        data=origin.data,
        data_sha256=origin.data_sha256,
        versions=dict(origin.versions),
        device=origin.device,
        precision=origin.precision,
    )
    message.bounds.lower, message.bounds.upper = origin.bounds
    message.bounds.SetInParent()
    return message
