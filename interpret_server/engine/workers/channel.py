"""Messages over a Unix stream socket: a length, a protobuf message, and file descriptors.

A frame is a 4-byte little-endian length and the message. Descriptors travel with the first byte
of their frame. Readers never read beyond the frame that they are in, so that descriptors cannot
be taken for another frame's.
"""

import array
import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from .errors import ProtocolError

MAX_BYTES = 16 << 20  # of one message; tensors travel beside it, in shared memory
MAX_DESCRIPTORS = 8  # that a frame may carry
_HEADER = 4
_TURN_BYTES = 1 << 20  # that are read before other callbacks have their turn
_LAST_TURNS = 64  # more than a socket holds; the other side may still be sending
_FRAME_BYTES = 16 * 1024  # that a small frame counts for

Incoming = TypeVar("Incoming", bound=Message)


class Channel(Generic[Incoming]):
    """Sends and receives messages on the running event loop.

    Args:
        sock: connected; owned from now on.
        incoming: the type of the messages that arrive.
        receive: gets each message and its descriptors, which it then owns.
        closed: called once when the other side has closed (None) or an error ended the channel;
            not called after this side's `close`.
        max_bytes: of one message that arrives; a longer one is an error.
    """

    def __init__(
        self,
        sock: socket.socket,
        incoming: type[Incoming],
        receive: Callable[[Incoming, list[int]], None],
        closed: Callable[[Exception | None], None],
        *,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._sock, self._incoming, self._receive, self._on_closed = sock, incoming, receive, closed
        self._frame = _Frame(max_bytes)
        self._waiting: deque[tuple[memoryview, list[int]]] = deque()
        self._drained: list[asyncio.Future[None]] = []
        self._open, self._writing = True, False
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message and copies of descriptors; never blocks.

        What the socket does not take at once is kept. After the end of the channel, messages are
        dropped.
        """
        if not self._open:
            return
        data = memoryview(_framed(message))
        if not self._waiting:
            try:
                data = data[_send_some(self._sock, data, fds) :]
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._loop.call_soon(self._broken, error)
                return
            else:
                if not data:
                    return
                fds = ()
        self._waiting.append((data, [os.dup(fd) for fd in fds]))
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock.fileno(), self._writable)

    async def drained(self) -> None:
        """Wait until everything sent has left, or the channel has ended."""
        if self._open and self._waiting:
            future = self._loop.create_future()
            self._drained.append(future)
            await future

    def close(self) -> None:
        """End the channel; what has not left is dropped."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._sock.fileno())
        self._stop_writing()
        self._frame.close()
        self._sock.close()

    def _readable(self) -> None:
        left = _TURN_BYTES
        while self._open and left > 0:
            try:
                frame = self._frame.read(self._sock)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:  # the other side died with messages unread
                frame = None
            except (OSError, ProtocolError) as error:
                self._end(error)
                return
            if frame is None:
                self._end(None)
                return
            left -= _FRAME_BYTES + len(frame[0])
            try:
                self._receive(_parsed(self._incoming, *frame), frame[1])
            except Exception as error:
                self._end(error)

    def _writable(self) -> None:
        try:
            while self._waiting:
                data, fds = self._waiting[0]
                sent = _send_some(self._sock, data, fds)
                _close_all(fds)
                if sent < len(data):
                    self._waiting[0] = data[sent:], []
                else:
                    self._waiting.popleft()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._stop_writing()
            self._broken(error)
            return
        self._stop_writing()

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock.fileno())
        for _, fds in self._waiting:
            _close_all(fds)
        self._waiting.clear()
        for future in self._drained:
            if not future.done():
                future.set_result(None)
        self._drained.clear()

    def _broken(self, error: OSError) -> None:
        """Nothing can be sent any more; what arrived before is still read."""
        for _ in range(_LAST_TURNS):
            if self._open and self._frame.ready(self._sock):
                self._readable()
        self._end(None if isinstance(error, ConnectionError) else error)

    def _end(self, error: Exception | None) -> None:
        if self._open:
            self.close()
            self._on_closed(error)


def send_message(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send one message through a blocking socket.

    Raises:
        OSError: the other side has closed, or the system refuses.
    """
    data = memoryview(_framed(message))
    while data:
        data = data[_send_some(sock, data, fds) :]
        fds = ()


def receive_message(
    sock: socket.socket, incoming: type[Incoming], *, max_bytes: int = MAX_BYTES
) -> tuple[Incoming, list[int]] | None:
    """The next message of a blocking socket and its descriptors; None at the end.

    Raises:
        ProtocolError: what arrives is not a message.
        OSError: the system refuses.
    """
    frame = _Frame(max_bytes)
    try:
        received = frame.read(sock)
    except BaseException:
        frame.close()
        raise
    return None if received is None else (_parsed(incoming, *received), received[1])


class _Frame:
    """Reads one frame after the other; keeps what has arrived of the next."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._header = bytearray()
        self._body: bytearray | None = None
        self._filled = 0
        self._fds: list[int] = []

    def read(self, sock: socket.socket) -> tuple[bytearray, list[int]] | None:
        """The next frame; None at the end. Raises BlockingIOError where it is not complete yet."""
        while self._body is None:
            data, fds = _receive_some(sock, _HEADER - len(self._header))
            self._fds += fds
            if not data and not self._header:
                return None
            if not data or (fds and self._header):
                raise ProtocolError("a frame is cut short")
            self._header += data
            if len(self._header) == _HEADER:
                length = int.from_bytes(self._header, "little")
                if length > self._max_bytes:
                    raise ProtocolError(f"a frame of {length} bytes")
                self._body, self._filled = bytearray(length), 0
        body = self._body
        with memoryview(body) as view:
            while self._filled < len(body):
                count = sock.recv_into(view[self._filled :])
                if not count:
                    raise ProtocolError("a frame is cut short")
                self._filled += count
        fds, self._fds, self._body = self._fds, [], None
        self._header.clear()
        return body, fds

    def ready(self, sock: socket.socket) -> bool:
        """Whether anything can be read."""
        try:
            return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def close(self) -> None:
        """Close the descriptors of a frame that is not complete."""
        _close_all(self._fds)


def _framed(message: Message) -> bytes:
    data = message.SerializeToString()
    return len(data).to_bytes(_HEADER, "little") + data


def _parsed(incoming: type[Incoming], data: bytearray, fds: list[int]) -> Incoming:
    try:
        return incoming.FromString(cast(bytes, data))
    except DecodeError:
        _close_all(fds)
        raise ProtocolError(f"{len(data)} bytes are no {incoming.DESCRIPTOR.name}") from None


def _send_some(sock: socket.socket, data: memoryview, fds: Sequence[int]) -> int:
    if not fds:
        return sock.send(data)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    return sock.sendmsg([data], [rights])


def _receive_some(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        _close_all(list(fds))
        raise ProtocolError("a frame carries too many descriptors")
    return data, list(fds)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    fds.clear()
