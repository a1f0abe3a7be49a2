"""Keeps a model, or a set of them, served: its workers, and what happens when they die."""

import asyncio
import contextlib
import logging
import shutil
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InterpretError,
    ModelRejected,
    Unavailable,
)
from ..api import ModelInfo
from ..occupancy import Occupancy
from ..stored import ModelFiles
from .connection import Connection
from .idling import Idleness
from .turns import Turns

_logger = logging.getLogger(__name__)

Spawn = Callable[[str, str, list[Path]], Awaitable[Connection]]  # (name, device, read)


@dataclass(frozen=True)
class Patience:
    """How long workers are waited for, in seconds.

    Args:
        load: a file may take to load.
        step: a plugin may compute between two steps.
        abandoned: the same, once nobody waits for the answer.
        answer: a worker may leave a ping unanswered.
        ping: between two looks at a worker.
        backoff: before the first restart; doubled for every further death.
        longest_backoff: between two restarts.
        deaths: that quarantine a model, if they fall within `window` seconds.
        window: see `deaths`.
        ready: a call waits for a worker that is being started.
    """

    load: float = 180.0
    step: float = 300.0
    abandoned: float = 5.0
    answer: float = 60.0
    ping: float = 0.5
    backoff: float = 0.1
    longest_backoff: float = 10.0
    deaths: int = 5
    window: float = 120.0
    ready: float = 30.0


@dataclass(frozen=True, kw_only=True)
class Source(ModelFiles):
    """A model's files.

    Args:
        name: that the model answers to.
    """

    name: str

    def read(self) -> list[Path]:
        """What its worker may read: the files' own folders, or the files where those are shared."""
        found = [self.path.parent.resolve(), self.path.resolve()]
        if self.samples is not None:
            found.append(self.samples.resolve())
        return found


