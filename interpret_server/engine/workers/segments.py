"""Shared memory between the front end and its workers: the front end makes it and lends it.

A segment is an anonymous file (`memfd_create`) whose size is sealed before anybody else sees it, so
that no worker can shrink it under the front end's feet (SIGBUS). Its pages are allocated when it
is acquired, so that running out of memory is an error here and not a fault later.
"""

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Mapping
from itertools import count

from ...errors import Overloaded
from . import protocol_pb2 as pb
from .errors import ProtocolError
from .memory import available_bytes

SMALLEST = 64 * 1024  # bytes of the smallest segment
_LARGE = 1 << 20  # bytes above which is asked how much memory is left
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, since Linux 5.14: allocates and maps at once
_NOT_EXECUTABLE = 0x8  # MFD_NOEXEC_SEAL, since Linux 6.3


class Segment:
    """Shared memory that this process owns.

    Attributes:
        id: unique in its pool.
        size: in bytes; never changes.
        fd: descriptor to send to the worker; valid until `close`.
        view: all of it, writable.
        shared: whether the descriptor was sent; set by who sends it.
    """

    def __init__(self, identifier: int, size: int) -> None:
        self.id, self.size, self.shared = identifier, size, False
        self.fd = _anonymous_file(size)
        try:
            self._map = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self._map)
        self._allocated = 0

    def allocate(self, size: int) -> None:
        """Have pages behind the first `size` bytes.

        Raises:
            OSError: there are none.
            MemoryError: they would take more than half of what is left.
        """
        if size <= self._allocated:
            return
        _check_memory(size)
        try:
            self._map.madvise(_POPULATE_WRITE, 0, size)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            os.posix_fallocate(self.fd, 0, size)
        self._allocated = size

    def close(self) -> None:
        """Give the memory back, once nobody holds a slice of `view` any more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.view.release()
            _unmap(self._map)


class SegmentPool:
    """The segments lent to one worker; free ones are kept for the next call.

    Args:
        spare_bytes: most bytes of free segments that are kept.
    """

    def __init__(self, spare_bytes: int = 64 << 20) -> None:
        self._spare_bytes = spare_bytes
        self._identifiers = count(1)
        self._used: dict[int, Segment] = {}
        self._free: dict[int, Segment] = {}  # the longest unused one first

    @property
    def used_bytes(self) -> int:
        """Bytes of the segments that are acquired."""
        return sum(segment.size for segment in self._used.values())

    @property
    def free_bytes(self) -> int:
        """Bytes of the segments that are kept for later."""
        return sum(segment.size for segment in self._free.values())

    def acquire(self, size: int) -> Segment:
        """A segment of at least `size` bytes; what it holds is left from its last use.

        Raises:
            Overloaded: there is no memory for it, or no descriptor.
        """
        fitting = [segment for segment in self._free.values() if segment.size >= size]
        segment = min(fitting, key=lambda item: item.size, default=None)
        try:
            if segment is None:
                segment = Segment(next(self._identifiers), _rounded(size))
            segment.allocate(size)
        except (OSError, MemoryError, ValueError, OverflowError):
            if segment is not None and segment.id not in self._free:
                segment.close()
            raise Overloaded(
                f"there is no memory for the {size} bytes of this call; try again later, or send "
                "fewer rows"
            ) from None
        self._free.pop(segment.id, None)
        self._used[segment.id] = segment
        return segment

    def release(self, segment: Segment) -> tuple[int, ...]:
        """Take a segment back; the worker uses it no more.

        Returns:
            The ids of shared segments that were given back to the system: the worker must unmap
            them, or their memory is not free.
        """
        if self._used.pop(segment.id, None) is None:
            return ()
        self._free[segment.id] = segment
        dropped = []
        while self.free_bytes > self._spare_bytes:
            oldest = self._free.pop(next(iter(self._free)))
            oldest.close()
            if oldest.shared:
                dropped.append(oldest.id)
        return tuple(dropped)

    def close(self) -> None:
        """Give everything back; segments that are still acquired become useless."""
        for segment in (*self._used.values(), *self._free.values()):
            segment.close()
        self._used.clear()
        self._free.clear()


class Reader:
    """Copies what a worker wrote, out of the segments that its call was lent; one per message.

    Args:
        segments: by id; they stay mapped as long as the reader is there.
    """

    def __init__(self, segments: Mapping[int, Segment]) -> None:
        self._views = {key: item.view[:] for key, item in segments.items() if item.fd >= 0}
        self._left = sum(map(len, self._views.values()))

    def __call__(self, block: pb.Block) -> bytes:
        """The bytes of a block.

        Raises:
            ProtocolError: it is in no segment, or all blocks together are larger than the segments.
        """
        if not block.HasField("span"):
            return block.inline
        span = block.span
        view = self._views.get(span.segment)
        if view is None:
            raise ProtocolError(f"segment {span.segment} was not lent to the call")
        _check_span(span.offset, span.length, len(view))
        self._left -= span.length
        if self._left < 0:
            raise ProtocolError("the spans hold more bytes than the segments lent to the call")
        return bytes(view[span.offset : span.offset + span.length])


class Mapped:
    """A worker's view of the segments that it was lent."""

    def __init__(self) -> None:
        self._maps: dict[int, mmap.mmap] = {}

    def add(self, identifier: int, fd: int, size: int) -> None:
        """Map a segment; the descriptor is closed, whatever happens.

        Raises:
            ProtocolError: the descriptor is not a sealed segment of that size, or the id is known.
        """
        try:
            if identifier in self._maps:
                raise ProtocolError(f"segment {identifier} is known already")
            if not size or os.fstat(fd).st_size != size:
                raise ProtocolError(f"segment {identifier} does not have {size} bytes")
            if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                raise ProtocolError(f"segment {identifier} could shrink")
            self._maps[identifier] = mmap.mmap(fd, size)
        except (OSError, ValueError, OverflowError) as error:
            raise ProtocolError(f"segment {identifier} cannot be mapped: {error}") from None
        finally:
            os.close(fd)

    def size(self, identifier: int) -> int:
        """Bytes of a segment. Raises ProtocolError where it is not known."""
        return len(self._find(identifier))

    def whole(self, identifier: int) -> memoryview:
        """All of a segment, writable. Raises ProtocolError where it is not known."""
        return memoryview(self._find(identifier))

    def view(self, identifier: int, offset: int, length: int) -> memoryview:
        """A part of a segment, writable; it stays valid after `drop`.

        Raises:
            ProtocolError: the segment is not known, or ends before the part does.
        """
        mapped = self._find(identifier)
        _check_span(offset, length, len(mapped))
        return memoryview(mapped)[offset : offset + length]

    def block(self, block: pb.Block) -> bytes | memoryview:
        """The bytes of a block, not copied. Raises ProtocolError as `view` does."""
        if not block.HasField("span"):
            return block.inline
        return self.view(block.span.segment, block.span.offset, block.span.length)

    def drop(self, identifier: int) -> None:
        """Unmap a segment, once nobody holds a part of it any more; unknown ones are ignored."""
        mapped = self._maps.pop(identifier, None)
        if mapped is not None:
            _unmap(mapped)

    def close(self) -> None:
        """Unmap everything."""
        for identifier in tuple(self._maps):
            self.drop(identifier)

    def _find(self, identifier: int) -> mmap.mmap:
        mapped = self._maps.get(identifier)
        if mapped is None:
            raise ProtocolError(f"segment {identifier} is not known")
        return mapped


def _check_memory(size: int) -> None:
    if size > _LARGE and (left := available_bytes()) is not None and size > left // 2:
        raise MemoryError


def _rounded(size: int) -> int:
    return max(SMALLEST, 1 << (size - 1).bit_length()) if size > 0 else SMALLEST


def _anonymous_file(size: int) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("interpret", flags | _NOT_EXECUTABLE)
    except OSError:
        fd = os.memfd_create("interpret", flags)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_span(offset: int, length: int, size: int) -> None:
    if not 0 <= offset <= offset + length <= size:
        raise ProtocolError(f"bytes {offset} to {offset + length} of a segment of {size}")


def _unmap(mapped: mmap.mmap) -> None:
    with contextlib.suppress(BufferError):  # a view is alive: the last one unmaps
        mapped.close()
