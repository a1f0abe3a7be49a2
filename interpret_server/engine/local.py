"""A worker in this process: models, plugins and one device."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from ..errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InterpretError,
    NotFound,
    Unavailable,
)
from ..models.classifier import Classifier
from ..models.manifest import Manifest
from ..registry import Registration, Registry
from ..threads import in_thread
from .allocator import collect
from .api import Call, Event, ModelInfo, PluginInfo, Preview, Progress, Result, StoredModel
from .decode import decode, decoded_bytes
from .describe import describe_classifier, describe_plugin, describe_roles
from .drawing import draw_preview
from .execution import execute
from .failure import bare, internal_error
from .group import Pulse
from .mailbox import Mailbox
from .member import Member, Outcome
from .naming import check_name, no_model
from .occupancy import Occupancy
from .openmp import one_thread
from .primitives import primitives
from .release import release
from .request import Request, Served
from .resting import Resting
from .results import assemble
from .roles import check_roles, check_second
from .schedule import MAX_QUEUE_BYTES, Scheduler
from .sizes import MAX_STEP_SECONDS
from .stored import ModelFiles

INLINE_BYTES = 1 << 20  # work on more than this leaves the event loop
_JOIN_SECONDS = 1.0
_RELEASE_SECONDS = 2.0  # that unloading waits for the memory, once no call runs

T = TypeVar("T")


class Loaded(Protocol):
    """What a loader returns."""

    @property
    def classifier(self) -> Classifier: ...

    @property
    def info(self) -> ModelInfo: ...


Loader = Callable[..., Loaded]  # (name, path, manifest, *, device, default_max_batch[, samples])


class LocalWorker:
    """Implements `engine.api.Worker` in this process.

    Args:
        registry: the plugins.
        device: `cpu`, `cuda:0`, ...; `auto` for the first CUDA device, else the CPU.
        max_queue: most calls that may wait to be started; more are refused with `Overloaded`.
        max_queue_bytes: most bytes of their inputs.
        max_batch: most rows in one forward pass, where the manifest names no limit.
        max_step: seconds after which others should have the device; larger batches are split.
        loader: `(name, path, manifest, *, device, default_max_batch)`, and `samples` where there
            are any, to an object with `classifier` and `info`; by default that of
            `interpret_server.models.loading`.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        device: str = "auto",
        max_queue: int = 256,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
        max_batch: int = 64,
        max_step: float = MAX_STEP_SECONDS,
        loader: Loader | None = None,
    ) -> None:
        self._device = _resolve(device)
        self._max_batch, self._max_step = max_batch, max_step
        self._loader = loader
        self._plugins = {item.plugin.name: item for item in registry}
        self._infos = tuple(describe_plugin(item) for item in registry)
        self._primitives = primitives()
        self._served: dict[str, Served] = {}
        self._lent: set[str] = set()  # names of classifiers that are the caller's own
        self._loading: set[str] = set()
        self._releases: set[asyncio.Task[None]] = set()
        self._scheduler = Scheduler(execute, max_queue=max_queue, max_queue_bytes=max_queue_bytes)
        self._helpers = ThreadPoolExecutor(2, thread_name_prefix="interpret-helper")
        self._loaders = ThreadPoolExecutor(2, thread_name_prefix="interpret-load")
        self._calls = Occupancy()
        self._resting = Resting(lambda: self._calls.count > 0)
        self._closing = False

    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin, by name."""
        return self._infos

    def models(self) -> tuple[ModelInfo, ...]:
        """Every loaded model, by name."""
        return tuple(self._served[name].info for name in sorted(self._served))

    def add(self, name: str, classifier: Classifier, info: ModelInfo | None = None) -> ModelInfo:
        """Serve a classifier that exists already; it must be on the worker's device.

        Raises:
            AlreadyExists: the name is taken.
        """
        check_name(name, loading=self._loading, loaded=self._served, replace=False)
        if info is None:
            info = describe_classifier(name, classifier, self._max_batch)
        self._served[name] = Served(classifier, info, self._max_step)
        self._lent.add(name)
        return info

    async def load(
        self,
        name: str,
        path: Path,
        manifest: Manifest,
        *,
        replace: bool = False,
        samples: Path | None = None,
    ) -> ModelInfo:
        """Load a file under a name, in a thread of its own.

        A replaced model serves until the new one is ready, and finishes the calls that began on
        it; then its memory is freed. A failed replacement changes nothing. A model that is
        unloaded while its replacement loads comes back as the replacement.

        Raises:
            InvalidModel, ModelRejected, InvalidRequest, AlreadyExists, Unavailable.
        """
        self._check_open()
        check_name(name, loading=self._loading, loaded=self._served, replace=replace)
        self._loading.add(name)
        try:
            loaded = await self._in_thread(
                self._loaders,
                lambda: self._load_file(name, path, manifest, samples),
                f"loading {name}",
            )
        finally:
            self._loading.discard(name)
        self._check_open()
        if name in self._served:
            self._release(name)
        self._served[name] = Served(
            loaded.classifier,
            loaded.info,
            self._max_step,
            files=ModelFiles(path, manifest, samples).opened(),
        )
        return loaded.info

    async def unload(self, name: str) -> None:
        """Take a model out of service, wait for the calls that run on it, and free its memory.

        Raises:
            NotFound: no model of that name is loaded.
        """
        users = self._find_model(name).users
        releasing = self._release(name)
        await users.empty()
        await asyncio.wait({releasing}, timeout=_RELEASE_SECONDS)

    async def keep(self, name: str, folder: Path) -> StoredModel:
        """Copy a model's files into a new folder, which appears at once and whole.

        Raises:
            NotFound: no model of that name is loaded.
            AlreadyExists: there is such a folder.
            FailedPrecondition: the model has no file, it has changed, one beside it is gone, or
                the copy cannot be written.
        """
        served = self._find_model(name)
        if (files := served.files) is None:
            raise FailedPrecondition(f"{name} was not loaded from a file")
        info = served.info
        return await in_thread(lambda: files.store(info, folder))  # the thread holds no model

    async def run(self, call: Call) -> AsyncGenerator[Event, None]:
        """Progress and previews in order, then exactly one `Result`; closing cancels the call.

        Raises:
            NotFound, InvalidRequest, FailedPrecondition, Overloaded, Cancelled, DeadlineExceeded,
            Unavailable, InterpretError.
        """
        self._check_open()
        deadline = None if call.timeout is None else time.monotonic() + call.timeout
        served, registration = self._find_model(call.model), self._find_plugin(call.plugin)
        models = self._find_models(call, served, registration)
        with contextlib.ExitStack() as held:
            for users in (self._calls, *(item.users for item in (served, *models.values()))):
                held.enter_context(users.hold())
            request = await self._decode(call, served, registration, models)
            mailbox: Mailbox[Outcome] = Mailbox(asyncio.get_running_loop())
            member = Member(request, mailbox, deadline)
            if member.late():
                raise DeadlineExceeded("the deadline passed before the call was queued")
            self._scheduler.submit(member)
            try:
                while True:
                    event = await self._next(member)
                    yield event
                    if isinstance(event, Result):
                        return
            finally:
                self._resting.called()
                if not mailbox.settled:
                    self._scheduler.abandon(member)

    def pulse(self) -> Pulse:
        """How long the device has been inside one step, and whether a caller waits for it.

        Any thread may ask, at any time.
        """
        return self._scheduler.pulse()

    async def close(self, grace: float = 5.0) -> None:
        """Refuse new calls, let running ones finish for `grace` seconds, then end them.

        A call that is ended so raises `Unavailable`; its plugin stops at its next step.
        """
        self._closing = True
        self._resting.close()
        for releasing in tuple(self._releases):
            releasing.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._calls.empty()
        self._scheduler.close(Unavailable("the server is shutting down"))
        await asyncio.to_thread(self._scheduler.join, _JOIN_SECONDS)
        self._helpers.shutdown(wait=False)
        self._loaders.shutdown(wait=False)

    def _release(self, name: str) -> "asyncio.Task[None]":
        """Take a model out of service; the task ends when its memory is free."""
        dismantled = name not in self._lent
        self._lent.discard(name)
        task = asyncio.create_task(release(self._served.pop(name), dismantled=dismantled))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)
        return task

    async def _next(self, member: Member) -> Event:
        try:
            item = await member.mailbox.next(member.deadline)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the answer was ready") from None
        if isinstance(item, Progress):
            return item
        if isinstance(item, Preview):
            return await self._draw(member.request, item)
        return await self._assemble(member.request, item)

    async def _draw(self, request: Request, preview: Preview) -> Preview:
        return await self._off_loop(
            request.call.render is not None,
            lambda: draw_preview(request, preview),
            "a preview",
        )

    async def _assemble(self, request: Request, outcome: Outcome) -> Result:
        size = sum(value.nbytes for value in outcome.tensors.values())
        return await self._off_loop(
            request.call.render is not None or size > INLINE_BYTES,
            lambda: assemble(request, outcome),
            f"the result of {request.plugin.name}",
        )

    async def _decode(
        self,
        call: Call,
        served: Served,
        registration: Registration,
        models: Mapping[str, Served],
    ) -> Request:
        return await self._off_loop(
            decoded_bytes(call) > INLINE_BYTES,
            lambda: decode(call, served, registration, self._plugins, models),
            f"decoding a call of {call.plugin}",
        )

    async def _off_loop(self, heavy: bool, work: Callable[[], T], what: str) -> T:
        """Run light work here and heavy work in a helper thread."""
        if heavy:
            return await self._in_thread(self._helpers, work, what)
        with _safe(what), one_thread():
            return work()

    @staticmethod
    async def _in_thread(pool: ThreadPoolExecutor, work: Callable[[], T], what: str) -> T:
        def alone() -> T:
            with one_thread():
                return work()

        with _safe(what):
            return await asyncio.get_running_loop().run_in_executor(pool, alone)

    def _load_file(self, name: str, path: Path, manifest: Manifest, samples: Path | None) -> Loaded:
        loader = self._loader or _default_loader()
        limit = self._max_batch
        try:
            with _safe(f"loading {name}"):
                given = {} if samples is None else {"samples": samples}
                loaded = loader(
                    name, path, manifest, device=self._device, default_max_batch=limit, **given
                )
        except InterpretError as error:
            failure = bare(error)
        else:
            collect(thorough=False)
            return loaded
        collect(thorough=True)
        raise failure

    def _check_open(self) -> None:
        if self._closing:
            raise Unavailable("the server is shutting down")

    def _find_model(self, name: str, field: str = "model") -> Served:
        if name not in self._served:
            raise no_model(name, self._served, field)
        return self._served[name]

    def _find_models(
        self, call: Call, served: Served, registration: Registration
    ) -> dict[str, Served]:
        """The second models of a call, by role."""
        plugin = registration.plugin
        roles = describe_roles(plugin)
        check_roles(plugin.name, roles, call.models)
        found = {}
        for role in roles:
            if role.name in call.models:
                second = self._find_model(call.models[role.name], f"models.{role.name}")
                check_second(plugin.name, role, served.info, second.info)
                found[role.name] = second
        return found

    def _find_plugin(self, name: str) -> Registration:
        registration = self._plugins.get(name) or self._primitives.get(name)
        if registration is None:
            close = get_close_matches(name, self._plugins, n=3) or sorted(self._plugins)
            hint = f"; did you mean {', '.join(close[:3])}?" if close else ""
            raise NotFound(f"plugin: there is no plugin {name[:80]!r}{hint}")
        return registration


def _default_loader() -> Loader:
    from ..models.loading import load_classifier

    return load_classifier


@contextlib.contextmanager
def _safe(what: str) -> Iterator[None]:
    try:
        yield
    except InterpretError:
        raise
    except Exception as error:
        raise internal_error(error, what) from None


def _resolve(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
