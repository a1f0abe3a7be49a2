"""What keeping an audit costs the front end: milliseconds per unit, and memory.

Audits of samples `(1, 28, 28)` in batches of 128 with the stages of two attacks at three radii.
Nothing is attacked: a stage makes up an outcome for every sample that is left, and an example for
a tenth of them, so that everything measured is reading and storing. `store_ms` is the mean time
from the end of a unit's computing to the beginning of the next one's: files and a transaction
flushed to the disk, and the batch read again. Memory is what the process itself has (RssAnon):
`growth_mib` from the 50th unit to the last one, `report_mib` the most while the report is written,
beyond the last unit. SQLite.
"""

import asyncio
import hashlib
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np

from interpret_server.audits.ingest import DataChunk
from interpret_server.audits.manager import Audits
from interpret_server.audits.plan import Plan, StageKind, Unit
from interpret_server.audits.records import Outcome, Sample, UnitResult, digest_of
from interpret_server.audits.runner import BatchState
from interpret_server.audits.spec import AuditSpec
from interpret_server.data.arrays import as_array
from interpret_server.engine.api import (
    Array,
    InputInfo,
    ModelInfo,
    PluginInfo,
    StoredModel,
    Verification,
)
from interpret_server.engine.stored import ModelFiles
from interpret_server.models.manifest import Manifest

SIZES = (1_000, 10_000)
SHAPE, CLASSES, BATCH = (1, 28, 28), 10, 128
_WARM = 49  # units after which threads, connections and caches are there
SPEC = AuditSpec.model_validate(
    {
        "model": "net",
        "threats": [{"norm": "linf", "epsilons": [0.1, 0.2, 0.3]}],
        "attacks": [{"plugin": "pgd"}, {"plugin": "square"}],
    }
)


def allocated() -> float:
    """MiB of this process's own memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class Watch:
    """The most memory since the last `restart`, looked at every 5 ms by a thread."""

    def __init__(self) -> None:
        self._over, self.most = threading.Event(), 0.0
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._over.wait(0.005):
            self.most = max(self.most, allocated())

    def restart(self) -> None:
        self.most = allocated()

    def close(self) -> None:
        self._over.set()


class Worker:
    """Has a model that nobody runs, and plugins that nobody calls."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "net.onnx"
        self._path.write_bytes(b"a network")
        self._info = ModelInfo(
            name="net",
            version="1",
            format="onnx",
            form="graph",
            form_reason="",
            sha256=hashlib.sha256(b"a network").hexdigest(),
            size=9,
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
            max_batch=BATCH,
            inputs=(InputInfo("x", "values", SHAPE, "float32"),),
        )

    def plugins(self) -> tuple[PluginInfo, ...]:
        schema = {"properties": {"norm": {"enum": ["linf"]}, "epsilon": {"type": "number"}}}
        return tuple(
            PluginInfo(
                name=name,
                kind="attack",
                api=1,
                version="1",
                distribution="",
                summary="",
                description="",
                requires=frozenset(),
                rows="independent",
                inputs="required",
                target_kinds=frozenset(),
                schema=schema,
                fields=(),
                tensors=(),
            )
            for name in ("pgd", "square")
        )

    def models(self) -> tuple[ModelInfo, ...]:
        return (self._info,)

    async def keep(self, name: str, folder: Path) -> StoredModel:
        return ModelFiles(self._path, Manifest()).store(self._info, folder)

    async def load(self, name: str, path: Path, manifest: Manifest, **_: Any) -> ModelInfo:
        return self._info

    async def unload(self, name: str) -> None:
        pass


class Runner:
    """Makes up what units come to, and notes when each began and ended."""

    def __init__(self, plan: Plan, between: list[float], memory: list[float]) -> None:
        self._plan, self._between, self._memory = plan, between, memory
        self._ended: float | None = None

    async def run(
        self, unit: Unit, batch: BatchState, progress: Callable[[int, int], None]
    ) -> UnitResult:
        if self._ended is not None:
            self._between.append(time.perf_counter() - self._ended)
        self._memory.append(allocated())
        result = self._result(unit, batch)
        self._ended = time.perf_counter()
        return result

    def _result(self, unit: Unit, batch: BatchState) -> UnitResult:
        stage = self._plan.stages[unit.stage]
        if stage.kind is StageKind.CLEAN:
            assert isinstance(batch.given, Array)
            rows = np.frombuffer(batch.given.data, np.float32).reshape(batch.given.shape)
            samples = tuple(
                Sample(row, int(label), digest_of(value, int(label)), int(label), 0.9)
                for row, label, value in zip(batch.rows, batch.labels, rows, strict=True)
            )
            return UnitResult(unit.batch, stage.key, samples, examples=rows, seconds=0.0)
        assert batch.inputs is not None
        fallen = {item.row for item in batch.outcomes if item.confirmed}
        left = [item for item in batch.samples if item.row not in fallen]
        falls = [item.row for item in left if (item.row + unit.stage) % 10 == 0]
        examples = np.asarray(batch.inputs[[row - batch.rows.start for row in falls]])
        digests = (digest_of(value, 0) for value in examples)
        size = stage.epsilon or 0.0
        found = (True, True, 100)
        outcomes = tuple(
            Outcome(item.row, stage.key, *found, next(digests), 1, 0.8, 0.1, 9.0, 2.0, 1.0, size)
            if item.row in falls
            else Outcome(item.row, stage.key, False, False, 100)
            for item in left
        )
        return UnitResult(unit.batch, stage.key, (), outcomes, examples if falls else None)


async def data(samples: int) -> AsyncIterator[DataChunk]:
    drawn = np.random.default_rng(0)
    for first in range(0, samples, 1000):
        rows = min(1000, samples - first)
        inputs = drawn.random((rows, *SHAPE), dtype=np.float32)
        yield DataChunk(as_array(inputs), tuple(drawn.integers(0, CLASSES, rows).tolist()))


async def audit(samples: int) -> dict[str, float]:
    between: list[float] = []
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder, closing(Watch()) as watch:
        audits = Audits(
            cast(Any, Worker(Path(folder))),
            root=Path(folder) / "audits",
            make_runner=lambda worker, model, spec, plan: Runner(plan, between, memory),
        )
        await audits.start()
        began = time.perf_counter()
        made = await audits.create(SPEC, data(samples))
        ingested = time.perf_counter() - began
        async for item in audits.watch(made.id):
            if item.done < item.total:
                watch.restart()
            made = item
        assert made.error == "", made.error
        seconds = time.perf_counter() - began - ingested
        await audits.close(0.0)
    return {
        "samples": samples,
        "units": made.done,
        "ingest_ms_per_batch": round(1000 * ingested / made.plan.batches, 2),
        "store_ms": round(1000 * statistics.mean(between), 2),
        "store_ms_p95": round(1000 * float(np.quantile(between, 0.95)), 2),
        "report_seconds": round(seconds - sum(between), 1),
        "growth_mib": round(memory[-1] - memory[_WARM], 1),
        "report_mib": round(watch.most - memory[-1], 1),
    }


def _alone(samples: int, answers: Any) -> None:
    answers.put(asyncio.run(audit(samples)))


def main(quick: bool = False) -> list[dict[str, float]]:
    """Every size in a process of its own."""
    context, found = multiprocessing.get_context("spawn"), []
    for samples in SIZES[: 1 if quick else None]:
        answers = context.Queue()
        process = context.Process(target=_alone, args=(samples, answers))
        process.start()
        found.append(answers.get(timeout=1800))
        process.join()
    return found
