"""A worker that keeps and loads a file without running it, and runners that compute nothing."""

import asyncio
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from audit_fakes import CLASSES, SHAPE, model_info, plugin_info

from interpret_server.audits.plan import Plan, StageKind, Unit
from interpret_server.audits.records import Outcome, Sample, UnitResult, Warned, digest_of
from interpret_server.audits.runner import BatchState
from interpret_server.audits.spec import AuditSpec
from interpret_server.engine.api import Array, ModelInfo, PluginInfo, StoredModel
from interpret_server.engine.stored import ModelFiles
from interpret_server.errors import NotFound
from interpret_server.models.manifest import Manifest


class KeepingWorker:
    """Holds `net`, whose file has a digest and nothing else.

    Args:
        folder: for the model's file.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "net.onnx"
        self.file.write_bytes(b"a network")
        self.info = model_info(sha256=_digest(self.file))
        self.hidden: dict[str, Path] = {}
        self.failures: list[Exception] = []  # raised by the next loads
        self.loads = 0

    def plugins(self) -> tuple[PluginInfo, ...]:
        return tuple(map(plugin_info, ("apgd", "fab", "pgd", "square")))

    def models(self) -> tuple[ModelInfo, ...]:
        return (self.info,)

    async def keep(self, name: str, folder: Path) -> StoredModel:
        return ModelFiles(self.file, Manifest()).store(self.info, folder)

    async def load(
        self, name: str, path: Path, manifest: Manifest, *, replace: bool, samples: Path | None
    ) -> ModelInfo:
        self.loads += 1
        if self.failures:
            raise self.failures.pop(0)
        self.hidden[name] = path
        return dataclasses.replace(self.info, name=name, sha256=_digest(path))

    async def unload(self, name: str) -> None:
        if self.hidden.pop(name, None) is None:
            raise NotFound("model: there is no such model")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class MadeUpRunner:
    """Results that depend on the samples and the earlier outcomes alone.

    A sample is classified correctly if its first value is under 0.8, and falls to an attack whose
    radius is larger than that value, unless it fell before.

    Args:
        plan: of the audit.
        started: told every unit; may raise, or wait, as the unit of a worker would.
        steps: of every unit, which are told.
    """

    def __init__(
        self, plan: Plan, started: Callable[[Unit], Any] | None = None, steps: int = 0
    ) -> None:
        self._plan, self._started, self._steps = plan, started, steps

    async def run(
        self, unit: Unit, batch: BatchState, progress: Callable[[int, int], None]
    ) -> UnitResult:
        if self._started is not None:
            waiting = self._started(unit)
            if waiting is not None:
                await waiting
        for step in range(self._steps):
            progress(step + 1, self._steps)
            await asyncio.sleep(0)
        stage = self._plan.stages[unit.stage]
        if stage.kind is StageKind.CLEAN:
            assert isinstance(batch.given, Array)
            given = np.frombuffer(batch.given.data, batch.given.dtype)
            rows = given.reshape(batch.given.shape).astype(np.float32)
            samples = tuple(
                Sample(row, int(label), digest_of(value, int(label)), _answer(value, label), 0.5)
                for row, label, value in zip(batch.rows, batch.labels, rows, strict=True)
            )
            return UnitResult(unit.batch, stage.key, samples, examples=rows, seconds=0.25)
        assert batch.inputs is not None
        fallen = {outcome.row for outcome in batch.outcomes if outcome.confirmed}
        outcomes, examples = [], []
        for sample, value in zip(batch.samples, batch.inputs, strict=True):
            if not sample.correct or sample.row in fallen:
                continue
            if float(value.flat[0]) >= (stage.epsilon or 1.0):
                outcomes.append(Outcome(sample.row, stage.key, False, False, 10))
                continue
            example = value + np.float32((stage.epsilon or 0.5) / 2)
            distance = float(np.abs(example.astype(np.float64) - value).max())
            digest, other = digest_of(example, sample.label), (sample.label + 1) % CLASSES
            size = float(np.prod(SHAPE))
            distances = (size, distance * size, distance * size**0.5, distance)
            outcomes.append(
                Outcome(sample.row, stage.key, True, True, 10, digest, other, 0.5, 0.1, *distances)
            )
            examples.append(example)
        return UnitResult(
            unit.batch,
            stage.key,
            (),
            tuple(outcomes),
            np.stack(examples) if examples else None,
            (Warned("made up", tuple(batch.rows[:1])),),
            seconds=0.5,
        )


def _answer(value: Any, label: Any) -> int:
    return int(label) if float(value.flat[0]) < 0.8 else (int(label) + 1) % CLASSES


def made_up(
    started: Callable[[Unit], Any] | None = None, steps: int = 0
) -> Callable[[Any, ModelInfo, AuditSpec, Plan], MadeUpRunner]:
    """What makes such runners."""
    return lambda worker, model, spec, plan: MadeUpRunner(plan, started, steps)
