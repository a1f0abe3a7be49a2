"""Who has the device: alike calls merge into groups, and groups take turns at step boundaries.

One group computes at a time. At every step of `Job.track` the running group offers the device;
`turns` says which of the groups that wait, itself included, has it next.

A group of several steps whose like runs already waits for its end and gathers further calls: that
makes larger batches, and it ends no later than if the two, of equal length, had taken turns.
"""

import threading
from collections.abc import Callable, Hashable, Iterable
from contextlib import ExitStack
from functools import partial

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..errors import InterpretError, Overloaded, Unavailable
from .admission import Admission
from .failure import internal_error
from .group import Group, Pulse, Settlement
from .member import Member
from .openmp import leave_team
from .threads import ThreadPool
from .turns import Turns

MAX_STARTED = 32  # groups of several steps that may be between their first and their last
MAX_QUEUE_BYTES = 1 << 30

Execute = Callable[[Group], Iterable[Settlement]]


class Scheduler:
    """Admits calls, merges them, and passes the device around.

    Args:
        execute: computes a started group in its own thread; it never raises.
        max_queue: most calls that may wait to be started.
        max_queue_bytes: most bytes of their inputs.
    """

    def __init__(
        self, execute: Execute, *, max_queue: int, max_queue_bytes: int = MAX_QUEUE_BYTES
    ) -> None:
        self._execute = execute
        self._lock = threading.Lock()
        self._pool = ThreadPool("interpret-device")
        self._admission = Admission(max_queue, max_queue_bytes)
        self._ready = Turns()  # groups that wait for a turn, the first one or the next
        self._open: dict[Hashable, Group] = {}  # groups that calls may still join
        self._queued: dict[Member, Group] = {}  # calls that have not started
        self._leaders: dict[Hashable, Group] = {}  # running groups that their like wait for
        self._alive: set[Group] = set()
        self._holder: Group | None = None
        self._started = 0
        self._stepwise: set[str] = set()  # plugins whose last run took several steps
        self._closed = False

    def submit(self, member: Member) -> None:
        """Queue a call. Never blocks.

        Raises:
            Overloaded: too much waits.
            Unavailable: the scheduler is closed.
        """
        request = member.request
        with self._lock:
            if self._closed:
                raise Unavailable("the server is shutting down")
            if (holder := self._holder) is not None:
                self._admission.enter(request.call.client, request.nbytes)
                if not self._ready:  # while it was alone it paid for nothing
                    self._ready.shares.charge(holder.clients, holder.bill(steps_only=True))
                    self._ready.shares.advance(holder.clients)
            self._ready.shares.enter(request.call.client)
            group = self._open.get(request.key)
            if group is not None and group.has_room(member):
                self._queued[member] = group
                group.join(member)
                self._ready.update(group)
                return
            group = Group(member, self._offer, queued=holder is not None)
            self._queued[member] = self._open[group.key] = group
            self._alive.add(group)
            self._ready.add(group)
            if holder is None:
                self._pass_turn()

    def abandon(self, member: Member) -> None:
        """Forget a call whose caller has gone; a queued one is never run."""
        member.cancelled = True
        with self._lock:
            group = self._queued.get(member)
            if group is None:
                return
            self._dequeue(group, member)
            if len(group.members) == 1:
                self._ready.remove(group)
                self._forget(group)
            else:
                group.leave(member)
                self._ready.update(group)
                self._ready.shares.leave(member.request.call.client)

    def close(self, reason: InterpretError) -> None:
        """Refuse new calls and end every admitted one with `reason`; plugins stop at a step."""
        with self._lock:
            self._closed = True
            for group in list(self._alive):
                for member in group.members:
                    member.settle(reason)
                if not group.started:
                    self._ready.remove(group)
                    self._dequeue(group, *group.members)
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
        with ExitStack() as stack:
            with self._lock:
                self._stepwise.add(group.plugin)
                self._ready.shares.charge(group.clients, group.bill())
                self._ready.add(group)
                following = self._ready.take(self._may_start)
                if following is None or following is group:
                    return
                stack.enter_context(group.isolation.suspended())
                group.give()
                if not self._hand(following):
                    self._pass_turn()
            group.resume.acquire()

    def _pass_turn(self, *, keep: bool = False) -> Group | None:
        """Give the device to the next group; with `keep`, one that starts is for this thread.

        A thread that goes on computing keeps its team of OpenMP threads busy, where a second
        thread would bring a second team, and more threads than cores make every region wait.
        """
        self._holder = None
        while (group := self._ready.take(self._may_start)) is not None:
            if keep and not group.started:
                self._begin(group)
                return group
            if self._hand(group):
                return None
        return None

    def _hand(self, group: Group) -> bool:
        """Give the device to a group; False where the system gives no thread to start it in.

        It computes in another thread than this one, whose team of OpenMP threads would make both
        slower.
        """
        leave_team()
        if group.started:
            self._holder = group
            group.take()
            group.resume.release()
            return True
        self._begin(group)
        try:
            self._pool.run(partial(self._run, group))
        except RuntimeError:
            for member in group.members:
                member.settle(Overloaded("the server has no thread left; try again later"))
            self._holder = None
            self._started -= 1
            self._forget(group)
            return False
        return True

    def _begin(self, group: Group) -> None:
        self._holder = group
        group.take()
        group.start()
        if group.leads:
            self._leaders[group.key] = group
        self._started += 1
        self._close_to_others(group)
        if group.queued:
            self._admission.started(len(group.members))
        self._dequeue(group, *group.members)

    def _may_start(self, group: Group) -> bool:
        if group.plugin not in self._stepwise:
            return True
        leader = self._leaders.get(group.key)
        if leader is not None and group.priority <= leader.priority:
            return False
        return self._started < MAX_STARTED

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
            self._ready.shares.charge(group.clients, group.bill())
            group.give()
            if not group.steps:
                self._stepwise.discard(group.plugin)
            self._started -= 1
            self._forget(group)
            following = self._pass_turn(keep=clean)
        for member, outcome in settlements:
            member.settle(outcome)
        return clean, following

    def _dequeue(self, group: Group, *members: Member) -> None:
        for member in members:
            del self._queued[member]
            if group.queued:
                self._admission.leave(member.request.call.client, member.request.nbytes)

    def _close_to_others(self, group: Group) -> None:
        if self._open.get(group.key) is group:
            del self._open[group.key]

    def _forget(self, group: Group) -> None:
        self._close_to_others(group)
        self._alive.discard(group)
        if self._leaders.get(group.key) is group:
            del self._leaders[group.key]
        for member in group.members:
            self._ready.shares.leave(member.request.call.client)
