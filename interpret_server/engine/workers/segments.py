"""Shared memory between the front end and its workers: the front end makes it and lends it.

A segment is an anonymous file (`memfd_create`) whose size is sealed before anybody else sees it, so
that no worker can shrink it under the front end's feet (SIGBUS). Its pages are allocated when it
is acquired, so that running out of memory is an error here and not a fault later.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Mapping
from itertools import count

import numpy as np

from ...errors import Overloaded
from . import protocol_pb2 as pb
from .errors import ProtocolError
from .mapping import map_shared, populate
from .memory import available_bytes

SMALLEST = 64 * 1024  # bytes of the smallest segment
_LARGE = 1 << 20  # bytes above which is asked how much memory is left
_MANY = 8 << 20  # bytes of a tensor that travels in chunks, which need no `bytes`
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_NOT_EXECUTABLE = 0x8  # MFD_NOEXEC_SEAL, since Linux 6.3


class Segment:
    """Shared memory that this process owns.

    Attributes:
        id: unique in its pool.
        size: in bytes; never changes.
        fd: descriptor to send to the worker; -1 once it is shared, or closed.
        view: all of it, writable.
        closed: whether it was given back.
    """

    def __init__(self, identifier: int, size: int) -> None:
        self.id, self.size, self.closed = identifier, size, False
        self._allocated, self._shared = 0, False
        self.fd = _anonymous_file(size)
        try:
            self.view = map_shared(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise

    @property
    def allocated(self) -> int:
        """Bytes of memory that were allocated for it, at most `size`."""
        return min(self.size, -(-self._allocated // mmap.PAGESIZE) * mmap.PAGESIZE)

    @property
    def shared(self) -> bool:
        """Whether the descriptor was sent. Setting it closes the descriptor: one was enough."""
        return self._shared

    @shared.setter
    def shared(self, value: bool) -> None:
        self._shared = value
        if value:
            self._close_descriptor()

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
            populate(self.view, size)
        except OSError as error:
            if error.errno != errno.EINVAL or self._shared:
                raise
            size = self.size  # for there may be no descriptor later
            os.posix_fallocate(self.fd, 0, size)
        self._allocated = size

    def close(self) -> None:
        """Give the memory back, once nobody holds a slice of `view` any more."""
        self.closed = True
        self._close_descriptor()
        self.view.release()

    def _close_descriptor(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SegmentPool:
    """The segments lent to one worker; free ones are kept for the next call.

    Args:
        spare_bytes: most bytes of memory in the free segments that are kept.
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
        """Bytes of memory in the segments that are kept for later."""
        return sum(segment.allocated for segment in self._free.values())

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
        self._views = {key: item.view[:] for key, item in segments.items() if not item.closed}
        self._left = sum(map(len, self._views.values()))

    def __call__(self, block: pb.Block) -> bytes | memoryview:
        """A copy of the bytes of a block; while many are copied, other threads run.

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
        source = view[span.offset : span.offset + span.length]
        if span.length < _MANY:
            return bytes(source)
        copy = np.empty(span.length, np.uint8)
        np.copyto(copy, np.frombuffer(source, np.uint8))
        return copy.data.toreadonly()


class Mapped:
    """A worker's view of the segments that it was lent."""

    def __init__(self) -> None:
        self._views: dict[int, memoryview] = {}

    def add(self, identifier: int, fd: int, size: int) -> None:
        """Map a segment; the descriptor is closed, whatever happens.

        Raises:
            ProtocolError: the descriptor is not a sealed segment of that size, or the id is known.
        """
        try:
            if identifier in self._views:
                raise ProtocolError(f"segment {identifier} is known already")
            if not size or os.fstat(fd).st_size != size:
                raise ProtocolError(f"segment {identifier} does not have {size} bytes")
            if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                raise ProtocolError(f"segment {identifier} could shrink")
            self._views[identifier] = map_shared(fd, size)
        except OSError as error:
            raise ProtocolError(f"segment {identifier} cannot be mapped: {error}") from None
        finally:
            os.close(fd)

    def learn(self, identifier: int, descriptors: list[int], size: int) -> None:
        """Map a segment that is not known yet, by the first of the descriptors, which is taken out.

        Raises:
            ProtocolError: as `add` does, or there is no descriptor.
        """
        if identifier in self._views:
            return
        if not descriptors:
            raise ProtocolError(f"segment {identifier} came without its descriptor")
        self.add(identifier, descriptors.pop(0), size)

    def size(self, identifier: int) -> int:
        """Bytes of a segment. Raises ProtocolError where it is not known."""
        return len(self._find(identifier))

    def whole(self, identifier: int) -> memoryview:
        """All of a segment, writable. Raises ProtocolError where it is not known."""
        return self._find(identifier)[:]

    def view(self, identifier: int, offset: int, length: int) -> memoryview:
        """A part of a segment, writable; it stays valid after `drop`.

        Raises:
            ProtocolError: the segment is not known, or ends before the part does.
        """
        found = self._find(identifier)
        _check_span(offset, length, len(found))
        return found[offset : offset + length]

    def block(self, block: pb.Block) -> bytes | memoryview:
        """The bytes of a block, not copied. Raises ProtocolError as `view` does."""
        if not block.HasField("span"):
            return block.inline
        return self.view(block.span.segment, block.span.offset, block.span.length)

    def drop(self, identifier: int) -> None:
        """Unmap a segment, once nobody holds a part of it any more; unknown ones are ignored."""
        self._views.pop(identifier, None)

    def close(self) -> None:
        """Unmap everything."""
        self._views.clear()

    def _find(self, identifier: int) -> memoryview:
        view = self._views.get(identifier)
        if view is None:
            raise ProtocolError(f"segment {identifier} is not known")
        return view


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
