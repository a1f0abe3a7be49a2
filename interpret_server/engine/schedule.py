"""Who has the device: alike calls merge into groups, and groups take turns at step boundaries.

One group computes at a time. At every step of `Job.track` the running group offers the device,
and the groups that wait, new ones included, each get it for one step before it comes back.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..errors import InterpretError, Overloaded, Unavailable
from ..plugin import Rows
from .failure import internal_error
from .isolation import Isolation
from .member import Member, Outcome
from .threads import ThreadPool

MAX_STARTED = 32  # groups that may be between their first and last step
_SMOOTHING = 0.2  # weight of the newest run in the estimate of a run's time


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
    """Alike calls that run as one batch."""

    def __init__(self, member: Member, offer: Callable[["Group"], None]) -> None:
        request = member.request
        self.key: Hashable = request.key
        self.members = [member]
        self.limit = 0 if request.plugin.rows is Rows.GROUP else request.served.max_batch
        self.started = False
        self.resume = threading.Semaphore(0)
        self.isolation = Isolation(request.served.classifier.device)
        self._offer = offer
        self._held = 0.0
        self._taken: float | None = None
        self._stepped = 0.0

    @property
    def rows(self) -> int:
        """Rows of all its calls."""
        return sum(member.request.rows for member in self.members)

    def waiting(self) -> int:
        """How many of its callers still wait."""
        return sum(member.waiting() for member in self.members)

    def has_room(self, member: Member) -> bool:
        """Whether a call's rows still fit into the batch."""
        return self.rows + member.request.rows <= self.limit

    def offer(self) -> None:
        """Let the groups that wait have the device; returns when it is this group's again."""
        self._stepped = time.monotonic()
        self._offer(self)

    def take(self) -> None:
        """Start the clock of holding the device."""
        self._taken = self._stepped = time.monotonic()

    def pulse(self) -> Pulse:
        """How long the step that runs now has taken, and whether anybody waits for it."""
        return Pulse(time.monotonic() - self._stepped, any(m.waiting() for m in self.members))

    def give(self) -> None:
        """Stop that clock."""
        self._held, self._taken = self.held(), None

    def held(self) -> float:
        """Seconds for which the group has held the device."""
        running = 0.0 if self._taken is None else time.monotonic() - self._taken
        return self._held + running


Settlement = tuple[Member, Outcome | InterpretError]
Execute = Callable[[Group], Iterable[Settlement]]


class Scheduler:
    """Admits calls, merges them, and passes the device around.

    Args:
        execute: computes a started group in its own thread; it never raises.
        max_queue: most calls that may wait for the device.
    """

    def __init__(self, execute: Execute, *, max_queue: int) -> None:
        self._execute = execute
        self._max_queue = max_queue
        self._lock = threading.Lock()
        self._pool = ThreadPool("interpret-device")
        self._ready: deque[Group] = deque()  # waiting for a turn, the first one or the next
        self._open: dict[Hashable, Group] = {}  # groups that calls may still join
        self._alive: set[Group] = set()
        self._holder: Group | None = None
        self._started = 0
        self._run_seconds = 0.05
        self._closed = False

    def submit(self, member: Member) -> None:
        """Queue a call. Never blocks.

        Raises:
            Overloaded: too many calls wait.
            Unavailable: the scheduler is closed.
        """
        with self._lock:
            if self._closed:
                raise Unavailable("the server is shutting down")
            waiting = sum(group.waiting() for group in self._ready)
            if self._holder is not None and waiting >= self._max_queue:
                raise Overloaded(
                    f"{waiting} calls are waiting already; try again later",
                    retry_after=min(10.0, max(0.05, self._run_seconds)),
                )
            group = self._open.get(member.request.key)
            if group is not None and group.has_room(member):
                group.members.append(member)
                return
            group = Group(member, self._offer)
            self._open[group.key] = group
            self._alive.add(group)
            self._ready.append(group)
            if self._holder is None:
                self._pass_turn()

    def abandon(self, member: Member) -> None:
        """Forget a call whose caller has gone; a queued one is never run."""
        member.cancelled = True
        with self._lock:
            for group in self._ready:
                if not group.started and member in group.members:
                    group.members.remove(member)
                    if not group.members:
                        self._ready.remove(group)
                        self._forget(group)
                    return

    def close(self, reason: InterpretError) -> None:
        """Refuse new calls and end every admitted one with `reason`; plugins stop at a step."""
        with self._lock:
            self._closed = True
            for group in list(self._alive):
                for member in group.members:
                    member.settle(reason)
                if not group.started:
                    self._ready.remove(group)
                    self._forget(group)
        self._pool.close()

    def join(self, timeout: float) -> bool:
        """Wait for the threads of a closed scheduler to end; tells whether they did."""
        return self._pool.join(timeout)

    def pulse(self) -> Pulse:
        """The pulse of the group that holds the device. Never blocks; any thread may ask."""
        holder = self._holder
        return Pulse() if holder is None else holder.pulse()

    def _offer(self, group: Group) -> None:
        if not self._ready:  # a stale answer costs at most one step
            return
        with group.isolation.suspended():
            with self._lock:
                group.give()
                self._ready.append(group)
                self._pass_turn()
            group.resume.acquire()

    def _pass_turn(self, *, keep: bool = False) -> Group | None:
        """Give the device to the next group; with `keep`, one that starts is for this thread.

        A thread that goes on computing keeps its team of OpenMP threads busy, where a second
        thread would bring a second team, and more threads than cores make every region wait.
        """
        self._holder = None
        while (group := self._next()) is not None:
            self._ready.remove(group)
            self._holder = group
            group.take()
            if group.started:
                group.resume.release()
                return None
            group.started = True
            self._started += 1
            self._close_to_others(group)
            if keep:
                return group
            try:
                self._pool.run(partial(self._run, group))
                return None
            except RuntimeError:  # the system gives no more threads
                for member in group.members:
                    member.settle(Overloaded("the server has no thread left; try again later"))
                self._holder = None
                self._started -= 1
                self._forget(group)
        return None

    def _next(self) -> Group | None:
        room = self._started < MAX_STARTED
        return next((group for group in self._ready if group.started or room), None)

    def _run(self, group: Group) -> bool:
        """Run a group, then those that start next; False if plugins left this thread unclean."""
        following: Group | None = group
        clean = True
        while following is not None:
            clean, following = self._compute(following)
        return clean

    def _compute(self, group: Group) -> tuple[bool, Group | None]:
        settlements: list[Settlement] = []
        try:
            with group.isolation.active():
                settlements.extend(self._execute(group))
        except BaseException as error:  # a plugin may even try to leave the process
            failure = internal_error(error, f"a group of {len(group.members)} calls")
            settlements.extend((member, failure) for member in group.members)
        clean = torch.is_grad_enabled() and not _get_current_dispatch_mode_stack()
        with self._lock:
            group.give()
            self._run_seconds += _SMOOTHING * (group.held() - self._run_seconds)
            self._started -= 1
            self._forget(group)
            following = self._pass_turn(keep=clean)
        for member, outcome in settlements:
            member.settle(outcome)
        return clean, following

    def _close_to_others(self, group: Group) -> None:
        if self._open.get(group.key) is group:
            del self._open[group.key]

    def _forget(self, group: Group) -> None:
        self._close_to_others(group)
        self._alive.discard(group)
