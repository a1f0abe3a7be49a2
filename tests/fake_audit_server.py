"""A server whose audits are what a test makes of them, over a worker with one model."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from interpret_server.audits.ingest import DataChunk, StoredSet
from interpret_server.audits.plan import Plan, Stage, StageKind
from interpret_server.audits.records import Audit, Origin, State
from interpret_server.audits.spec import AuditSpec
from interpret_server.engine import api
from interpret_server.errors import FailedPrecondition, NotFound, Unavailable
from interpret_server.models.manifest import Manifest
from interpret_server.testing.server import serve

FINAL = (State.CANCELLED, State.FAILED, State.FINISHED)
LONG = 20  # seconds that no test should take
MODEL = api.ModelInfo(
    name="net",
    version="3",
    format="onnx",
    form="graph",
    form_reason="",
    sha256="ab" * 32,
    size=123,
    device="cpu",
    precision="float32",
    input_name="image",
    output_name="scores",
    input_shape=(1, 2, 2),
    input_dtype="float32",
    input_layout="CHW",
    bounds=(0.0, 1.0),
    classes=3,
    labels=("cat", "dog", "owl"),
    logits_from="logits",
    layers=(),
    capabilities=frozenset({"gradient", "bounds"}),
    lacking={},
    verification=api.Verification("onnxruntime", 0.0, 0.0, (1,), 1),
    notes=(),
    manifest=Manifest(),
    max_batch=8,
    inputs=(api.InputInfo("image", "values", (1, 2, 2), "float32", bounds=(0.0, 1.0)),),
    explained_shape=(1, 2, 2),
)
ORIGIN = Origin(
    model="net",
    model_version="3",
    model_sha256="ab" * 32,
    model_format="onnx",
    manifest='{"version": "3"}',
    input_shape=(1, 2, 2),
    bounds=(0.0, 1.0),
    classes=3,
    labels=("cat", "dog", "owl"),
    data="digits",
    data_sha256="cd" * 32,
    versions={"interpret-server": "0", "pgd": "1"},
    device="cpu",
    precision="float32",
)
STAGES = (
    Stage(key="clean", kind=StageKind.CLEAN),
    Stage(key="linf:0.1:pgd", kind=StageKind.ATTACK, plugin="pgd", norm="linf", epsilon=0.1),
)


class OneModel:
    """A worker that has a model and runs nothing."""

    def plugins(self) -> tuple[api.PluginInfo, ...]:
        return ()

    def models(self) -> tuple[api.ModelInfo, ...]:
        return (MODEL,)

    async def close(self, grace: float = 5.0) -> None:
        pass


class FakeAudits:
    """Audits that stand as `change` says; `data` holds what came with each, by id.

    Attributes:
        taken: chunks that have come.
        abandoned: uploads that ended without an audit.
        watchers: how many there are now.
        files: what `report` hands out, by form.
        watched: called in a thread with the id of an audit that somebody begins to watch.
    """

    def __init__(self) -> None:
        self.data: dict[str, list[DataChunk] | StoredSet] = {}
        self.taken = self.abandoned = self.watchers = self.starts = 0
        self.closed = False
        self.files: dict[str, Path] = {}
        self.watched: Callable[[str], None] | None = None
        self.taking = threading.Event()  # cleared, the next chunk is not taken
        self.taking.set()
        self._audits: dict[str, Audit] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    async def start(self) -> None:
        self._loop, self.starts = asyncio.get_running_loop(), self.starts + 1

    async def close(self, grace: float) -> None:
        self.closed = True
        self._wake()

    async def create(self, spec: AuditSpec, data: AsyncIterator[DataChunk] | StoredSet) -> Audit:
        chunks: list[DataChunk] = []
        if not isinstance(data, StoredSet):
            try:
                async for chunk in data:
                    await asyncio.to_thread(self.taking.wait, LONG)
                    chunks.append(chunk)
                    self.taken += 1
            except BaseException:
                self.abandoned += 1
                raise
        number = f"a{len(self._audits) + 1}"
        self.data[number] = data if isinstance(data, StoredSet) else chunks
        rows = sum(len(chunk.labels) for chunk in chunks) or 5
        plan = Plan(samples=rows, batch_size=2, stages=STAGES, notes=("fab is left out.",))
        self._audits[number] = Audit(
            number, spec, plan, ORIGIN, State.QUEUED, total=len(list(plan.units())), created=100.0
        )
        return self._audits[number]

    def get(self, number: str) -> Audit:
        if number not in self._audits:
            raise NotFound(f"there is no audit {number!r}")
        return self._audits[number]

    def list(self) -> tuple[Audit, ...]:
        return tuple(reversed(self._audits.values()))

    async def watch(self, number: str) -> AsyncIterator[Audit]:
        last = None
        self.watchers += 1
        try:
            audit = self.get(number)
            if self.watched is not None and audit.state not in FINAL:
                yield audit
                await asyncio.to_thread(self.watched, number)
            while number in self._audits:
                if self.closed:
                    raise Unavailable("the server is shutting down")
                now, changed = self.get(number), self._changed
                if now != last:
                    yield now
                    last = now
                    continue
                if now.state in FINAL:
                    return
                await changed.wait()
        finally:
            self.watchers -= 1

    async def cancel(self, number: str) -> Audit:
        return self._set(number, state=State.CANCELLED)

    async def resume(self, number: str) -> Audit:
        if self.get(number).state not in (State.CANCELLED, State.FAILED):
            raise FailedPrecondition("the audit is not cancelled")
        return self._set(number, state=State.QUEUED)

    async def delete(self, number: str) -> None:
        self.get(number)
        del self._audits[number]
        self._wake()

    async def report(self, number: str, form: str) -> Path:
        if self.get(number).state is not State.FINISHED:
            raise FailedPrecondition("the audit is not finished; wait for it")
        return self.files[form]

    def change(self, number: str, **fields: Any) -> None:
        """Change an audit, from any thread."""
        assert self._loop is not None
        done = threading.Event()

        def now() -> None:
            self._set(number, **fields)
            done.set()

        self._loop.call_soon_threadsafe(now)
        assert done.wait(LONG)

    def finish(self, number: str, correct: int = 4, standing: int = 2) -> None:
        """Let an audit come to its end."""
        audit = self.get(number)
        counts = {"samples": audit.plan.samples, "correct": correct, "standing": standing}
        self.change(
            number, state=State.FINISHED, done=audit.total, started=101.0, finished=103.5, **counts
        )

    def _set(self, number: str, **fields: Any) -> Audit:
        self._audits[number] = replace(self.get(number), **fields)
        self._wake()
        return self._audits[number]

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


@contextmanager
def serve_audits(audits: FakeAudits, **options: Any) -> Iterator[str]:
    """Serve them; yields the address."""
    worker: Any = OneModel()
    with serve(worker=worker, audits=lambda *_: audits, grace=0.2, **options) as address:
        yield address


def until(reached: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + LONG
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.005)