class Keeper:
    """One model, or several that calls name together, in workers of their own.

    A worker that dies fails the calls that it runs and nothing else: it is started again after a
    while that doubles with every death, and calls that come meanwhile wait for it. A model whose
    workers keep dying is quarantined until it is loaded anew.

    Args:
        sources: the files of each model.
        devices: one worker is kept for each.
        spawn: starts a worker.
        patience: see there.
        folder: the model's own, deleted when it is closed.
        infos: what is known of models that have been loaded before; the first call then starts
            the workers.
        turns: in which such workers load.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        devices: tuple[str, ...],
        spawn: Spawn,
        patience: Patience,
        folder: Path | None = None,
        infos: Sequence[ModelInfo] = (),
        turns: Turns | None = None,
    ) -> None:
        self.sources, self._devices, self._spawn, self._patience = sources, devices, spawn, patience
        self._folder, self._turns = folder, turns
        self.name = " + ".join(source.name for source in sources)
        self.users = Occupancy()
        self.used = time.monotonic()
        self._infos = tuple(infos)
        self._workers: dict[int, Connection] = {}
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._watching: set[asyncio.Task[None]] = set()
        self._deaths: deque[float] = deque(maxlen=patience.deaths)
        self._died = 0
        self._quarantine = ""
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def info(self) -> ModelInfo:
        """What is known of the (first) model; a quarantined one says so in its notes."""
        info = self._infos[0]
        return replace(info, notes=(*info.notes, self._quarantine)) if self._quarantine else info

    @property
    def awake(self) -> bool:
        """Whether it has a worker, or is about to."""
        return bool(self._workers or self._starting)

    def process_ids(self) -> list[int]:
        """Of its workers."""
        return [w.process_id for w in self._workers.values() if w.process_id is not None]

    async def load(self) -> ModelInfo:
        """Start a worker on every device; the model is served when this returns.

        Raises:
            InterpretError: the file is refused; no worker is left.
        """
        tasks = [asyncio.create_task(self._start(slot)) for slot in range(len(self._devices))]
        try:
            await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.close(0)
            raise
        return self.info

    async def worker(self, deadline: float | None) -> Connection:
        """The least busy worker; waits for one that is being started.

        Args:
            deadline: in the event loop's time.

        Raises:
            FailedPrecondition: the model is quarantined.
            DeadlineExceeded, Unavailable: no worker came in time.
        """
        self.used = time.monotonic()
        limit = self.used + self._patience.ready
        while not (usable := [item for item in self._workers.values() if item.usable]):
            self._check()
            for slot in range(len(self._devices)):
                self._restart(slot, 0.0)
            self._changed.clear()
            until = limit if deadline is None else min(limit, deadline)
            try:
                async with asyncio.timeout_at(until):
                    await self._changed.wait()
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise DeadlineExceeded(
                        "the deadline passed before a worker was ready"
                    ) from None
                raise Unavailable(
                    f"the worker of {self.name} is being started; try again"
                ) from None
        return min(usable, key=lambda worker: worker.calls)

    async def sleep(self) -> None:
        """End the workers of a model that nobody uses; the next call starts them again."""
        workers, self._workers = list(self._workers.values()), {}
        await asyncio.gather(*(worker.close(0.0) for worker in workers))

    async def close(self, grace: float) -> None:
        """End the workers for good; running calls have `grace` seconds to finish."""
        self._closed = True
        self._changed.set()
        for task in (*self._starting.values(), *self._watching):
            task.cancel()
        workers, self._workers = list(self._workers.values()), {}
        await asyncio.gather(*(worker.close(grace) for worker in workers))
        await asyncio.gather(*self._starting.values(), *self._watching, return_exceptions=True)
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, True)

    def _check(self) -> None:
        if self._closed:
            raise Unavailable(f"{self.name} has been unloaded")
        if self._quarantine:
            raise FailedPrecondition(f"model: {self._quarantine}")

    async def _start(self, slot: int) -> None:
        """A worker with the models, in service."""
        read = [path for source in self.sources for path in source.read()]
        worker = await self._spawn(self.name, self._devices[slot], read)
        try:
            infos = tuple([await self._loaded(worker, source) for source in self.sources])
        except BaseException:
            worker.kill("the model was not loaded")
            raise
        for known, info in zip(self._infos, infos, strict=False):
            if info.sha256 != known.sha256:
                worker.kill("the file has changed")
                raise ModelRejected(
                    f"the file of {known.name} has changed since it was loaded; load it again"
                )
        self._infos = self._infos or infos
        self._workers[slot] = worker
        self._changed.set()
        task = asyncio.create_task(self._watch(slot, worker))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def _loaded(self, worker: Connection, source: Source) -> ModelInfo:
        limit = self._patience.load
        try:
            async with asyncio.timeout(limit):
                return await worker.load(source.name, source.path, source.manifest, source.samples)
        except TimeoutError:
            raise ModelRejected(
                f"{source.name} was not loaded within {limit:g} s; raise the server's load_seconds "
                "if the file is sound"
            ) from None
        except Unavailable:
            if self._infos or not worker.lost.done():
                raise
            why, said = worker.lost.result(), worker.output.tail()[-300:]
            raise ModelRejected(
                f"{source.name} ended its process while it was being loaded "
                f"({why.removesuffix('; try again')}"
                f"{'; it printed: ' + said if said else ''})"
            ) from None

    async def _watch(self, slot: int, worker: Connection) -> None:
        """Look after a worker until it is lost, then have it replaced."""
        seen, busy = 0, False
        idleness = Idleness(self._patience.abandoned)
        while not worker.lost.done():
            await asyncio.wait({worker.lost}, timeout=self._patience.ping)
            idle = not busy and worker.begun == seen
            if idleness.wasted(worker.process_id, idle=idle):
                why = f"the worker of {self.name} was stopped: it computed for no call; try again"
                _logger.warning("%s", why)
                worker.kill(why)
                await asyncio.wait({worker.lost}, timeout=5.0)
            elif not worker.lost.done() and not idle:
                seen = worker.begun
                busy = await self._look(worker) or bool(worker.calls)
        if self._workers.get(slot) is not worker:
            return  # it was sent away
        del self._workers[slot]
        self._note_death()
        self._restart(slot, self._pause())

    async def _look(self, worker: Connection) -> bool:
        """End a worker that is stuck; tells whether it computes."""
        patience, name = self._patience, self.name
        pong = await worker.ping(patience.answer)
        if worker.lost.done():
            return False
        if pong is None:
            worker.kill(f"the worker of {name} did not answer for {patience.answer:g} s; try again")
        elif pong.busy_seconds > patience.abandoned and not pong.wanted:
            worker.kill(
                f"the worker of {name} was stopped in a step that nobody waited for any more and "
                f"that took longer than {patience.abandoned:g} s; try again"
            )
        elif pong.busy_seconds > patience.step:
            worker.kill(
                f"the worker of {name} was stopped in a step of more than {patience.step:g} s; "
                "raise the server's step_seconds if that is right"
            )
        else:
            return pong.busy_seconds > 0
        await asyncio.wait({worker.lost}, timeout=5.0)
        return True

    def _note_death(self) -> None:
        now, window = time.monotonic(), self._patience.window
        while self._deaths and now - self._deaths[0] > window:
            self._deaths.popleft()
        self._deaths.append(now)
        self._died = len(self._deaths)
        if self._died >= self._patience.deaths:
            self._quarantine = (
                f"{self.name} is quarantined: its worker died {self._died} times within "
                f"{window:g} s; load it again to try once more."
            )
            _logger.error("%s", self._quarantine)
            self._changed.set()

    def _pause(self) -> float:
        """Seconds before the next restart."""
        patience = self._patience
        doubled: float = patience.backoff * 2.0 ** max(0, self._died - 1)
        return min(doubled, patience.longest_backoff)

    def _restart(self, slot: int, wait: float) -> None:
        if slot in self._starting or slot in self._workers or self._closed or self._quarantine:
            return
        task = asyncio.create_task(self._come_back(slot, wait))
        self._starting[slot] = task
        task.add_done_callback(lambda _: self._starting.pop(slot, None))

    async def _come_back(self, slot: int, wait: float) -> None:
        while not self._quarantine:
            await asyncio.sleep(wait)
            try:
                async with contextlib.nullcontext() if self._turns is None else self._turns.turn():
                    await self._start(slot)
                return
            except Unavailable as error:
                self._note_death()
                _logger.warning("%s is not served for now: %s", self.name, error.message)
            except InterpretError as error:
                self._quarantine = f"{self.name} cannot be loaded again: {error.message}"
                self._changed.set()
            wait = self._pause()
