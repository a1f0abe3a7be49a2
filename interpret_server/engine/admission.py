"""How much may wait for its start: calls, bytes of their inputs, and each client's share."""

import time
from collections import Counter
from collections.abc import Callable

from ..errors import Overloaded

_SMOOTHING = 0.2  # weight of the newest start in the estimate of the time between two
_LONGEST_WAIT, _SHORTEST_WAIT = 10.0, 0.05  # seconds


class Admission:
    """Counts the calls that wait to be started. Not thread-safe.

    A client may hold half of the places while calls of others wait too, and seven eighths of the
    places and bytes otherwise, so that one client's backlog never shuts out another's call.

    Args:
        max_calls: places.
        max_bytes: most bytes of inputs; a call may have more while none waits.
        clock: seconds.
    """

    def __init__(
        self, max_calls: int, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_calls, self._max_bytes, self._clock = max_calls, max_bytes, clock
        self.calls = 0
        self.bytes = 0
        self._calls_of: Counter[str] = Counter()
        self._bytes_of: Counter[str] = Counter()
        self._interval = 0.05  # seconds between two starts while calls wait
        self._since = clock()  # the last start, or when calls began to wait

    def enter(self, client: str, size: int) -> None:
        """A call with `size` bytes of inputs begins to wait.

        Raises:
            Overloaded: there is no place, with the time in which one should be free.
        """
        self._check(client, size)
        if not self.calls:
            self._since = self._clock()
        self.calls += 1
        self.bytes += size
        self._calls_of[client] += 1
        self._bytes_of[client] += size

    def leave(self, client: str, size: int) -> None:
        """A call waits no more, for whatever reason."""
        self.calls -= 1
        self.bytes -= size
        self._calls_of[client] -= 1
        self._bytes_of[client] -= size
        if not self._calls_of[client]:
            del self._calls_of[client], self._bytes_of[client]

    def started(self, calls: int) -> None:
        """Take note that so many calls were started just now, as one group."""
        now = self._clock()
        interval = (now - self._since) / max(1, calls)
        self._interval += _SMOOTHING * (interval - self._interval)
        self._since = now

    def retry_after(self) -> float:
        """Seconds in which an eighth of the calls that wait should have been started."""
        interval = max(self._interval, (self._clock() - self._since) / max(1, self.calls))
        return min(_LONGEST_WAIT, max(_SHORTEST_WAIT, interval * max(1, self.calls // 8)))

    def _check(self, client: str, size: int) -> None:
        own, own_bytes = self._calls_of[client], self._bytes_of[client]
        half = max(1, self._max_calls // 2)
        if self.calls >= self._max_calls:
            raise self._refusal(f"{self.calls} calls are waiting already")
        if own >= (half if own < self.calls else _most(self._max_calls)):
            raise self._refusal(f"{own} calls of this client are waiting already")
        if own and own_bytes + size > _most(self._max_bytes):
            raise self._refusal(f"inputs of {_mib(own_bytes)} of this client are waiting already")
        if self.bytes and self.bytes + size > self._max_bytes:
            raise self._refusal(f"inputs of {_mib(self.bytes)} are waiting already")

    def _refusal(self, why: str) -> Overloaded:
        return Overloaded(f"{why}; try again later", retry_after=self.retry_after())


def _most(limit: int) -> int:
    """What one client may have of a limit."""
    return limit - limit // 8


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
