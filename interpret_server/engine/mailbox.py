"""What a call's reader is yet to see: the latest progress, the latest preview, the outcome.

Nothing else is kept, so a reader that lags costs neither memory nor the device's time.
"""

import asyncio
import threading
from typing import Generic, TypeVar

from ..errors import InterpretError
from .api import Preview, Progress
from .failure import bare

T = TypeVar("T")


class Mailbox(Generic[T]):
    """From the device's threads to one reader on an event loop; `T` is what a call ends with.

    Made by the loop's own thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._reader = loop, threading.get_ident()
        self._lock = threading.Lock()
        self._filled = asyncio.Event()
        self._woken = False
        self._progress: Progress | None = None
        self._preview: Preview | None = None
        self._outcome: T | InterpretError | None = None
        self._settled = False

    @property
    def settled(self) -> bool:
        """Whether the outcome is known; the reader may not have seen it."""
        return self._settled

    def progress(self, progress: Progress) -> None:
        """Replace the progress that the reader has not seen."""
        with self._lock:
            self._progress = progress
            self._wake()

    def preview(self, preview: Preview) -> None:
        """Replace the preview that the reader has not seen."""
        with self._lock:
            self._preview = preview
            self._wake()

    def settle(self, outcome: T | InterpretError) -> None:
        """End the call; only the first outcome counts.

        An error loses its traceback, whose frames would hold the model.
        """
        if isinstance(outcome, InterpretError):
            bare(outcome)
        with self._lock:
            if not self._settled:
                self._outcome, self._settled = outcome, True
                self._wake()

    async def next(self, deadline: float | None = None) -> Progress | Preview | T:
        """The next thing to tell the reader: what precedes the outcome comes before it.

        An error is raised once; nothing follows it.

        Args:
            deadline: in the event loop's time.

        Raises:
            InterpretError: the call ended with it.
            TimeoutError: the deadline passed first.
        """
        while True:
            item = self._take()
            if isinstance(item, InterpretError):
                try:
                    raise item
                finally:
                    del item  # else the error and this frame hold each other
            if item is not None:
                return item
            async with asyncio.timeout_at(deadline):
                await self._filled.wait()

    def _take(self) -> Progress | Preview | T | InterpretError | None:
        with self._lock:
            self._woken = False
            self._filled.clear()
            progress, preview = self._progress, self._preview
            if isinstance(self._outcome, InterpretError):
                error, self._outcome = self._outcome, None
                return error
            if progress is not None and (preview is None or progress.done <= preview.done):
                self._progress = None
                return progress
            if preview is not None:
                self._preview = None
                return preview
            return self._outcome

    def _wake(self) -> None:
        if self._woken:
            return
        self._woken = True
        if threading.get_ident() == self._reader:  # which needs no waking
            self._filled.set()
            return
        try:
            self._loop.call_soon_threadsafe(self._filled.set)
        except RuntimeError:  # the loop is closed: nobody reads any more
            self._settled = True
