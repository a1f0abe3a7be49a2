"""Findings that tests make up, small enough that every figure is worked out by hand."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from interpret_server.audits.files import AuditFiles
from interpret_server.audits.plan import Plan, Stage, StageKind
from interpret_server.audits.records import (
    Audit,
    Findings,
    Origin,
    Outcome,
    Sample,
    State,
    UnitRecord,
    Warned,
    digest_of,
)
from interpret_server.audits.spec import AuditSpec

SHAPE = (1, 4, 4)
SPEC = AuditSpec.model_validate(
    {"model": "net", "title": "A test", "threats": [{"norm": "linf", "epsilons": [0.1, 0.3]}]}
)
CORRUPTION = AuditSpec(model="net", suite="corruption")
ORIGIN = Origin(
    model="net",
    model_version="1",
    model_sha256="ab" * 32,
    model_format="onnx",
    manifest="{}",
    input_shape=SHAPE,
    bounds=(0.0, 1.0),
    classes=3,
    labels=("cat", "dog", "=1+1"),
    data="digits",
    data_sha256="cd" * 32,
    versions={"interpret-server": "1.0", "numpy": "2"},
    device="cpu",
    precision="float32",
)
LABELS = (0, 1, 2, 0, 1, 2, 0, 1, 2, 0)
DECISIONS = (0, 1, 2, 1, 1, 2, 0, 1, 0, 0)  # rows 3 and 8 are wrong

# Per stage: row -> distance of a confirmed example, or None.
ATTACKS: dict[str, dict[int, float | None]] = {
    "linf:0.1:pgd": {0: 0.1, 1: None, 2: None, 4: None, 5: None, 6: None, 7: None, 9: None},
    "linf:0.1:square": {
        1: None,
        2: 0.1 * (1 + 5e-7),
        4: None,
        5: None,
        6: None,
        7: None,
        9: None,
    },
    "linf:0.3:pgd": {1: 0.3, 4: 0.25, 5: None, 6: None, 7: None, 9: None},
    "linf:0.3:square": {5: 0.3, 6: None, 7: None, 9: None},
    "minimal:linf:fab": {
        0: 0.05,
        1: 0.2,
        2: 0.08,
        4: 0.25,
        5: None,
        6: 0.35,
        7: None,
        9: 0.09,
    },
    "unbounded:linf": {0: 0.9, 1: 0.01, 2: 0.9},
}


def stage_of(key: str) -> Stage:
    """The stage that a key speaks of."""
    first, *rest = key.split(":")
    if key == "clean":
        return Stage(key=key, kind=StageKind.CLEAN)
    if first == "corruption":
        return Stage(
            key=key, kind=StageKind.CORRUPTION, attack=rest[0], severity=int(rest[1]), plugin="c"
        )
    if first == "minimal":
        return Stage(key=key, kind=StageKind.MINIMAL, attack=rest[1], norm=rest[0], plugin="p")
    if first == "unbounded":
        return Stage(
            key=key,
            kind=StageKind.UNBOUNDED,
            attack="pgd without a radius",
            norm=rest[0],
            epsilon=1.0,
            first_batch=True,
        )
    return Stage(key=key, kind=StageKind.ATTACK, attack=rest[1], norm=first, epsilon=float(rest[0]))


def make(
    labels: Sequence[int] = LABELS,
    decisions: Sequence[int] = DECISIONS,
    attacks: Mapping[str, Mapping[int, float | None]] = ATTACKS,
    *,
    claims: frozenset[tuple[str, int]] = frozenset({("linf:0.1:square", 1)}),
    batch_size: int = 4,
    planned: int | None = None,
    **changes: object,
) -> Findings:
    """Findings of attacks by stage: row -> distance of its confirmed example, or None.

    Args:
        claims: successes that were not confirmed.
        planned: samples; None for all that there are.
        changes: of the audit.
    """
    stages = (stage_of("clean"), *(stage_of(key) for key in attacks))
    total = len(labels)
    plan = Plan(samples=planned or total, batch_size=batch_size, stages=stages, notes=("A note.",))
    samples = [
        Sample(row, label, digest_of(input_of(row), label), decision, 0.1 + row / 3)
        for row, (label, decision) in enumerate(zip(labels, decisions, strict=True))
    ]
    outcomes, units = [], []
    for batch in range(-(-total // batch_size)):
        rows = range(batch * batch_size, min(total, (batch + 1) * batch_size))
        units.append(UnitRecord(batch, "clean", (), 0.5))
        for number, stage in enumerate(stages[1:], start=1):
            if stage.first_batch and batch:
                continue
            warnings = (Warned("Gradients vanish.", (rows[0],)),) if number == 1 else ()
            units.append(UnitRecord(batch, stage.key, warnings, 0.25))
            outcomes += [
                outcome_of(stage, row, labels[row], attacks[stage.key][row], claims)
                for row in rows
                if row in attacks[stage.key]
            ]
    threats = any(stage.norm for stage in stages)
    audit = Audit(
        "one",
        SPEC if threats else CORRUPTION,
        plan,
        ORIGIN,
        State.FINISHED,
        created=10.0,
        started=11.0,
        finished=20.0,
        seconds=8.5,
    )
    complete = planned in (None, total)
    return Findings(dataclasses.replace(audit, **changes), samples, outcomes, units, complete)  # type: ignore[arg-type]


def outcome_of(
    stage: Stage,
    row: int,
    label: int,
    distance: float | None,
    claims: frozenset[tuple[str, int]],
) -> Outcome:
    """An outcome whose example has a distance in the norm of its stage."""
    if distance is None:
        return Outcome(row, stage.key, (stage.key, row) in claims, False, 20)
    example = example_of(row, distance)
    return Outcome(
        row,
        stage.key,
        True,
        True,
        10 + row,
        digest_of(example, label),
        (label + 1) % 3,
        0.75,
        distance / 7,
        16.0,
        16 * distance,
        4 * distance,
        distance,
    )


def input_of(row: int) -> np.ndarray:
    """The values of a sample."""
    return np.linspace(0, 1, 16, dtype=np.float32).reshape(SHAPE) * np.float32(1 - row / 100)


def example_of(row: int, distance: float) -> np.ndarray:
    """Another image."""
    return np.clip(input_of(row) + np.float32(distance), 0, 1)


def write_files(findings: Findings, folder: Path) -> AuditFiles:
    """The files that an audit has of its findings."""
    files = AuditFiles(folder)
    files.model.mkdir(parents=True)
    (files.model / "model.onnx").write_bytes(b"a network")
    plan = findings.audit.plan
    for batch in range(-(-len(findings.samples) // plan.batch_size)):
        rows = range(
            batch * plan.batch_size, min(len(findings.samples), (batch + 1) * plan.batch_size)
        )
        files.write_inputs(batch, np.stack([input_of(row) for row in rows]))
        for number, stage in enumerate(plan.stages):
            found = [
                example_of(item.row, item.linf)
                for item in findings.outcomes
                if item.stage == stage.key and item.confirmed and item.row in rows
            ]
            if found:
                files.write_examples(batch, number, np.stack(found))
    return files
