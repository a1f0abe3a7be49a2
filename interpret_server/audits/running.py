"""One audit at work: unit by unit, each stored before the next begins."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Protocol, TypeVar

from ..engine.api import ModelInfo, Worker
from ..engine.failure import internal_error
from ..engine.stored import read_stored
from ..errors import FailedPrecondition, InterpretError, Overloaded, Unavailable
from ..threads import in_thread
from .files import AuditFiles
from .origins import check_same
from .plan import Plan, StageKind, Unit
from .records import Audit, Current, State, UnitResult
from .runner import BatchState, UnitRunner
from .spec import AuditSpec
from .store import Store
from .writing import write_bundle

WAITS = (1.0, 2.0, 5.0, 15.0, 30.0)  # seconds before a unit is tried again
_TOLD_EVERY = 0.1  # seconds between two words about steps

_logger = logging.getLogger(__name__)
T = TypeVar("T")


class Runner(Protocol):
    """What runs units; see `runner.UnitRunner`."""

    async def run(
        self, unit: Unit, batch: BatchState, progress: Callable[[int, int], None]
    ) -> UnitResult: ...


MakeRunner = Callable[[Worker, ModelInfo, AuditSpec, Plan], Runner]


async def retried(
    work: Callable[[], Awaitable[T]],
    waits: Iterable[float],
    errors: tuple[type[InterpretError], ...],
    told: Callable[[InterpretError], None] = lambda error: None,
) -> T:
    """The result of work that is tried again after some errors.

    Args:
        waits: seconds before each further trial; longer where the error says so.
        told: called with each such error; may raise.
    """
    for wait in waits:
        try:
            return await work()
        except errors as error:
            told(error)
            await asyncio.sleep(max(wait, getattr(error, "retry_after", 0.0)))
    return await work()


class Run:
    """Computes what is left of an audit and writes its report.

    Args:
        audit: as it stands.
        files: of the audit.
        store: that it is stored in.
        worker: that its model is loaded into, under a hidden name.
        told: called with the audit whenever it changes.
        make_runner: makes what runs units.
        waits: seconds before each further trial of what may be tried again.
    """

    def __init__(
        self,
        audit: Audit,
        files: AuditFiles,
        store: Store,
        worker: Worker,
        told: Callable[[Audit], None],
        *,
        make_runner: MakeRunner = UnitRunner,
        waits: tuple[float, ...] = WAITS,
    ) -> None:
        self._audit, self._files, self._store, self._worker = audit, files, store, worker
        self._told, self._make_runner, self._waits = told, make_runner, waits
        self._model = f"_audit-{audit.id}"
        self._leaving = self._stopping = False
        self._spoke = 0.0
        self._work: asyncio.Task[None] | None = None

    async def finish(self) -> None:
        """Go on until the audit is finished, has failed, or is stopped. Raises nothing."""
        self._work = asyncio.create_task(self._go_on())
        if self._stopping:
            self._work.cancel()
        await asyncio.wait({self._work})
        try:
            if self._work.cancelled():
                await self._stopped()
            elif (error := self._work.exception()) is not None:
                await self._failed(error)
        except Exception as error:  # the database is gone, too
            internal_error(error, f"ending audit {self._audit.id}")
            self._tell(replace(self._audit, state=State.FAILED, error="it cannot be stored"))

    def stop(self) -> None:
        """Give up the unit that runs."""
        self._stopping = True
        if self._work is not None:
            self._work.cancel()

    def leave(self) -> None:
        """End after the unit that runs, for the next server to go on."""
        self._leaving = True

    async def _go_on(self) -> None:
        audit = self._audit
        self._tell(
            await in_thread(
                lambda: self._store.set_state(
                    audit.id, State.RUNNING, started=audit.started or time.time()
                )
            )
        )
        if self._audit.done < self._audit.total:
            await self._compute()
        if self._leaving:
            return
        finished = time.time()
        report = await in_thread(lambda: write_bundle(self._store, self._files, audit.id, finished))
        digest = report["origin"]["data_sha256"]
        self._tell(await in_thread(lambda: self._store.finish(audit.id, finished, digest)))

    async def _compute(self) -> None:
        try:
            model = await self._retried(self._load)
            runner = self._make_runner(self._worker, model, self._audit.spec, self._audit.plan)
            for unit in islice(self._audit.plan.units(), self._audit.done, None):
                if self._leaving or self._spent(unit):
                    return
                await self._retried(lambda unit=unit: self._unit(runner, unit))  # type: ignore[misc]
        finally:
            with contextlib.suppress(InterpretError):
                await self._worker.unload(self._model)

    async def _load(self) -> ModelInfo:
        """The audit's own copy of the model, which no caller sees."""
        kept = await in_thread(lambda: read_stored(self._files.model))
        info = await self._worker.load(
            self._model, kept.path, kept.manifest, replace=True, samples=kept.samples
        )
        check_same(self._audit.origin, self._audit.plan, info, self._worker.plugins())
        return info

    def _spent(self, unit: Unit) -> bool:
        """Whether the budget ends the audit before this unit, which begins a batch."""
        seconds = self._audit.spec.budget.seconds
        return unit.stage == 0 and seconds is not None and self._audit.seconds >= seconds

    async def _unit(self, runner: Runner, unit: Unit) -> None:
        audit, batch = await in_thread(lambda: self._batch(unit))
        if batch is None:
            self._tell(audit)
            return
        stage = audit.plan.stages[unit.stage].key

        def progress(done: int, total: int) -> None:
            if time.monotonic() - self._spoke >= _TOLD_EVERY:
                self._spoke = time.monotonic()
                self._told(replace(audit, current=Current(unit.batch, stage, done, total)))

        try:
            result = await runner.run(unit, batch, progress)
        except (Unavailable, Overloaded):
            raise
        except InterpretError as error:  # its rows are those of the batch
            first, last = batch.rows[0], batch.rows[-1]
            raise FailedPrecondition(
                f"{stage} on samples {first} to {last}: {error.message}"
            ) from None
        self._tell(await in_thread(lambda: self._keep(unit, result)))

    def _batch(self, unit: Unit) -> tuple[Audit, BatchState | None]:
        """The audit as it is stored, and the unit's batch unless the unit is done.

        A trial that failed to store a unit may have stored it after all.
        """
        audit = self._store.audit(self._audit.id)
        done = audit.done > self._audit.done
        return audit, None if done else self._read_batch(unit)

    def _read_batch(self, unit: Unit) -> BatchState:
        rows = self._audit.plan.rows(unit.batch)
        labels = self._files.labels()[rows.start : rows.stop]
        if self._audit.plan.stages[unit.stage].kind is StageKind.CLEAN:
            return BatchState(rows, labels, self._files.given(unit.batch))
        samples, outcomes = self._store.batch(self._audit.id, unit.batch)
        inputs = self._files.inputs(unit.batch)
        return BatchState(rows, labels, (), inputs, samples, outcomes)

    def _keep(self, unit: Unit, result: UnitResult) -> Audit:
        """Store a unit; its files are on the disk before the database knows of it."""
        if result.examples is not None and len(result.examples):
            if self._audit.plan.stages[unit.stage].kind is StageKind.CLEAN:
                self._files.write_inputs(unit.batch, result.examples)
            else:
                self._files.write_examples(unit.batch, unit.stage, result.examples)
        return self._store.add(self._audit.id, unit, result)

    async def _retried(self, work: Callable[[], Awaitable[T]]) -> T:
        def told(error: InterpretError) -> None:
            if self._leaving:
                raise error
            _logger.warning("audit %s waits: %s", self._audit.id, error.message)

        return await retried(work, self._waits, (Unavailable, Overloaded), told)

    async def _stopped(self) -> None:
        """Nobody knows what was stored last; the database does."""
        audit_id = self._audit.id
        audit = await in_thread(lambda: self._store.audit(audit_id))
        if audit.state is not State.FINISHED and not self._leaving:
            audit = await in_thread(lambda: self._store.set_state(audit_id, State.CANCELLED))
        self._tell(audit)

    async def _failed(self, error: BaseException) -> None:
        if self._leaving and isinstance(error, InterpretError):
            return  # the worker is closing
        audit_id, sentence = self._audit.id, self._sentence(error)
        self._tell(
            await in_thread(lambda: self._store.set_state(audit_id, State.FAILED, error=sentence))
        )

    def _sentence(self, error: BaseException) -> str:
        if isinstance(error, OSError):
            error = FailedPrecondition(
                f"the audit's files cannot be written: {error.strerror or 'unknown'}"
            )
        if not isinstance(error, InterpretError):
            error = internal_error(error, f"audit {self._audit.id}")
        return error.message

    def _tell(self, audit: Audit) -> None:
        self._audit = audit
        self._told(audit)
