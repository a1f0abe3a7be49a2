"""Gives freed memory back to the system while nobody calls. Imports no torch."""

import asyncio
import time
from collections.abc import Callable

from .allocator import return_freed_memory

REST_SECONDS = 10.0


class Resting:
    """Waits, after the last call, for a time without calls, and then returns freed memory.

    Doing so at once would make every call pay for fresh pages again.

    Args:
        busy: whether a call is running.
        seconds: without a call before memory is returned.
        give_back: returns it; in a thread, since it takes milliseconds per hundred MiB.
    """

    def __init__(
        self,
        busy: Callable[[], bool],
        seconds: float = REST_SECONDS,
        give_back: Callable[[], object] = return_freed_memory,
    ) -> None:
        self._busy, self._seconds, self._give_back = busy, seconds, give_back
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Future[object] | None = None

    def called(self) -> None:
        """A call has ended; on the event loop."""
        self._last = time.monotonic()
        if self._timer is None:
            self._wait(self._seconds)

    def close(self) -> None:
        """Return nothing from now on."""
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        left = self._seconds - (time.monotonic() - self._last)
        if self._busy() or left > 0:
            self._wait(self._seconds if self._busy() else left)
            return
        self._timer = None
        self._task = asyncio.get_running_loop().run_in_executor(None, self._give_back)
