"""How many calls are inside, and a wait until none is."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Occupancy:
    """Counts on one event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._waiters: set[asyncio.Event] = set()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be counted inside the block."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                for event in self._waiters:
                    event.set()

    async def empty(self) -> None:
        """Return when nobody is inside."""
        while self.count:
            event = asyncio.Event()
            self._waiters.add(event)
            try:
                await event.wait()
            finally:
                self._waiters.discard(event)
