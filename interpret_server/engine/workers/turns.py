"""Who may load a model now: a file that loads for ever must not keep all others from loading."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Lets few loads run at once, and a few more where some of them take long.

    Args:
        quick: loads at once that have run for less than `seconds`.
        most: loads at once in all.
        seconds: after which a load no longer keeps the next one waiting.
    """

    def __init__(self, *, quick: int = 2, most: int = 8, seconds: float = 10.0) -> None:
        self._quick, self._most = asyncio.Semaphore(quick), asyncio.Semaphore(most)
        self._seconds = seconds

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it inside the block."""
        async with self._most:
            await self._quick.acquire()
            held = True

            def give_back() -> None:
                nonlocal held
                if held:
                    held = False
                    self._quick.release()

            timer = asyncio.get_running_loop().call_later(self._seconds, give_back)
            try:
                yield
            finally:
                timer.cancel()
                give_back()
