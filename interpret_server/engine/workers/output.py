"""What a worker's process prints: read always, kept a little, never trusted."""

import asyncio
import os
from collections import deque

_KEPT = 16 * 1024
_READ = 64 * 1024


class Output:
    """The last bytes of a pipe that a worker writes to; printing for ever costs no memory.

    Args:
        descriptor: the pipe's reading end, owned from now on.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._kept: deque[bytes] = deque()
        self._size = 0
        self.total = 0  # bytes printed so far
        os.set_blocking(descriptor, False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(descriptor, self._read)

    def tail(self) -> str:
        """What was printed last, as printable text of one line; empty for nothing."""
        text = b"".join(self._kept)[-_KEPT:].decode("utf-8", "replace")
        return " | ".join(line for raw in text.splitlines() if (line := _printable(raw.strip())))

    def close(self) -> None:
        """Read what is left and close the pipe."""
        if self._descriptor >= 0:
            self._read()
        if self._descriptor >= 0:
            self._end()

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, _READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        self.total += len(data)
        self._kept.append(data[-_KEPT:])
        self._size += len(self._kept[-1])
        while self._size - len(self._kept[0]) >= _KEPT:
            self._size -= len(self._kept.popleft())

    def _end(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1


def _printable(line: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in line)
