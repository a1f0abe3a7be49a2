"""Audits as durable jobs: created, run in turn, watched, stopped, gone on with, and reported."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from ..data import DataRoot
from ..engine.api import ModelInfo, Worker
from ..engine.naming import no_model
from ..errors import FailedPrecondition, NotFound, Overloaded, Unavailable
from ..threads import in_thread
from .calls import check_images
from .files import AuditFiles
from .folders import Folders
from .ingest import (
    MAX_SAMPLES,
    DataChunk,
    Images,
    Intake,
    StoredSet,
    ingest_stored,
    ingest_stream,
)
from .origins import origin_of
from .plan import make_plan
from .records import Audit, State
from .runner import UnitRunner
from .running import WAITS, MakeRunner, Run, retried
from .spec import AuditSpec
from .store import Store
from .writing import ReportForm, report_file

MAX_BYTES = 16 << 30
_FINAL = frozenset({State.CANCELLED, State.FAILED, State.FINISHED})
_SENT = "sent with the request"


class Audits:
    """The audits of a server. What is stored of them outlives it, whatever ends it.

    Nothing is kept in memory for each sample.

    Args:
        worker: holds the models, and copies of them under hidden names.
        root: folder of the audits' files; one server at a time uses it.
        database: URL for SQLAlchemy; None for SQLite in `root`. Servers may share one: each has
            the audits whose folders are in its root.
        data: where data sets lie; None where there are none.
        max_bytes: most bytes of the inputs of an audit.
        running: how many audits run at once; others wait.
        make_runner: makes what runs the units of an audit.
        waits: seconds before each further trial of a unit that found no worker.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        root: Path,
        database: str | None = None,
        data: DataRoot | None = None,
        max_bytes: int = MAX_BYTES,
        running: int = 1,
        make_runner: MakeRunner = UnitRunner,
        waits: tuple[float, ...] = WAITS,
    ) -> None:
        self._worker, self._data, self._max_bytes = worker, data, max_bytes
        self._database = database or f"sqlite:///{root.absolute() / 'audits.sqlite'}"
        self._running, self._make_runner, self._waits = running, make_runner, waits
        self._folders = Folders(root)
        self._audits: dict[str, Audit] = {}  # in order of creation
        self._queue: list[str] = []
        self._runs: dict[str, tuple[Run, asyncio.Task[None]]] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._closing = False

    async def start(self) -> None:
        """Open the store, and go on with the audits that an earlier server left.

        Raises:
            InvalidRequest, FailedPrecondition: naming `audit_root` or `audit_database`.
        """
        await in_thread(self._open)
        waiting = [item for item in self._audits.values() if item.state not in _FINAL]
        waiting.sort(key=lambda item: item.state is State.QUEUED)  # those that ran go first
        self._queue = [item.id for item in waiting]
        self._next()

    async def close(self, grace: float) -> None:
        """Let units that run end for `grace` seconds; the next server goes on after them."""
        self._closing = True
        self._wake(self._watchers)
        tasks = []
        for run, task in self._runs.values():
            run.leave()
            tasks.append(task)
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for run, _ in tuple(self._runs.values()):
            run.stop()
        await asyncio.gather(*tasks)
        await in_thread(self._shut)

    async def create(self, spec: AuditSpec, data: AsyncIterator[DataChunk] | StoredSet) -> Audit:
        """Keep a model and a data set, and queue their audit.

        Of an audit that is refused, or given up before this returns, nothing is left.

        Raises:
            NotFound: there is no such model, plugin or data set.
            InvalidRequest: naming a field of `spec`, `inputs` or `labels`.
            FailedPrecondition: the model lacks what the suite needs, or was replaced meanwhile.
            RequestTooLarge: the data set has too many bytes.
            Unavailable: the server is shutting down, or the worker that decodes images was lost.
            Overloaded: the model's queue stays full, and images wait to be decoded.
        """
        self._check_open()
        model, plugins = self._find_model(spec.model), self._worker.plugins()
        batch_size = make_plan(spec, model, plugins, MAX_SAMPLES).batch_size
        audit_id = secrets.token_hex(8)
        try:
            files = AuditFiles(await in_thread(lambda: self._folders.begin(audit_id)))
            kept = await self._worker.keep(spec.model, files.model)
            if kept.sha256 != model.sha256:
                raise FailedPrecondition(f"model: {spec.model} was replaced; ask again")
            intake = Intake(files, model, batch_size, self._max_bytes)
            samples = await self._ingest(data, model, intake)
            plan = make_plan(spec, model, plugins, samples)
            audit = Audit(
                id=audit_id,
                spec=spec,
                plan=plan,
                origin=origin_of(model, plan, plugins, _called(data)),
                state=State.QUEUED,
                total=plan.total,
                created=time.time(),
            )
            self._check_open()
            await in_thread(lambda: self._insert(audit))
        except BaseException as error:
            await in_thread(lambda: self._forget(audit_id))
            if isinstance(error, OSError):
                raise FailedPrecondition(
                    f"inputs: they cannot be stored ({error.strerror or 'unknown'})"
                ) from None
            raise
        self._told(audit)
        self._queue.append(audit_id)
        self._next()
        return audit

    def get(self, audit_id: str) -> Audit:
        """An audit as it stands. Raises NotFound."""
        try:
            return self._audits[audit_id]
        except KeyError:
            raise NotFound(f"there is no audit {audit_id[:80]!r}") from None

    def list(self) -> tuple[Audit, ...]:
        """Every audit, newest first."""
        return tuple(reversed(self._audits.values()))

    async def watch(self, audit_id: str) -> AsyncGenerator[Audit, None]:
        """An audit as it stands, then whenever it changes, until its state is final.

        One who lags misses what lies between. It ends, too, when the audit is deleted.

        Raises:
            NotFound: there is none of that id.
            Unavailable: the server is shutting down.
        """
        self.get(audit_id)
        event = asyncio.Event()
        self._watchers.setdefault(audit_id, set()).add(event)
        try:
            while (audit := self._audits.get(audit_id)) is not None:
                event.clear()
                yield audit
                if audit.state in _FINAL:
                    return
                await event.wait()
                self._check_open()
        finally:
            watchers = self._watchers[audit_id]
            watchers.discard(event)
            if not watchers:
                del self._watchers[audit_id]

    async def cancel(self, audit_id: str) -> Audit:
        """Stop an audit within a step of its plugin; only the unit that runs is lost.

        One whose state is final stays as it is.

        Raises:
            NotFound: there is none of that id.
        """
        async with self._alone(audit_id):
            await self._stop(audit_id)
            return self.get(audit_id)

    async def resume(self, audit_id: str) -> Audit:
        """Queue an audit again that was cancelled or has failed.

        Raises:
            NotFound: there is none of that id.
            FailedPrecondition: it is finished.
        """
        async with self._alone(audit_id):
            audit = self.get(audit_id)
            if audit.state is State.FINISHED:
                raise FailedPrecondition(f"audit {audit_id} is finished")
            if audit.state in _FINAL:
                await self._ended(audit_id)
                self._check_open()
                self._told(await in_thread(lambda: self._store.set_state(audit_id, State.QUEUED)))
                self._queue.append(audit_id)
                self._next()
            return self.get(audit_id)

    async def delete(self, audit_id: str) -> None:
        """Forget an audit with everything that is stored of it; stop it first, if need be.

        Raises:
            NotFound: there is none of that id.
        """
        async with self._alone(audit_id):
            await self._stop(audit_id)
            await in_thread(lambda: self._forget(audit_id))
            del self._audits[audit_id], self._locks[audit_id]
            self._wake([audit_id])

    async def report(self, audit_id: str, form: str) -> Path:
        """A file with the report of a finished audit, until the audit is deleted.

        Args:
            form: a value of `ReportForm`.

        Raises:
            NotFound: there is no audit of that id.
            InvalidRequest: there is no such form.
            FailedPrecondition: the audit is not finished.
        """
        wanted = ReportForm.of(form)
        async with self._alone(audit_id):
            state = self.get(audit_id).state
            if state is not State.FINISHED:
                raise FailedPrecondition(
                    f"audit {audit_id} is {state}; there is a report when it is finished"
                )
            files = AuditFiles(self._folders.of(audit_id))
            return await in_thread(lambda: report_file(self._store, files, audit_id, wanted))

    def _open(self) -> None:
        self._folders.open()
        try:
            self._store = Store(self._database)
            stored = {item.id: item for item in self._store.audits()}
            for audit_id in self._folders.sweep(stored.keys()):
                self._forget(audit_id)
                stored.pop(audit_id, None)
            # A database may be shared by servers with roots of their own.
            stored = {name: item for name, item in stored.items() if self._folders.has(name)}
        except BaseException:
            self._folders.close()
            raise
        self._audits = stored

    def _shut(self) -> None:
        self._store.close()
        self._folders.close()

    def _insert(self, audit: Audit) -> None:
        self._store.insert(audit)
        self._folders.settle(audit.id)

    def _forget(self, audit_id: str) -> None:
        self._folders.retire(audit_id)
        self._store.delete(audit_id)
        self._folders.remove(audit_id)

    async def _ingest(
        self, data: AsyncIterator[DataChunk] | StoredSet, model: ModelInfo, intake: Intake
    ) -> int:
        async def check(batch: Images) -> None:
            await retried(
                lambda: check_images(self._worker, model, batch.images, batch.first),
                self._waits,
                (Overloaded,),
                lambda _: self._check_open(),
            )

        if not isinstance(data, StoredSet):
            return await ingest_stream(data, intake, check)
        if self._data is None:
            raise FailedPrecondition(
                "inputs.dataset: the server has no data sets; start it with --data-root"
            )
        return await ingest_stored(data, self._data, model, intake, self._max_bytes, check)

    def _next(self) -> None:
        """Start audits that wait, as many as may run."""
        while self._queue and len(self._runs) < self._running and not self._closing:
            audit_id = self._queue.pop(0)
            run = Run(
                self._audits[audit_id],
                AuditFiles(self._folders.of(audit_id)),
                self._store,
                self._worker,
                self._told,
                make_runner=self._make_runner,
                waits=self._waits,
            )
            self._runs[audit_id] = run, asyncio.create_task(self._finish(audit_id, run))

    async def _finish(self, audit_id: str, run: Run) -> None:
        try:
            await run.finish()
        finally:
            del self._runs[audit_id]
            self._next()

    async def _stop(self, audit_id: str) -> None:
        if audit_id in self._queue:
            self._queue.remove(audit_id)
            self._told(await in_thread(lambda: self._store.set_state(audit_id, State.CANCELLED)))
        elif audit_id in self._runs:
            self._runs[audit_id][0].stop()
            await self._ended(audit_id)

    async def _ended(self, audit_id: str) -> None:
        """Wait until an audit that is over has left its place to others."""
        if audit_id in self._runs:
            await asyncio.wait({self._runs[audit_id][1]})

    def _told(self, audit: Audit) -> None:
        self._audits[audit.id] = audit
        self._wake([audit.id])

    def _wake(self, audit_ids: Iterable[str]) -> None:
        for audit_id in audit_ids:
            for event in self._watchers.get(audit_id, ()):
                event.set()

    @asynccontextmanager
    async def _alone(self, audit_id: str) -> AsyncIterator[None]:
        """While an audit is stopped, gone on with, deleted or reported, one after the other."""
        self.get(audit_id)
        async with self._locks.setdefault(audit_id, asyncio.Lock()):
            self.get(audit_id)
            yield

    def _find_model(self, name: str) -> ModelInfo:
        models = {info.name: info for info in self._worker.models()}
        if name not in models:
            raise no_model(name, models)
        return models[name]

    def _check_open(self) -> None:
        if self._closing:
            raise Unavailable("the server is shutting down")


def _called(data: object) -> str:
    """What a data set is called in reports."""
    if not isinstance(data, StoredSet):
        return _SENT
    if data.start == 0 and data.count is None:
        return data.name
    stop = "" if data.count is None else str(data.start + data.count)
    return f"{data.name}[{data.start}:{stop}]"
