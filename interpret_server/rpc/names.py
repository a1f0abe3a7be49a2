"""The names that models answer to: their own, and those that the repository gives its versions."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, cast

from ..engine.api import Call, Event, ModelInfo, PluginInfo, StoredModel, Worker
from ..engine.naming import is_hidden, no_model, wrong_name
from ..errors import AlreadyExists, NotFound
from ..models.manifest import Manifest


class Names(Worker):
    """A worker whose models have further names, which change all at once.

    A version of the repository is loaded once, as `net@3`; `net` and `net@stable` are aliases of
    it. A call goes to the model that its name means at that moment and stays with it. A model of
    a client's own called `net` hides the alias until it is unloaded. Models with hidden names,
    which the front end loads into the worker for itself, do not exist here.

    Args:
        worker: holds the models under their own names.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._aliases: dict[str, str] = {}  # alias -> own name
        self._retiring: set[asyncio.Task[None]] = set()
        self._expected: dict[str, Mapping[str, Callable[[], Awaitable[None]]]] = {}

    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin, by name."""
        return self._worker.plugins()

    def models(self) -> tuple[ModelInfo, ...]:
        """Every loaded model once, by name: the default version of `net` as `net`."""
        return tuple(sorted(map(self._shown, self._own().values()), key=lambda info: info.name))

    def find(self, name: str, version: str = "") -> ModelInfo:
        """What is known of the model that a name means.

        Args:
            name: any name of a loaded model.
            version: the version of it that is asked for, or one of its labels.

        Raises:
            NotFound: there is no such model or version.
        """
        own = self._own()
        info = own.get(self.own_name(name))
        if info is not None and version in ("", info.version):
            return self._shown(info)
        other = own.get(self.own_name(f"{name}@{version}"))
        if version and other is not None:
            return self._shown(other)
        if info is None:
            raise NotFound(f"no model {name!r} is loaded; ListModels lists those that are")
        served = " and ".join(map(repr, self.versions(name)))
        raise NotFound(f"model {name!r} is served in version {served}, not {version!r}")

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions in which a model is served; the one that the name means comes first."""
        own, meant = self._own(), self.own_name(name)
        first = (own[meant].version,) if meant in own else ()
        others = (
            info.version for key, info in own.items() if key.startswith(f"{name}@") and key != meant
        )
        return tuple(dict.fromkeys((*first, *others)))

    def own_name(self, name: str) -> str:
        """The own name of the model that a name means; the name itself where there is none."""
        alias = self._aliases.get(name)
        return name if alias is None or self.holds(name) else alias

    def holds(self, own: str) -> bool:
        """Whether a model of that own name is loaded."""
        return own in self._own()

    def alias(self, name: str) -> str | None:
        """The own name that an alias stands for, be it hidden or not."""
        return self._aliases.get(name)

    def publish(self, model: str, aliases: Mapping[str, str]) -> None:
        """Replace every alias of a model of the repository.

        Args:
            model: `net`, whose aliases are `net` and `net@<label>`.
            aliases: alias -> own name of a loaded model.
        """
        others = {
            alias: own
            for alias, own in self._aliases.items()
            if alias != model and not alias.startswith(f"{model}@")
        }
        self._aliases = {**others, **aliases}

    def expect(self, model: str, names: Iterable[str], load: Callable[[], Awaitable[None]]) -> None:
        """Have a model of the repository loaded when one of its names is first used.

        Args:
            model: `net`; what was expected of it before is forgotten.
            names: that it is to answer to.
            load: loads it, or raises why not.
        """
        self._expected[model] = dict.fromkeys(names, load)

    async def arrive(self, name: str, version: str = "") -> None:
        """Load the model that a name means, if it waits to be used first.

        Raises:
            FailedPrecondition: it cannot be loaded.
        """
        for wanted in (name, f"{name}@{version}" if version else name):
            if self.holds(self.own_name(wanted)):
                continue
            for names in tuple(self._expected.values()):
                if wanted in names:
                    await names[wanted]()

    async def load(
        self,
        name: str,
        path: Path,
        manifest: Manifest,
        *,
        replace: bool = False,
        samples: Path | None = None,
    ) -> ModelInfo:
        """Load a client's file; replacing a model of the repository unloads that version.

        Raises:
            InvalidModel, ModelRejected, InvalidRequest, AlreadyExists.
        """
        if is_hidden(name):
            raise wrong_name(name)
        if name in self._aliases and not replace:
            raise AlreadyExists(
                f"name: a model called {name} is loaded; unload it first, or ask to replace it"
            )
        info = await self._worker.load(name, path, manifest, replace=replace, samples=samples)
        if replace and (version := self._aliases.get(name)) is not None:
            await self.retire(version)
        return info

    async def load_version(
        self, own: str, path: Path, manifest: Manifest, samples: Path | None
    ) -> ModelInfo:
        """Load a version of the repository under its own name, in place of what had it.

        Raises:
            InvalidModel, ModelRejected, InvalidRequest, Unavailable.
        """
        if is_hidden(own):
            raise wrong_name(own)
        return await self._worker.load(own, path, manifest, replace=True, samples=samples)

    async def unload(self, name: str) -> None:
        """Forget a model under all its names once the calls that run on it are done.

        Raises:
            NotFound: no model of that name is loaded.
        """
        self._check(name, "name")
        own = self.own_name(name)
        self._aliases = {alias: item for alias, item in self._aliases.items() if item != own}
        await self._worker.unload(own)

    async def keep(self, name: str, folder: Path) -> StoredModel:
        """As the worker's."""
        self._check(name)
        return await self._worker.keep(self.own_name(name), folder)

    async def retire(self, own: str) -> None:
        """As `unload`, but without waiting for calls; a model that is not loaded is left alone."""
        if self.holds(own):
            task = asyncio.create_task(self.unload(own))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
            await asyncio.sleep(0)  # the task takes it out of service before it waits

    def run(self, call: Call) -> AsyncIterator[Event]:
        """As the worker's; names are looked up at once, or once their models are loaded."""
        self._check(call.model)
        for role, name in call.models.items():
            self._check(name, f"models.{role}")
        called = {call.model, *call.models.values()}
        if any(called & names.keys() for names in self._expected.values()):
            return self._run_later(call)
        return self._run_now(call)

    async def _run_later(self, call: Call) -> AsyncIterator[Event]:
        for name in (call.model, *call.models.values()):
            await self.arrive(name)
        async with aclosing(cast(Any, self._run_now(call))) as events:
            async for event in events:
                yield event

    def _run_now(self, call: Call) -> AsyncIterator[Event]:
        own = self.own_name(call.model)
        models = {role: self.own_name(name) for role, name in call.models.items()}
        if (own, models) != (call.model, call.models):
            call = changed(call, model=own, models=models)
        return self._worker.run(call)

    async def close(self, grace: float = 5.0) -> None:
        """Close the worker."""
        for task in tuple(self._retiring):
            task.cancel()
        await self._worker.close(grace)

    def _own(self) -> dict[str, ModelInfo]:
        return {info.name: info for info in self._worker.models() if not is_hidden(info.name)}

    def _check(self, name: str, field: str = "model") -> None:
        if is_hidden(name):
            raise no_model(name, self._own(), field)

    def _shown(self, info: ModelInfo) -> ModelInfo:
        """Under its bare name where that means it; a note tells its other names."""
        own = info.name
        names = [alias for alias, item in self._aliases.items() if item == own]
        visible = sorted(alias for alias in names if not self.holds(alias))
        if not visible:
            return info
        bare = own.partition("@")[0]
        shown = bare if bare in visible else own
        others = [own, *visible]
        others.remove(shown)
        note = f"It also answers to {' and '.join(others)}."
        return changed(info, name=shown, notes=(*info.notes, note))
