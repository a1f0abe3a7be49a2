"""Where bytes travel: large ones in shared memory, small ones in the message itself."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..api import ITEM_SIZES, Array
from . import protocol_pb2 as pb
from .errors import ProtocolError

SPAN_BYTES = 16 * 1024  # blocks of at least this size go into shared memory
INLINE_BYTES = 256 * 1024  # and every further block of a message that has as much in itself
ALIGNMENT = 64  # bytes
MAX_ITEMS = 1 << 16  # of one list that a worker sends; above the rows of any call
_MAX_AXES = 64  # torch has no more either

Bytes = bytes | bytearray | memoryview
Put = Callable[[Bytes], pb.Block]
Get = Callable[[pb.Block], bytes | memoryview]


class Placement:
    """Decides for one block after the other where it goes.

    Attributes:
        end: bytes of shared memory that are taken.
    """

    def __init__(self) -> None:
        self.end = 0
        self._inline = 0

    def place(self, size: int) -> int | None:
        """The offset of the next block in shared memory; None if it stays in the message."""
        if size < SPAN_BYTES and self._inline + size <= INLINE_BYTES:
            self._inline += size
            return None
        start, self.end = self.end, -(-(self.end + size) // ALIGNMENT) * ALIGNMENT
        return start


class Writer:
    """Places the blocks of one message, in a segment or in the message.

    Args:
        view: the segment's memory; None puts everything in the message.
        segment: its id.
    """

    def __init__(self, view: memoryview | None = None, segment: int = 0) -> None:
        self._view, self.segment = None if view is None else view[:], segment
        self._placement = Placement()

    def __call__(self, data: Bytes) -> pb.Block:
        """Where the bytes are now. Raises ProtocolError where the segment is full."""
        source = memoryview(data).cast("B")
        size = len(source)
        start = None if self._view is None else self._placement.place(size)
        if self._view is None or start is None:
            return pb.Block(inline=bytes(source))
        if start + size > len(self._view):
            raise ProtocolError(f"a segment of {len(self._view)} bytes is too small")
        if size:  # other threads may run while numpy copies
            place = np.frombuffer(self._view, np.uint8, size, start)
            np.copyto(place, np.frombuffer(source, np.uint8))
        return pb.Block(span=pb.Span(segment=self.segment, offset=start, length=size))


def inline(block: pb.Block) -> bytes:
    """Reads blocks that are not in shared memory. Raises ProtocolError for the others."""
    if block.HasField("span"):
        raise ProtocolError("a block is in shared memory that was not lent")
    return block.inline


def encode_array(array: Array, put: Put) -> pb.Array:
    """An array as a message."""
    return pb.Array(dtype=array.dtype, shape=array.shape, data=put(array.data))


def encode_arrays(arrays: Mapping[str, Array], put: Put) -> list[pb.NamedArray]:
    """Arrays by name, in order."""
    return [
        pb.NamedArray(name=name, array=encode_array(array, put)) for name, array in arrays.items()
    ]


def encode_files(files: Mapping[str, tuple[bytes, ...]], put: Put) -> list[pb.NamedFiles]:
    """Pictures by name, in order."""
    return [
        pb.NamedFiles(name=name, files=[put(file) for file in group])
        for name, group in files.items()
    ]


def decode_array(message: pb.Array, get: Get) -> Array:
    """The array of a message, right or wrong."""
    return Array(message.dtype, tuple(message.shape), get(message.data))


def decode_arrays(messages: Iterable[pb.NamedArray], get: Get) -> dict[str, Array]:
    """Arrays by name, in order."""
    return {item.name: decode_array(item.array, get) for item in messages}


def checked_array(message: pb.Array, get: Get) -> Array:
    """An array whose bytes are known to fill its shape.

    Raises:
        ProtocolError: they do not, or the data type is unknown.
    """
    shape, item_size = tuple(message.shape[: _MAX_AXES + 1]), ITEM_SIZES.get(message.dtype)
    if item_size is None or len(shape) > _MAX_AXES or min(shape, default=0) < 0:
        raise ProtocolError("an array without a known data type and shape")
    data = get(message.data)
    if len(data) != math.prod(shape) * item_size:
        raise ProtocolError(f"{len(data)} bytes for {message.dtype} values of shape {list(shape)}")
    return Array(message.dtype, shape, data)


def checked_arrays(messages: Sequence[pb.NamedArray], get: Get) -> dict[str, Array]:
    """Arrays by name, in order. Raises ProtocolError as `checked_array` does."""
    return {item.name: checked_array(item.array, get) for item in checked(messages)}


def checked_files(messages: Sequence[pb.NamedFiles], get: Get) -> dict[str, tuple[bytes, ...]]:
    """Pictures by name, in order. Raises ProtocolError for too many."""
    if sum(len(item.files) for item in checked(messages)) > MAX_ITEMS:
        raise ProtocolError("too many pictures")
    return {item.name: tuple(bytes(get(block)) for block in item.files) for item in messages}


def checked(items: Sequence[Any]) -> Sequence[Any]:
    """The items of a list. Raises ProtocolError for too many."""
    if len(items) > MAX_ITEMS:
        raise ProtocolError(f"a list of {len(items)} items")
    return items
