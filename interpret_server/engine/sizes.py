"""How many rows of a kind of work run at once: what fits the memory and the time of a step."""

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

MAX_STEP_SECONDS = 0.25
GOOD_BATCHES = 64  # after which a size that memory set is doubled
_AIM = 0.8  # of a step's longest time; a step that varies a little is then still short enough
_KINDS = 256  # whose sizes are remembered


@dataclass
class _Limits:
    by_time: float = math.inf
    by_memory: int | None = None
    good: int = 0  # batches in a row that filled `by_memory`
    each: float = math.inf  # seconds of a row in the last step, if it was on time


class BatchSizes:
    """What one model's batches have shown. Any thread may use it.

    A kind of work is a plugin and the shape of a row. A step's time is taken to grow with the rows
    at most in proportion, so a small batch never promises too much for a larger one. A late step of
    so few rows that by the one before it would have been on time is taken for chance, for the work
    of another process, unless the next one is late too.

    Args:
        max_rows: most rows in any case.
        max_step: seconds that a step should take at most.
    """

    def __init__(self, max_rows: int, max_step: float = MAX_STEP_SECONDS) -> None:
        self._max_rows, self._max_step = max_rows, max_step
        self._lock = threading.Lock()
        self._kinds: OrderedDict[Hashable, _Limits] = OrderedDict()

    def rows(self, kind: Hashable) -> int:
        """Most rows that should run at once, at least 1."""
        with self._lock:
            limits = self._kinds.get(kind)
        if limits is None:
            return self._max_rows
        by_memory = self._max_rows if limits.by_memory is None else limits.by_memory
        return max(1, int(min(self._max_rows, limits.by_time, by_memory)))

    def ran(self, kind: Hashable, rows: int, seconds: float) -> None:
        """A batch of `rows` was finished; its longest step took `seconds`."""
        fits = rows * _AIM * self._max_step / max(seconds, 1e-9)
        with self._lock:
            limits = self._limits(kind)
            late = seconds > self._max_step
            by_chance = late and rows * limits.each <= self._max_step
            limits.each = math.inf if late else seconds / rows
            if (late and not by_chance) or (not late and limits.by_time < fits):
                limits.by_time = fits if fits < self._max_rows else math.inf
            if limits.by_memory is not None and rows >= limits.by_memory:
                limits.good += 1
                if limits.good == GOOD_BATCHES:
                    twice = 2 * limits.by_memory
                    limits.by_memory = twice if twice < self._max_rows else None
                    limits.good = 0

    def ran_out(self, kind: Hashable, rows: int) -> None:
        """A batch of `rows` did not fit into the memory."""
        with self._lock:
            limits = self._limits(kind)
            limits.by_memory, limits.good = max(1, rows // 2), 0

    def _limits(self, kind: Hashable) -> _Limits:
        limits = self._kinds.setdefault(kind, _Limits())
        self._kinds.move_to_end(kind)
        if len(self._kinds) > _KINDS:
            self._kinds.popitem(last=False)
        return limits
