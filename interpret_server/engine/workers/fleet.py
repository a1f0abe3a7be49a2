"""The worker interface over processes: every model in a process of its own, on every device.

Calls that name several models run in processes made for that set of models.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import shutil
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any

from ...errors import Unavailable
from ...models.manifest import Manifest
from ...threads import in_thread
from ..api import Call, Event, ModelInfo, PluginInfo, StoredModel
from ..naming import check_name, no_model
from ..occupancy import Occupancy
from ..roles import check_roles, check_second
from .connection import Connection
from .keeper import Keeper, Patience, Source
from .nursery import Limits, Nursery, NurseryError
from .scratch import Scratch
from .sets import Sets
from .turns import Turns

_logger = logging.getLogger(__name__)
_NURSERY_WAIT = (0.0, 1.0, 5.0, 15.0, 60.0)  # seconds before the nursery is started again


class Fleet:
    """Implements `engine.api.Worker` with one process per model and device. Imports no torch.

    Args:
        devices: `cpu`, `cuda:0`, ...; `auto` for the first CUDA device, else the CPU. A device
            may be named twice: it then holds two workers of every model.
        limits: of every worker.
        patience: how long workers are waited for.
        plugin_dirs: folders of single-file plugins.
        memory_bytes: models that have not been used for longest are put to sleep while the
            workers hold more than this; None for no limit.
    """

    def __init__(
        self,
        *,
        devices: Sequence[str] = ("auto",),
        limits: Limits | None = None,
        patience: Patience | None = None,
        plugin_dirs: Sequence[Path] = (),
        memory_bytes: int | None = None,
    ) -> None:
        self._wanted_devices = tuple(devices)
        self._limits, self._patience = limits or Limits(), patience or Patience()
        self._plugin_dirs, self._memory = plugin_dirs, memory_bytes
        self._plugins: tuple[PluginInfo, ...] = ()
        self._keepers: dict[str, Keeper] = {}
        self._sets = Sets(self._make_set, self._end)
        self._loading: set[str] = set()
        self._turns, self._turns_of_sets = Turns(), Turns()
        self._calls = Occupancy()
        self._ready = asyncio.Event()  # the nursery runs
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._scratch: Scratch | None = None  # for files that outlive the calls that brought them
        self._numbers = itertools.count(1)
        self._tidied = 0  # the number of the last look at the memory

    async def start(self) -> None:
        """Start the process that workers come from.

        Raises:
            NurseryError: it does not start, a plugin cannot be used, or a device is missing.
        """
        self._nursery = Nursery(self._limits, self._plugin_dirs, self._nursery_lost)
        self._plugins, cuda = await self._nursery.start()
        self._ready.set()
        self._devices = tuple(_resolve(device, cuda) for device in self._wanted_devices)

    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin, by name."""
        return self._plugins

    def models(self) -> tuple[ModelInfo, ...]:
        """Every loaded model, by name, awake or asleep."""
        return tuple(self._keepers[name].info for name in sorted(self._keepers))

    async def load(
        self,
        name: str,
        path: Path,
        manifest: Manifest,
        *,
        replace: bool = False,
        samples: Path | None = None,
    ) -> ModelInfo:
        """Load a file in new workers.

        A replaced model serves until the new one is ready, and finishes the calls that began on
        it. A failed replacement changes nothing.

        Raises:
            InvalidModel, ModelRejected, InvalidRequest, AlreadyExists, Unavailable.
        """
        self._check_open()
        check_name(name, loading=self._loading, loaded=self._keepers, replace=replace)
        self._loading.add(name)
        if self._scratch is None:
            self._scratch = Scratch()
        folder = self._scratch.folder / str(next(self._numbers))
        try:
            source = await asyncio.to_thread(
                _kept, Source(path, manifest, samples, name=name), folder
            )
            keeper = Keeper((source,), self._devices, self._spawn, self._patience, folder)
            async with self._turns.turn():
                self._check_open()
                info = await keeper.load()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self._loading.discard(name)
        if self._closing:
            await keeper.close(0.0)
            self._check_open()
        replaced, self._keepers[name] = self._keepers.get(name), keeper
        if replaced is not None:
            self._retire(replaced)
        self._tidy(keep=keeper)
        return info

    async def unload(self, name: str) -> None:
        """Take a model out of service, wait for the calls that run on it, and end its workers.

        The workers of every set that it belongs to end as well.

        Raises:
            NotFound: no model of that name is loaded.
        """
        keeper = self._find(name)
        del self._keepers[name]
        await asyncio.shield(self._retire(keeper))

    async def keep(self, name: str, folder: Path) -> StoredModel:
        """Copy a model's files into a new folder, which appears at once and whole.

        Raises:
            NotFound: no model of that name is loaded.
            AlreadyExists: there is such a folder.
            FailedPrecondition: a file is gone or has changed, or the copy cannot be written.
        """
        keeper = self._find(name)
        with keeper.users.hold():  # else its files may go meanwhile
            (source,) = keeper.sources
            return await in_thread(lambda: source.store(keeper.info, folder))

    async def run(self, call: Call) -> AsyncGenerator[Event, None]:
        """Progress and previews in order, then exactly one `Result`; closing cancels the call.

        Raises:
            NotFound, InvalidRequest, FailedPrecondition, Overloaded, Cancelled, DeadlineExceeded,
            Unavailable, InterpretError.
        """
        self._check_open()
        deadline = None if call.timeout is None else time.monotonic() + call.timeout
        models = self._find_all(call)
        keeper = self._sets.of(models)
        with contextlib.ExitStack() as held:
            for users in (self._calls, *(item.users for item in {keeper, *models})):
                held.enter_context(users.hold())
            woken = not keeper.awake
            worker = await keeper.worker(deadline)
            if woken:
                self._tidy(keep=keeper)
            async with contextlib.aclosing(worker.run(call, deadline)) as events:
                async for event in events:
                    yield event

    async def close(self, grace: float = 5.0) -> None:
        """Refuse new calls, let running ones finish for `grace` seconds, then end every process."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._calls.empty()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*(keeper.close(0.0) for keeper in self._all()))
        self._keepers.clear()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._nursery.close()
        if self._scratch is not None:
            await asyncio.to_thread(self._scratch.remove)

    def process_ids(self) -> dict[str, list[int]]:
        """Of every model's workers; those of a set under the names of its models, `a + b`."""
        return {keeper.name: keeper.process_ids() for keeper in self._all()}

    async def _spawn(self, name: str, device: str, read: list[Path]) -> Connection:
        await self._ready.wait()
        return self._nursery.spawn(name, device, read)

    def _find(self, name: str, field: str = "model") -> Keeper:
        if name not in self._keepers:
            raise no_model(name, self._keepers, field)
        return self._keepers[name]

    def _find_all(self, call: Call) -> list[Keeper]:
        """The models of a call that its plugin takes; the worker of the first refuses others."""
        first = self._find(call.model)
        plugin = next((item for item in self._plugins if item.name == call.plugin), None)
        if plugin is None or not call.models:
            return [first]
        check_roles(plugin.name, plugin.models, call.models)
        found = [first]
        for role in plugin.models:
            if role.name in call.models:
                second = self._find(call.models[role.name], f"models.{role.name}")
                check_second(plugin.name, role, first.info, second.info)
                found.append(second)
        return found

    def _make_set(self, models: tuple[Keeper, ...]) -> Keeper:
        sources = [source for model in models for source in model.sources]
        return Keeper(
            sources,
            self._devices,
            self._spawn,
            dataclasses.replace(self._patience, ready=self._patience.load * len(sources)),
            infos=[model.info for model in models],
            turns=self._turns_of_sets,
        )

    def _all(self) -> tuple[Keeper, ...]:
        return (*self._keepers.values(), *self._sets.all())

    def _retire(self, keeper: Keeper) -> "asyncio.Task[None]":
        """End a model that is out of service, and its sets, once their calls are done."""
        sets = [self._end(item) for item in self._sets.forget(keeper)]

        async def work() -> None:
            await asyncio.gather(*sets)  # they read its files
            await self._end(keeper)

        return self._later(work())

    def _end(self, keeper: Keeper) -> "asyncio.Task[None]":
        """End a keeper's workers once its calls are done."""

        async def work() -> None:
            try:
                await keeper.users.empty()
            finally:
                await keeper.close(0.0)

        return self._later(work())

    def _later(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _check_open(self) -> None:
        if self._closing:
            raise Unavailable("the server is shutting down")

    def _nursery_lost(self) -> None:
        """Every worker is lost with it; a new one is started, and the models come back by it."""
        if not self._closing:
            self._ready.clear()
            self._later(self._renew())

    async def _renew(self) -> None:
        for wait in itertools.chain(_NURSERY_WAIT, itertools.repeat(_NURSERY_WAIT[-1])):
            await asyncio.sleep(wait)
            nursery = Nursery(self._limits, self._plugin_dirs, self._nursery_lost)
            try:
                await nursery.start()
            except NurseryError as error:
                _logger.error("%s", error)
                await nursery.close()
                continue
            self._nursery = nursery
            self._ready.set()
            return

    def _tidy(self, *, keep: Keeper) -> None:
        if self._memory is not None:
            self._later(self._sleep_some(keep))

    async def _sleep_some(self, keep: Keeper) -> None:
        """Put models to sleep, the one used longest ago first, until the rest fits.

        One that is in use is waited for, unless another model has been loaded or woken since.
        """
        assert self._memory is not None
        turn = self._tidied = next(self._numbers)
        held = {
            keeper: await asyncio.to_thread(_held_bytes, keeper.process_ids())
            for keeper in self._all()
        }
        while turn == self._tidied:
            held = {keeper: held[keeper] for keeper in self._all() if keeper in held}
            for keeper in sorted(held, key=lambda item: item.used):
                if sum(held.values()) <= self._memory:
                    return
                if keeper is not keep and not keeper.users.count and keeper.awake:
                    _logger.info("model %s sleeps until it is called", keeper.name)
                    await keeper.sleep()
                    held[keeper] = 0
            busy = [item for item in held if item is not keep and item.users.count and item.awake]
            if not busy:
                return
            await _first_empty(busy)


async def _first_empty(keepers: Iterable[Keeper]) -> None:
    """Until nobody uses one of the models."""
    waits = [asyncio.ensure_future(keeper.users.empty()) for keeper in keepers]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


def _resolve(device: str, cuda_devices: int) -> str:
    if device == "auto":
        return "cuda:0" if cuda_devices else "cpu"
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= cuda_devices:
        raise NurseryError(f"device: there is no {device}; CUDA devices: {cuda_devices}")
    return device


def _kept(source: Source, folder: Path) -> Source:
    """A file that stands alone in its folder under a name of ours, so that nobody takes it away.

    An upload's file goes when the call ends, but its worker may have to load it again.
    """
    path = source.path.absolute()
    source = dataclasses.replace(source, path=path)
    if path.is_symlink() or not path.is_file() or len(os.listdir(path.parent)) > 1:
        return source
    folder.mkdir()
    kept = folder / path.name
    try:
        os.link(path, kept)
    except OSError:  # another file system
        shutil.copyfile(path, kept)
    return dataclasses.replace(source, path=kept)


def _held_bytes(process_ids: list[int]) -> int:
    """Memory that processes hold, their part of what they share included."""
    total = 0
    for process in process_ids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += 1024 * int(text.split("\nPss:")[1].split()[0])
    return total
