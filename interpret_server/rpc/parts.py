"""The parts of a chunked call: bytes of tensors and images that travel beside their message."""

from collections.abc import Iterator, Sequence

import numpy as np

from interpret_api.v1 import chunked_service_pb2 as pb

from ..errors import InvalidRequest, RequestTooLarge

CHUNK_BYTES = 1 << 20
INLINE_BYTES = 1 << 16  # so many stay in the message
MAX_PARTS = 4096


class Incoming:
    """Buffers for the parts of a request, to be filled by its chunks in order.

    Args:
        sizes: bytes of every part.
        limit: most bytes of all parts.

    Raises:
        InvalidRequest: a size is not positive, or there are too many.
        RequestTooLarge: they exceed the limit.
    """

    def __init__(self, sizes: Sequence[int], limit: int) -> None:
        if len(sizes) > MAX_PARTS:
            raise InvalidRequest.field(
                "header.part_sizes", f"a request has at most {MAX_PARTS} parts, not {len(sizes)}"
            )
        for index, size in enumerate(sizes):
            if size <= 0:
                raise InvalidRequest.field(
                    f"header.part_sizes[{index}]", f"a part has at least 1 byte, not {size}"
                )
        if (total := sum(sizes)) > limit:
            raise RequestTooLarge(
                f"the parts of the request have {total} bytes, and this server takes at most "
                f"{limit} in one call; send fewer rows"
            )
        # Not cleared: nothing of a buffer is read before all of it has come.
        self._buffers = [np.empty(size, np.uint8).data for size in sizes]
        self._free = set(range(1, len(sizes) + 1))
        self._part, self._filled = 1, 0

    def take(self, part: int, field: str) -> memoryview:
        """The buffer of a part, for the one field that names it.

        Raises:
            InvalidRequest: there is no such part, or another field has it.
        """
        if part not in self._free:
            what = (
                "belongs to another field, too"
                if 1 <= part <= len(self._buffers)
                else (f"is not announced; header.part_sizes has {len(self._buffers)}")
            )
            raise InvalidRequest.field(field, f"part {part} {what}")
        self._free.remove(part)
        return self._buffers[part - 1]

    def check_taken(self) -> None:
        """Refuse parts that no field names.

        Raises:
            InvalidRequest: naming the first of them.
        """
        if self._free:
            part = min(self._free)
            raise InvalidRequest.field(
                f"header.part_sizes[{part - 1}]", f"no field of the request names part {part}"
            )

    @property
    def complete(self) -> bool:
        """Whether every byte has come."""
        return self._part > len(self._buffers)

    def fill(self, chunk: pb.Chunk) -> int:
        """Put a chunk where it belongs; returns its bytes.

        Raises:
            InvalidRequest: it is not the next one, or its size is wrong.
        """
        data = chunk.data
        if not 1 <= len(data) <= CHUNK_BYTES:
            raise InvalidRequest.field(
                "chunk.data", f"a chunk has 1 to {CHUNK_BYTES} bytes, not {len(data)}"
            )
        if self.complete:
            raise InvalidRequest.field("chunk", "all bytes that were announced have come already")
        if chunk.part != self._part:
            raise InvalidRequest.field(
                "chunk.part", f"bytes of part {self._part} are due, not of part {chunk.part}"
            )
        buffer = self._buffers[self._part - 1]
        end = self._filled + len(data)
        if end > len(buffer):
            raise InvalidRequest.field(
                "chunk.data", f"part {self._part} was announced with {len(buffer)} bytes, not more"
            )
        buffer[self._filled : end] = data
        self._filled = end
        if end == len(buffer):
            self._part, self._filled = self._part + 1, 0
        return len(data)

    def check_complete(self) -> None:
        """Refuse a request that ended too early.

        Raises:
            InvalidRequest: naming the part whose bytes are missing.
        """
        if not self.complete:
            size = len(self._buffers[self._part - 1])
            raise InvalidRequest.field(
                "chunk",
                f"the request ended after {self._filled} of {size} bytes of part {self._part}",
            )


class Outgoing:
    """Collects the parts of a response while its message is written."""

    def __init__(self) -> None:
        self._buffers: list[memoryview] = []

    def add(self, data: bytes | memoryview) -> int:
        """The number of a new part with these bytes; 0 where they are few enough to stay."""
        view = memoryview(data).cast("B")
        if len(view) <= INLINE_BYTES:
            return 0
        self._buffers.append(view)
        return len(self._buffers)

    def add_files(self, files: Sequence[bytes]) -> list[int]:
        """The numbers of new parts, one per file; none where they are few enough to stay."""
        if sum(map(len, files)) <= INLINE_BYTES:
            return []
        first = len(self._buffers) + 1
        self._buffers.extend(map(memoryview, files))
        return list(range(first, first + len(files)))

    @property
    def sizes(self) -> list[int]:
        """Bytes of every part."""
        return [len(buffer) for buffer in self._buffers]

    def messages(self) -> Iterator[pb.CallResponse]:
        """Every part, cut."""
        for part, buffer in enumerate(self._buffers, 1):
            for start in range(0, len(buffer), CHUNK_BYTES):
                data = bytes(buffer[start : start + CHUNK_BYTES])
                yield pb.CallResponse(chunk={"part": part, "data": data})  # without a copy
