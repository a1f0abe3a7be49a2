"""Large calls: the bytes of tensors and images beside their message, in chunks."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from interpret_api.v1 import chunked_service_pb2 as chunked

from .errors import ServerError

METHOD = "ChunkedService.Call"
LARGE_BYTES = 8 << 20  # a call of more goes in chunks
CHUNK_BYTES = 1 << 20
INLINE_BYTES = 1 << 16  # so many stay in the message

Part = NDArray[np.uint8]
Answer = tuple[Any, Sequence[Part]]


class Parts:
    """Collects the parts of a request while its message is written.

    Args:
        copied: what is added may change before it is sent.
    """

    def __init__(self, *, copied: bool = False) -> None:
        self._copied = copied
        self._buffers: list[memoryview] = []

    def add(self, data: bytes | memoryview) -> int:
        """The number of a new part with these bytes; 0 where they are few enough to stay."""
        if len(data) <= INLINE_BYTES:
            return 0
        self._buffers.append(memoryview(bytes(data) if self._copied else data))
        return len(self._buffers)

    def add_files(self, files: Sequence[bytes]) -> list[int]:
        """The numbers of new parts, one per file; none where one of them is empty."""
        if not all(files):
            return []
        self._buffers.extend(map(memoryview, files))
        return list(range(len(self._buffers) - len(files) + 1, len(self._buffers) + 1))

    def messages(self, kind: str, request: Message) -> Iterator[chunked.CallRequest]:
        """The messages of a call.

        Args:
            kind: the field of the header that holds the request.
            request: names the parts.
        """
        sizes = [len(buffer) for buffer in self._buffers]
        fields: dict[str, Any] = {kind: request}
        yield chunked.CallRequest(header=chunked.RequestHeader(**fields, part_sizes=sizes))
        for part, buffer in enumerate(self._buffers, 1):
            for start in range(0, len(buffer), CHUNK_BYTES):
                data = bytes(buffer[start : start + CHUNK_BYTES])
                yield chunked.CallRequest(chunk={"part": part, "data": data})  # without a copy


class Assembly:
    """Puts answers together from the messages of a call.

    Args:
        kind: the field of the header that holds the answer.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._answer: Any = None
        self._parts: list[Part] = []
        self._part, self._filled = 0, 0

    def add(self, message: chunked.CallResponse) -> Answer | None:
        """An answer and its parts, once a message completes them.

        Raises:
            ServerError: the message is not the one that is due.
        """
        if message.WhichOneof("message") == "header":
            self._begin(message.header)
        elif self._answer is None or self._part >= len(self._parts):
            raise ServerError("the server sent bytes that belong to no answer")
        else:
            self._fill(message.chunk)
        if self._part < len(self._parts):
            return None
        answer, self._answer = self._answer, None
        return answer, self._parts

    def _begin(self, header: chunked.ResponseHeader) -> None:
        if self._answer is not None or header.WhichOneof("response") != self._kind:
            raise ServerError("the server sent an answer that is not the one that is due")
        self._answer = getattr(header, self._kind)
        self._parts = [np.empty(size, np.uint8) for size in header.part_sizes]
        self._part, self._filled = 0, 0

    def _fill(self, chunk: chunked.Chunk) -> None:
        data, part = chunk.data, self._parts[self._part]
        end = self._filled + len(data)
        if chunk.part != self._part + 1 or not data or end > len(part):
            raise ServerError("the server sent bytes that are not the ones that are due")
        part[self._filled : end] = np.frombuffer(data, np.uint8)
        self._filled = end
        if end == len(part):
            self._part, self._filled = self._part + 1, 0


def assembled(messages: Iterable[Any], kind: str | None) -> Iterator[Answer]:
    """Every answer of a call with its parts; `kind` is None for a call without chunks."""
    assembly = None if kind is None else Assembly(kind)
    for message in messages:
        answer = (message, ()) if assembly is None else assembly.add(message)
        if answer is not None:
            yield answer


def only(answers: Iterable[Answer]) -> Answer:
    """The one answer of a call that is no stream.

    Raises:
        ServerError: there is none, or there are several.
    """
    found = list(answers)
    if len(found) != 1:
        raise ServerError(f"the server sent {len(found)} answers instead of one")
    return found[0]
