"""The report as one JSON document: every figure, and where it comes from.

Equal findings give equal bytes. What changes from run to run, of the same audit, stands under
`run` alone. Shares come with exact 95% intervals (Clopper-Pearson) over all samples of finished
batches.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from .. import masking
from ..plan import Plan
from ..records import Audit, Findings, Origin, Outcome, Sample, State, UnitRecord, Warned
from ..spec import AuditSpec
from .corruption import corruption_figures
from .evidence import Evidence
from .statistics import LEVEL, rounded, share
from .threats import confusion, proportion, threat_figures, unbounded_figures
from .words import verdict

FORMAT = 1
RUN = "run"
_PARTS = frozenset({"samples", "clean", "threats", "corruptions", "masking", "verdict", "files"})


def build(findings: Findings, files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The report.

    Args:
        findings: of a finished audit.
        files: SHA-256 of the bundle's files, by their paths in it.
    """
    audit, evidence = findings.audit, Evidence(findings)
    document = {
        "format": FORMAT,
        "origin": _origin(audit.origin),
        "spec": audit.spec.model_dump(mode="json"),
        "plan": audit.plan.model_dump(mode="json"),
        "complete": findings.complete,
        "samples": len(findings.samples),
        "planned": audit.plan.samples,
        "intervals": {"method": "Clopper-Pearson", "level": LEVEL},
        "clean": _clean(evidence),
        "threats": [threat_figures(evidence, norm) for norm in evidence.norms],
        "unbounded": unbounded_figures(evidence),
        "corruptions": corruption_figures(evidence),
        "classes": _classes(evidence),
        "masking": _masking(findings),
        "unconfirmed": _unconfirmed(evidence),
        "warnings": _warnings(findings.units),
        "notes": list(audit.plan.notes),
        "undone": _undone(findings),
        "files": dict(files or {}),
        RUN: _run(findings),
    }
    document["verdict"] = verdict(document)
    return document


def encode(document: Mapping[str, Any]) -> bytes:
    """The document as UTF-8 with sorted keys; equal documents give equal bytes."""
    text = json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def lasting(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without what changes from run to run."""
    return {key: value for key, value in document.items() if key != RUN}


def restore(
    document: Mapping[str, Any], samples: Sequence[Sample], outcomes: Sequence[Outcome]
) -> Findings:
    """Findings from a document and its tables; `build` makes the same document of them but for
    the seconds of stages.

    Raises:
        ValueError: the document is not of this format (also KeyError and TypeError where parts are
            missing).
    """
    if document["format"] != FORMAT:
        raise ValueError(f"the report is of format {document['format']}, not {FORMAT}")
    if missing := _PARTS - document.keys():
        raise ValueError(f"it lacks {min(missing)}")
    run, origin = document[RUN], document["origin"]
    audit = Audit(
        id=run["id"],
        spec=AuditSpec.model_validate(document["spec"]),
        plan=Plan.model_validate(document["plan"]),
        origin=Origin(**{key: _tupled(value) for key, value in origin.items()}),
        state=State.FINISHED,
        created=run["created"],
        started=run["started"],
        finished=run["finished"],
        seconds=run["seconds"],
    )
    units = [
        UnitRecord(0, item["stage"], (Warned(item["message"], tuple(item["rows"])),), 0.0)
        for item in document["warnings"]
    ]
    return Findings(audit, samples, outcomes, units, document["complete"])


def _clean(evidence: Evidence) -> dict[str, Any]:
    wrong = (item for item in evidence.samples.values() if not item.correct)
    return {
        "correct": len(evidence.correct),
        **proportion(len(evidence.correct), len(evidence.samples)),
        "confusion": confusion((item.label, item.decision) for item in wrong),
    }


def _classes(evidence: Evidence) -> list[dict[str, Any]]:
    broken = {
        (norm, radius): evidence.broken(norm, radius)
        for norm in evidence.norms
        for radius in evidence.radii(norm)
    }
    found = []
    for label, samples in evidence.classes.items():
        rows = {item.row for item in samples}
        correct = rows & evidence.correct
        robust = []
        for (norm, radius), lost in broken.items():
            standing = len(correct - lost)
            robust.append(
                {
                    "norm": norm,
                    "epsilon": radius,
                    "standing": standing,
                    "accuracy": share(standing, len(rows)),
                }
            )
        found.append(
            {
                "label": label,
                "name": evidence.name(label),
                "samples": len(rows),
                "correct": len(correct),
                "accuracy": share(len(correct), len(rows)),
                "robust": robust,
            }
        )
    return found


def _masking(findings: Findings) -> list[dict[str, Any]]:
    return [
        {
            "code": finding.code,
            "sentence": finding.sentence,
            "rows": list(finding.rows),
            "figures": dict(finding.figures),
        }
        for finding in masking.find(findings)
    ]


def _unconfirmed(evidence: Evidence) -> list[dict[str, Any]]:
    """Successes that an attack claimed and the original file did not confirm."""
    found = []
    for stage in evidence.stages():
        rows = [
            item.row for item in evidence.by_stage[stage.key] if item.claimed and not item.confirmed
        ]
        if rows:
            found.append({"stage": stage.key, "count": len(rows), "rows": rows})
    return found


def _warnings(units: Sequence[UnitRecord]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str], set[int]] = {}
    for unit in units:
        for warned in unit.warnings:
            rows.setdefault((unit.stage, warned.message), set()).update(warned.rows)
    return [
        {"stage": stage, "message": message, "rows": sorted(found)}
        for (stage, message), found in sorted(rows.items())
    ]


def _undone(findings: Findings) -> dict[str, int] | None:
    if findings.complete:
        return None
    plan = findings.audit.plan
    batches = len({sample.row // plan.batch_size for sample in findings.samples})
    return {
        "samples": plan.samples - len(findings.samples),
        "batches": plan.batches - batches,
    }


def _run(findings: Findings) -> dict[str, Any]:
    audit = findings.audit
    seconds: dict[str, float] = {}
    for unit in findings.units:
        seconds[unit.stage] = seconds.get(unit.stage, 0.0) + unit.seconds
    return {
        "id": audit.id,
        "created": audit.created,
        "started": audit.started,
        "finished": audit.finished,
        "seconds": audit.seconds,
        "stages": {stage: rounded(value) for stage, value in seconds.items()},
    }


def _origin(origin: Origin) -> dict[str, Any]:
    values = {item.name: getattr(origin, item.name) for item in fields(origin)}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    } | {"versions": dict(origin.versions)}


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
