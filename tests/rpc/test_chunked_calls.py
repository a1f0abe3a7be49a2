"""Chunked calls over a fake worker: what comes through, and what is refused."""

import numpy as np

from interpret_api.v1 import chunked_service_pb2 as pb
from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import types_pb2 as types
from interpret_api.v1.chunked_service_pb2_grpc import ChunkedServiceStub

MIB = 1 << 20


def test_smoke(channel, worker):
    data = np.random.default_rng(0).random((3, 1 << 18), np.float32)
    t = types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=data.shape, part=1)
    header = pb.RequestHeader(
        run=runs.RunRequest(model="net", plugin="echo", inputs=types.Inputs(tensor=t)),
        part_sizes=[data.nbytes],
    )
    raw = data.tobytes()

    def messages():
        yield pb.CallRequest(header=header)
        for i in range(0, len(raw), MIB):
            yield pb.CallRequest(chunk=pb.Chunk(part=1, data=raw[i : i + MIB]))

    answers = list(ChunkedServiceStub(channel).Call(messages()))
    assert answers[0].header.part_sizes == [data.nbytes]
    assert b"".join(a.chunk.data for a in answers[1:]) == raw
    assert answers[0].header.run.result.tensors["attributions"].part == 1
