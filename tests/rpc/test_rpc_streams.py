"""Cancellation, deadlines and slow readers, over a fake worker."""

import time

import grpc
import pytest
from fake_worker import FakeWorker
from grpc import StatusCode

from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import types_pb2 as types
from interpret_api.v1.interpret_service_pb2_grpc import InterpretServiceStub

LONG = 20  # seconds that no test should take


def request(plugin: str, rows: int = 1) -> runs.RunRequest:
    tensor = types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=[rows, 2], data=bytes(8 * rows))
    return runs.RunRequest(model="net", plugin=plugin, inputs=types.Inputs(tensor=tensor))


def test_a_cancelled_stream_closes_the_engines_iterator(
    channel: grpc.Channel, worker: FakeWorker
) -> None:
    stream = InterpretServiceStub(channel).RunStream(
        runs.RunStreamRequest(request=request("endless"))
    )
    assert next(stream).progress.total == 1000
    assert not worker.ended.is_set()
    stream.cancel()
    assert worker.ended.wait(LONG)


def test_a_cancelled_call_closes_the_engines_iterator(
    channel: grpc.Channel, worker: FakeWorker
) -> None:
    call = InterpretServiceStub(channel).Run.future(request("endless"))
    assert worker.started.wait(LONG)
    call.cancel()
    assert worker.ended.wait(LONG)


def test_a_stream_that_nobody_reads_is_closed_when_cancelled(
    channel: grpc.Channel, worker: FakeWorker
) -> None:
    stream = InterpretServiceStub(channel).RunStream(
        runs.RunStreamRequest(request=request("flood", rows=1 << 14))
    )
    next(stream)
    stream.cancel()
    assert worker.ended.wait(LONG)


def test_the_deadline_reaches_the_worker_and_ends_the_call(
    channel: grpc.Channel, worker: FakeWorker
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        InterpretServiceStub(channel).Run(request("endless"), timeout=0.5)
    assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
    assert worker.ended.wait(LONG)
    timeout = worker.calls[0].timeout
    assert timeout is not None
    assert 0 < timeout < 5


def test_a_call_without_a_deadline_has_no_timeout(
    channel: grpc.Channel, worker: FakeWorker
) -> None:
    InterpretServiceStub(channel).Run(request("echo"))
    assert worker.calls[0].timeout is None


def test_a_slow_reader_gets_its_one_result(channel: grpc.Channel) -> None:
    stream = InterpretServiceStub(channel).RunStream(
        runs.RunStreamRequest(request=request("flood", rows=64), previews=True)
    )
    kinds = []
    for position, event in enumerate(stream):
        kinds.append(event.WhichOneof("event"))
        if position % 500 == 0:
            time.sleep(0.05)
    assert kinds.count("result") == 1
    assert kinds[-1] == "result"


def test_other_calls_are_answered_while_one_runs(channel: grpc.Channel, worker: FakeWorker) -> None:
    stub = InterpretServiceStub(channel)
    stream = stub.RunStream(runs.RunStreamRequest(request=request("endless")))
    next(stream)
    assert stub.Run(request("echo"), timeout=LONG).result.tensors
    stream.cancel()
