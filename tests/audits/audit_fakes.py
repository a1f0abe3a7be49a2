"""Audits without a model: specifications, plans and results that tests make up."""

import dataclasses
from pathlib import Path

import numpy as np

from interpret_server.audits.plan import Plan, Stage, StageKind, Unit
from interpret_server.audits.records import (
    Audit,
    Origin,
    Outcome,
    Sample,
    State,
    UnitResult,
    Warned,
    digest_of,
)
from interpret_server.audits.spec import AuditSpec
from interpret_server.engine.api import Array, InputInfo, ModelInfo, PluginInfo, Verification
from interpret_server.models.manifest import Manifest

CLASSES = 3
SHAPE = (1, 2, 2)

SPEC = AuditSpec.model_validate(
    {"model": "net", "threats": [{"norm": "linf", "epsilons": [0.1, 0.3]}], "batch_size": 4}
)

ORIGIN = Origin(
    model="net",
    model_version="1",
    model_sha256="ab" * 32,
    model_format="onnx",
    manifest="{}",
    input_shape=SHAPE,
    bounds=(0.0, 1.0),
    classes=CLASSES,
    labels=("a", "b", "c"),
    data="digits",
    data_sha256="",
    versions={"interpret-server": "1.0"},
    device="cpu",
    precision="float32",
)


def model_info(**changes: object) -> ModelInfo:
    """A small model of three classes."""
    info = ModelInfo(
        name="net",
        version="1",
        format="onnx",
        form="graph",
        form_reason="",
        sha256="ab" * 32,
        size=10,
        device="cpu",
        precision="float32",
        input_name="x",
        output_name="y",
        input_shape=SHAPE,
        input_dtype="float32",
        input_layout="CHW",
        bounds=(0.0, 1.0),
        classes=CLASSES,
        labels=(),
        logits_from="logits",
        layers=(),
        capabilities=frozenset({"gradient"}),
        lacking={},
        verification=Verification("onnxruntime", 0.0, 0.0, (1,), 1),
        notes=(),
        manifest=Manifest(),
        max_batch=4,
        inputs=(InputInfo("x", "values", SHAPE, "float32"),),
    )
    return dataclasses.replace(info, **changes)  # type: ignore[arg-type]


def plugin_info(name: str) -> PluginInfo:
    """An attack that knows a norm and a radius."""
    return PluginInfo(
        name=name,
        kind="attack",
        api=1,
        version="1",
        distribution="fake",
        summary="",
        description="",
        requires=frozenset(),
        rows="independent",
        inputs="required",
        target_kinds=frozenset(),
        schema={
            "properties": {
                "norm": {"enum": ["linf", "l2", "l1"]},
                "epsilon": {},
                "queries": {},
                "steps": {},
            }
        },
        fields=(),
        tensors=(),
    )


def plan(samples: int = 10, batch_size: int = 4) -> Plan:
    """A clean stage, an attack at two radii, a smallest change, and a check on the first batch."""
    return Plan(
        samples=samples,
        batch_size=batch_size,
        stages=(
            Stage(key="clean", kind=StageKind.CLEAN),
            *(
                Stage(
                    key=f"linf:{epsilon}:pgd",
                    kind=StageKind.ATTACK,
                    plugin="pgd",
                    norm="linf",
                    epsilon=epsilon,
                )
                for epsilon in (0.1, 0.3)
            ),
            Stage(key="minimal:linf:fab", kind=StageKind.MINIMAL, plugin="fab", norm="linf"),
            Stage(
                key="unbounded:linf",
                kind=StageKind.UNBOUNDED,
                plugin="pgd",
                norm="linf",
                epsilon=1.0,
                first_batch=True,
            ),
        ),
    )


def audit(audit_id: str = "one", **changes: object) -> Audit:
    """An audit of which nothing is done."""
    made = Audit(audit_id, SPEC, plan(), ORIGIN, State.QUEUED, created=12.5)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def result_of(unit: Unit, given: Plan) -> UnitResult:
    """What a unit comes to: every third sample is misclassified, every second falls at 0.3."""
    stage, rows = given.stages[unit.stage], given.rows(unit.batch)
    values = np.stack([np.full(SHAPE, row / 1000, np.float32) for row in rows])
    if stage.kind is StageKind.CLEAN:
        samples = tuple(
            Sample(row, row % CLASSES, digest_of(value, row % CLASSES), row % CLASSES, 0.75)
            if row % 3
            else Sample(row, 0, digest_of(value, 0), 1, float("nan"))
            for row, value in zip(rows, values, strict=True)
        )
        return UnitResult(unit.batch, stage.key, samples, examples=values, seconds=0.5)
    attacked = [row for row in rows if row % 3]
    found = [row for row in attacked if row % 2 and (stage.epsilon or 0) > 0.2]
    outcomes = tuple(
        Outcome(row, stage.key, True, True, 7, f"{row:064}", 2, 0.5, 0.1, 3.0, 0.5, 0.25, 0.29)
        if row in found
        else Outcome(row, stage.key, False, False, 9)
        for row in attacked
    )
    examples = values[[row - rows.start for row in found]] + 0.29 if found else None
    warned = (Warned("a sentence", tuple(attacked)),)
    return UnitResult(unit.batch, stage.key, (), outcomes, examples, warned, seconds=0.25)


def array(values: np.ndarray, dtype: str | None = None) -> Array:  # type: ignore[type-arg]
    """A numpy array as a caller sends it."""
    return Array(dtype or values.dtype.name, values.shape, values.tobytes())


def tree(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(str(item.relative_to(folder)) for item in folder.rglob("*") if item.is_file())
