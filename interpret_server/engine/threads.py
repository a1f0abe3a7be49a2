"""Threads that are used again, the most recently used first."""

import queue
import threading
import time
from collections.abc import Callable

IDLE_SECONDS = 30.0

Work = Callable[[], bool]


class _Thread:
    def __init__(self) -> None:
        self.work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()


class ThreadPool:
    """Runs work at once, each piece in a thread of its own; idle threads end after a while.

    The last thread to become idle is the first to be used again: its caches are warm, and torch
    keeps a team of threads for every thread that computes.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._idle: list[_Thread] = []
        self._threads: set[threading.Thread] = set()
        self._closed = False

    def run(self, work: Work) -> None:
        """Run `work` soon; a thread whose work returned False is not used again."""
        with self._lock:
            if self._idle:
                self._idle.pop().work.put(work)
                return
            mine = _Thread()
            mine.work.put(work)
            thread = threading.Thread(target=self._loop, args=(mine,), name=self._name, daemon=True)
            self._threads.add(thread)
            try:
                thread.start()
            except RuntimeError:
                self._threads.discard(thread)
                raise

    def close(self) -> None:
        """Let every thread end once its work is done."""
        with self._lock:
            self._closed = True
            for thread in self._idle:
                thread.work.put(None)
            self._idle.clear()

    def join(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for a closed pool's threads; tells whether all ended."""
        limit = time.monotonic() + timeout
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(0.0, limit - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def __len__(self) -> int:
        with self._lock:
            return len(self._threads)

    def _loop(self, mine: _Thread) -> None:
        try:
            while (work := self._next(mine)) is not None:
                reusable = work()
                del work
                with self._lock:
                    if self._closed or not reusable:
                        return
                    self._idle.append(mine)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _next(self, mine: _Thread) -> Work | None:
        try:
            return mine.work.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            with self._lock:
                if mine in self._idle:
                    self._idle.remove(mine)
                    return None
            return mine.work.get()  # work came in the moment in which the wait ended
