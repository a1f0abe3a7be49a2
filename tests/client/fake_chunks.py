"""The chunked form of any message, made and undone field by field."""

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from interpret_api.v1 import chunked_service_pb2 as chunked
from interpret_api.v1 import interpret_service_pb2 as interpret
from interpret_api.v1 import types_pb2 as types

CUT = 1 << 18  # bytes of a chunk of an answer


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            kind = field.message_type.fields_by_name["value"].message_type
            items = [value[key] for key in sorted(value)] if kind else []
        else:
            items = [value] if isinstance(value, Message) else list(value)
        for item in items:
            yield from _messages(item)


def restored(messages: list[chunked.CallRequest]) -> tuple[str, Any]:
    """The kind of a chunked request, and the request with every part in its place."""
    header = messages[0].header
    parts = [bytearray() for _ in header.part_sizes]
    for message in messages[1:]:
        assert message.WhichOneof("message") == "chunk"
        assert 0 < len(message.chunk.data) <= 1 << 20
        parts[message.chunk.part - 1] += message.chunk.data
    assert [len(part) for part in parts] == header.part_sizes
    kind = header.WhichOneof("request")
    request = getattr(header, kind)
    for item in list(_messages(request)):
        if isinstance(item, types.Tensor) and item.part:
            assert not item.data
            item.data = bytes(parts[item.part - 1])
            item.ClearField("part")
        elif isinstance(item, types.EncodedImages) and item.parts:
            assert not item.images
            item.images.extend(bytes(parts[part - 1]) for part in item.parts)
            item.ClearField("parts")
    return kind, request


def cut(kind: str, answer: Any) -> Iterator[chunked.CallResponse]:
    """The messages of one answer, every tensor and picture of it a part."""
    parts: list[bytes] = []

    def part(data: bytes) -> int:
        parts.append(data)
        return len(parts)

    for item in list(_messages(answer)):
        if isinstance(item, types.Tensor) and item.data:
            item.part = part(item.data)
            item.ClearField("data")
        elif isinstance(item, interpret.Pictures) and item.png:
            item.parts.extend(map(part, item.png))
            item.ClearField("png")
    header = chunked.ResponseHeader(**{kind: answer}, part_sizes=map(len, parts))
    yield chunked.CallResponse(header=header)
    for number, data in enumerate(parts, 1):
        for start in range(0, len(data), CUT):
            chunk = chunked.Chunk(part=number, data=data[start : start + CUT])
            yield chunked.CallResponse(chunk=chunk)
