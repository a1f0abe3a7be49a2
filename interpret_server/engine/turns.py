"""Which of the groups that wait has the device next.

1. The highest priority goes first.
2. A group that has not started goes before the next step of one that runs, unless its client has
   had much more of the device than theirs; a client's only call still goes after every such step.
3. The group whose client has had least of the device goes first, then the one that waits longest.

Whatever is passed over seven times in a row is next, so nothing starves.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .group import Group
from .shares import Shares

EVERY = 8  # every eighth turn at least goes to those that are passed over
ADVANCE_SECONDS = 1.0  # by which a client may be ahead of others and still start calls first

_Queues = dict[str, OrderedDict[Group, None]]  # by client


class Level(NamedTuple):
    """Groups of one priority that have started, or that have not."""

    priority: int
    started: bool


class Turns:
    """The groups that wait for a turn, the first one or the next. Not thread-safe."""

    def __init__(self) -> None:
        self.shares = Shares()
        self._levels: dict[Level, _Queues] = {}
        self._groups: dict[Group, tuple[Level, tuple[str, ...]]] = {}
        self._passed: dict[Level, int] = {}
        self._places = 0
        self._stepped = False  # the last turn was a further step of a group

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups)

    def add(self, group: Group) -> None:
        """Let a group wait, behind those of its kind."""
        self._places += 1
        group.place = self._places
        self._insert(group)

    def remove(self, group: Group) -> None:
        """Let a group wait no more."""
        level, clients = self._groups.pop(group)
        queues = self._levels[level]
        for client in clients:
            del queues[client][group]
            if not queues[client]:
                del queues[client]
        if not queues:
            del self._levels[level]

    def update(self, group: Group) -> None:
        """Take note that calls joined or left a group that waits."""
        self.remove(group)
        self._insert(group)

    def take(self, may_start: Callable[[Group], bool]) -> Group | None:
        """Remove and return the group that is next; None where none may have the device.

        Args:
            may_start: whether a group that has not started may do so.
        """
        first = {
            level: group
            for level, queues in self._levels.items()
            if (group := self._first(level, queues, may_start)) is not None
        }
        if not first:
            return None
        level = self._overdue(first) or self._foremost(first)
        self._passed = {other: self._passed.get(other, 0) + 1 for other in first if other != level}
        self._stepped = level.started
        group = first[level]
        self.remove(group)
        self.shares.advance(group.clients)
        return group

    def _insert(self, group: Group) -> None:
        level, clients = Level(group.priority, group.started), tuple(group.clients)
        self._groups[group] = (level, clients)
        queues = self._levels.setdefault(level, {})
        for client in clients:
            queues.setdefault(client, OrderedDict())[group] = None

    def _first(
        self, level: Level, queues: _Queues, may_start: Callable[[Group], bool]
    ) -> Group | None:
        best: tuple[float, int] | None = None
        found: Group | None = None
        for client, queue in queues.items():
            if level.started:
                group = next(iter(queue))
            elif (fresh := next(filter(may_start, queue), None)) is not None:
                group = fresh
            else:
                continue
            rank = (self.shares.used(client), group.place)
            if best is None or rank < best:
                best, found = rank, group
        return found

    def _overdue(self, first: dict[Level, Group]) -> Level | None:
        passed = max(first, key=lambda level: self._passed.get(level, 0))
        return passed if self._passed.get(passed, 0) >= EVERY - 1 else None

    def _foremost(self, first: dict[Level, Group]) -> Level:
        priority = max(level.priority for level in first)
        fresh, running = Level(priority, False), Level(priority, True)
        if fresh not in first or running not in first:
            return fresh if fresh in first else running
        newcomer, other = first[fresh], first[running]
        least = self.shares.least
        ahead = least(newcomer.clients) - least(other.clients)
        if ahead <= ADVANCE_SECONDS or (self._stepped and self._alone(newcomer)):
            return fresh
        return running

    def _alone(self, group: Group) -> bool:
        """Whether some client of the group has no other call."""
        return any(self.shares.calls(client) == 1 for client in group.clients)
