"""Chunked calls by hand, from the generated modules alone."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from interpret_api.v1 import chunked_service_pb2 as pb
from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import types_pb2 as types

MIB = 1 << 20
LONG = 20  # seconds that no test should take


def values(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((2, count // 2), np.float32)


def inline(array: np.ndarray) -> types.Tensor:
    return types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=array.shape, data=array.tobytes())


def beside(shape: Iterable[int], part: int) -> types.Tensor:
    return types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=shape, part=part)


def run_request(tensor: types.Tensor, plugin: str = "echo", **fields: Any) -> runs.RunRequest:
    inputs = types.Inputs(tensor=tensor)
    return runs.RunRequest(model="net", plugin=plugin, inputs=inputs, **fields)


def header(sizes: Iterable[int] = (), **request: Any) -> pb.CallRequest:
    return pb.CallRequest(header=pb.RequestHeader(**request, part_sizes=sizes))


def chunk(part: int, data: bytes) -> pb.CallRequest:
    return pb.CallRequest(chunk=pb.Chunk(part=part, data=data))


def chunks(*parts: bytes, size: int = MIB) -> Iterator[pb.CallRequest]:
    for part, data in enumerate(parts, 1):
        for start in range(0, len(data), size):
            yield chunk(part, data[start : start + size])


def call(*parts: bytes, size: int = MIB, **request: Any) -> Iterator[pb.CallRequest]:
    """The messages of a whole call."""
    yield header(map(len, parts), **request)
    yield from chunks(*parts, size=size)


def answers(messages: Iterable[pb.CallResponse]) -> list[tuple[Any, list[bytes]]]:
    """Every answer of a call with its parts, whose order and sizes must be right."""
    found: list[tuple[Any, list[bytearray], list[int]]] = []
    for message in messages:
        if message.WhichOneof("message") == "header":
            kind = message.header.WhichOneof("response")
            sizes = list(message.header.part_sizes)
            found.append((getattr(message.header, kind), [], sizes))
            continue
        _, parts, sizes = found[-1]
        assert 0 < len(message.chunk.data) <= MIB
        if not parts or len(parts[-1]) == sizes[len(parts) - 1]:
            parts.append(bytearray())
        assert message.chunk.part == len(parts)
        parts[-1] += message.chunk.data
    assert all([len(part) for part in parts] == sizes for _, parts, sizes in found)
    return [(answer, [bytes(part) for part in parts]) for answer, parts, _ in found]
