"""Keeps what is served in step with the model repository."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..errors import FailedPrecondition, InterpretError, Unavailable
from ..models.repository import Entry, Plan, Problem, address, scan
from .names import Names

_logger = logging.getLogger(__name__)


@dataclass
class _State:
    """What has been done about one model of the repository."""

    seen: Plan | None = None  # the last scan's
    loaded: dict[str, Entry] = field(default_factory=dict)  # by version
    refused: dict[str, Entry] = field(default_factory=dict)
    reported: tuple[Problem, ...] = ()
    demanded: bool = False  # a call came for a model that is loaded on demand


class Reloader:
    """Loads, replaces and unloads the models of a repository as its folders change.

    A version whose files could not be loaded is tried again when they change. Until a default
    version or a label's version is loaded, the name keeps the version that it had, even where
    that is no longer in the repository.

    Args:
        root: the repository's folder.
        names: where the models are served.
    """

    def __init__(self, root: Path, names: Names) -> None:
        self._root, self._names = root, names
        self._states: dict[str, _State] = {}
        self._asked = asyncio.Event()
        self._turn = asyncio.Lock()
        self._unreadable = ""

    def ask(self) -> None:
        """Have `watch` look at the repository at once."""
        self._asked.set()

    async def watch(self, seconds: float) -> None:
        """Look at the repository for ever.

        Args:
            seconds: between two looks; what changed is taken up once it has been still from one
                look to the next. 0 looks only when asked.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds or None):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            try:
                await self.update(again=asked, patient=not asked)
            except Exception:
                _logger.exception("looking at the model repository failed")

    async def update(self, *, again: bool = False, patient: bool = False) -> tuple[str, ...]:
        """Look at the repository once and do what it asks for.

        Args:
            again: also load what was refused, or unloaded by a client, and has not changed.
            patient: leave a model alone whose folder is not as it was at the last look.

        Returns:
            One sentence for everything that is asked for, but is not served.
        """
        async with self._turn:
            try:
                plans = await asyncio.to_thread(scan, self._root)
            except InterpretError as error:
                if error.message != self._unreadable:
                    _logger.error("nothing is reloaded: %s", error.message)
                self._unreadable = error.message
                return (error.message,)
            self._unreadable = ""
            failures: list[str] = []
            for name in sorted({*plans, *self._states}):
                plan = plans.get(name, Plan(name))
                state = self._states.setdefault(name, _State())
                still, state.seen = plan == state.seen, plan
                if still or not patient:
                    failures += await self._follow(plan, state, again)
                if name not in plans and not state.loaded:
                    del self._states[name]
            return tuple(failures)

    async def _follow(self, plan: Plan, state: _State, again: bool) -> list[str]:
        problems = list(plan.problems)
        if not plan.unreadable:
            for version, entry in plan.entries.items():
                if self._is_due(plan, state, version, again):
                    problems += await self._load(plan, state, version, entry)
            self._publish(plan)
            await self._drop(plan, state)
            if plan.names.get(plan.name) and self._names.holds(plan.name):
                message = "a client's model has this name; the versions of the repository answer "
                problems.append(Problem(plan.name, f"{message}to {plan.name}@<version> alone"))
        sentences = [(problem, self._sentence(plan, problem)) for problem in problems]
        for problem, sentence in sentences:
            if problem not in state.reported:
                _logger.error("%s", sentence)
        state.reported = tuple(problems)
        return [sentence for _, sentence in sentences]

    def _is_due(self, plan: Plan, state: _State, version: str, again: bool) -> bool:
        entry = plan.entries[version]
        if plan.on_demand and not state.demanded:
            return False
        if state.loaded.get(version) == entry:
            return again and not self._names.holds(address(plan.name, version))
        return again or state.refused.get(version) != entry

    async def _load(self, plan: Plan, state: _State, version: str, entry: Entry) -> list[Problem]:
        own = address(plan.name, version)
        try:
            info = await self._names.load_version(own, entry.path, entry.manifest, entry.samples)
        except Unavailable:  # the server is closing
            return []
        except Exception as error:
            state.refused[version] = entry
            if isinstance(error, InterpretError):
                return [Problem(own, error.message)]
            _logger.exception("loading %s failed", own)
            return [Problem(own, "internal error")]
        state.loaded[version] = entry
        state.refused.pop(version, None)
        _logger.info("model %s: version %s, %s", own, info.version, info.format)
        return []

    async def _demand(self, name: str) -> None:
        """Load a model that is called for the first time.

        Raises:
            FailedPrecondition: no version of it can be loaded.
        """
        async with self._turn:
            state = self._states.get(name, _State())
            if state.demanded or state.seen is None:
                return
            state.demanded = True
            sentences = await self._follow(state.seen, state, again=False)
            if not state.loaded:
                state.demanded = False
                state.refused.clear()
                self._publish(state.seen)
                raise FailedPrecondition("; ".join(sentences) or f"{name} cannot be loaded")

    def _publish(self, plan: Plan) -> None:
        waiting = plan.entries if plan.on_demand and not self._states[plan.name].demanded else ()
        addresses = [address(plan.name, version) for version in waiting]
        expected = (*plan.names, *addresses) if addresses else ()
        self._names.expect(plan.name, expected, partial(self._demand, plan.name))
        aliases = {}
        for name, version in plan.names.items():
            for own in (address(plan.name, version), self._names.alias(name)):
                if own is not None and self._names.holds(own):
                    aliases[name] = own
                    break
        self._names.publish(plan.name, aliases)

    async def _drop(self, plan: Plan, state: _State) -> None:
        used = {self._names.alias(name) for name in plan.names}
        for version in [item for item in state.loaded if item not in plan.wanted]:
            own = address(plan.name, version)
            if own not in used:
                del state.loaded[version]
                await self._names.retire(own)
                _logger.info("model %s is unloaded", own)
        for version in [item for item in state.refused if item not in plan.wanted]:
            del state.refused[version]

    def _sentence(self, plan: Plan, problem: Problem) -> str:
        name, (subject, message) = plan.name, problem
        default = plan.names.get(name)
        asked = name if default and subject == address(name, default) else subject
        serving = subject if self._names.holds(subject) else self._names.own_name(asked)
        if serving == name or not self._names.holds(serving):
            return f"model {asked} is not served: {message}"
        if serving == subject:
            return f"model {subject} is not reloaded: {message}; what was loaded before goes on"
        if asked == subject:
            return f"model {subject} is not reloaded: {message}; it goes on as {serving}"
        return f"model {subject} is not served: {message}; {asked} goes on as {serving}"
