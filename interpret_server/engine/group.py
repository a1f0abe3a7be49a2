"""Alike calls that run as one batch."""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from ..errors import InterpretError
from ..plugin import Rows
from .isolation import Isolation
from .member import Member, Outcome

Settlement = tuple[Member, Outcome | InterpretError]


@dataclass(frozen=True)
class Pulse:
    """What a watchdog asks.

    Args:
        busy_seconds: how long the step that runs now has taken so far; 0.0 where none runs.
        wanted: whether any caller still waits for that step.
    """

    busy_seconds: float = 0.0
    wanted: bool = False


class Group:
    """Calls with equal keys, from the first one's admission to the last one's outcome.

    Args:
        member: the first call.
        offer: called at every step boundary; returns when the device is the group's again.
        queued: it waits for others before it starts.
    """

    def __init__(
        self, member: Member, offer: Callable[["Group"], None], *, queued: bool = True
    ) -> None:
        request = member.request
        self.key: Hashable = request.key
        self.plugin = request.plugin.name
        self.members: list[Member] = []
        self.joinable = request.plugin.rows is Rows.INDEPENDENT
        self.rows = 0
        self.clients: dict[str, int] = {}  # rows of each
        self.priority = member.request.call.priority
        self.queued = queued
        self.started = False
        self.leads = False  # started with all its rows in one chunk
        self.steps = 0  # boundaries so far
        self.place = 0  # in the order in which groups began to wait
        self.resume = threading.Semaphore(0)
        alone = request.call.alone
        self.isolation = Isolation(
            request.served.classifier.device,
            request.precision,
            repeatable=alone,
            seed=request.batch.seeds[0] if alone else None,
        )
        self._offer = offer
        self._held = 0.0
        self._billed = 0.0
        self._taken: float | None = None
        self._stepped = 0.0
        self._request = request
        self.join(member)

    def waiting(self) -> int:
        """How many of its callers still wait."""
        return sum(member.waiting() for member in self.members)

    def has_room(self, member: Member) -> bool:
        """Whether a call's rows still fit into the batch."""
        return self.joinable and self.rows + member.request.rows <= self._request.max_rows

    def join(self, member: Member) -> None:
        """Add a call; the most urgent one sets the priority of all."""
        request = member.request
        client = request.call.client
        self.members.append(member)
        self.rows += request.rows
        self.clients[client] = self.clients.get(client, 0) + request.rows
        self.priority = max(self.priority, request.call.priority)

    def leave(self, member: Member) -> None:
        """Take out a call, before the group has started."""
        self.members.remove(member)
        client = member.request.call.client
        self.rows -= member.request.rows
        self.clients[client] -= member.request.rows
        if all(other.request.call.client != client for other in self.members):
            del self.clients[client]
        priorities = (other.request.call.priority for other in self.members)
        self.priority = max(priorities, default=self.priority)

    def start(self) -> None:
        """Take no more calls."""
        self.started = True
        self.leads = self.joinable and self.rows <= self._request.max_rows

    def offer(self) -> None:
        """Let the groups that wait have the device; returns when it is this group's again."""
        self.steps += 1
        self._stepped = time.monotonic()
        self._offer(self)

    def take(self) -> None:
        """Start the clock of holding the device."""
        self._taken = self._stepped = time.monotonic()

    def give(self) -> None:
        """Stop that clock."""
        self._held, self._taken = self.held(), None

    def held(self) -> float:
        """Seconds for which the group has held the device."""
        running = 0.0 if self._taken is None else time.monotonic() - self._taken
        return self._held + running

    def bill(self, *, steps_only: bool = False) -> float:
        """Seconds held since the last bill; with `steps_only` without the step that runs."""
        held = self.held()
        if steps_only:
            held -= time.monotonic() - self._stepped
        seconds = max(0.0, held - self._billed)
        self._billed += seconds
        return seconds

    def pulse(self) -> Pulse:
        """How long the step that runs now has taken, and whether anybody waits for it."""
        return Pulse(time.monotonic() - self._stepped, any(m.waiting() for m in self.members))
