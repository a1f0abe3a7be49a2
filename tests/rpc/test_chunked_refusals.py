"""Chunked calls that are wrong, stall, or are given up, over a fake worker."""

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import grpc
import pytest
from chunking import (
    LONG,
    MIB,
    answers,
    beside,
    call,
    chunk,
    chunks,
    header,
    inline,
    run_request,
    values,
)
from failures import failure_of
from fake_worker import FakeWorker
from grpc import StatusCode

from interpret_api.v1 import chunked_service_pb2 as pb
from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import model_service_pb2 as models
from interpret_api.v1 import types_pb2 as types
from interpret_api.v1.chunked_service_pb2_grpc import ChunkedServiceStub
from interpret_api.v1.interpret_service_pb2_grpc import InterpretServiceStub
from interpret_server.rpc import parts as parts_module
from interpret_server.testing.server import serve

SHAPE = (2, 2)
DATA = b"x" * 16
RUN = run_request(beside(SHAPE, 1))
IMAGES = types.Inputs(images=types.EncodedImages(images=[b"one"], parts=[1]))
NO_IMAGES = types.Inputs(images=types.EncodedImages())


@pytest.fixture
def stub(channel: grpc.Channel) -> ChunkedServiceStub:
    return ChunkedServiceStub(channel)


@pytest.mark.parametrize(
    ("messages", "field", "sentence"),
    [
        ([], "header", "the first message"),
        ([pb.CallRequest()], "header", "the first message"),
        ([chunk(1, DATA)], "header", "the first message"),
        ([header()], "header.request", "the request of one call"),
        ([header([16], run=RUN), header([16], run=RUN)], "chunk", "only the first message"),
        ([header([16], run=RUN), pb.CallRequest()], "chunk", "only the first message"),
        ([header([16, -1], run=RUN)], "header.part_sizes[1]", "at least 1 byte, not -1"),
        ([header([0], run=RUN)], "header.part_sizes[0]", "at least 1 byte, not 0"),
        ([header([1] * 4097, run=RUN)], "header.part_sizes", "at most 4096 parts, not 4097"),
        ([header([16, 3], run=RUN)], "header.part_sizes[1]", "no field of the request names"),
        ([header([], run=RUN)], "inputs.part", "part 1 is not announced"),
        ([header([15], run=RUN)], "inputs.data", "15 bytes were sent, but shape [2, 2]"),
        ([header([16], run=RUN)], "chunk", "ended after 0 of 16 bytes of part 1"),
        ([header([16], run=RUN), chunk(1, b"x" * 9)], "chunk", "ended after 9 of 16 bytes"),
        ([header([16], run=RUN), chunk(0, DATA)], "chunk.part", "not of part 0"),
        ([header([16], run=RUN), chunk(2, DATA)], "chunk.part", "of part 1 are due, not of part 2"),
        ([header([16], run=RUN), chunk(1, b"")], "chunk.data", "1 to 1048576 bytes, not 0"),
        ([header([16], run=RUN), chunk(1, bytes(17))], "chunk.data", "with 16 bytes, not more"),
        (
            [header([16], run=RUN), chunk(1, bytes(MIB + 1))],
            "chunk.data",
            "1 to 1048576 bytes, not 1048577",
        ),
        ([header([16], run=RUN), chunk(1, DATA), chunk(1, b"x")], "chunk", "have come already"),
        ([header([16], run=RUN), chunk(1, DATA), chunk(2, b"x")], "chunk", "have come already"),
        (
            [header([16], run=run_request(types.Tensor(dtype=1, shape=SHAPE, data=DATA, part=1)))],
            "inputs.part",
            "data or a part, not both",
        ),
        (
            [header([16], run=run_request(beside(SHAPE, 1), tensors={"mask": beside(SHAPE, 1)}))],
            "tensors.mask.part",
            "part 1 belongs to another field",
        ),
        (
            [header([3], run=runs.RunRequest(model="net", plugin="echo", inputs=IMAGES))],
            "inputs.images.parts",
            "images or parts, not both",
        ),
        (
            [header(predict=models.PredictRequest(model="net", inputs=NO_IMAGES))],
            "inputs.images",
            "at least one image",
        ),
        ([header([16], run=run_request(beside(SHAPE, 1), ""))], "plugin", "give the name"),
        (
            [header(compute_gradient=models.ComputeGradientRequest(model="net"))],
            "grad_outputs",
            "the cotangent",
        ),
    ],
)
def test_a_wrong_message_is_refused_by_its_field(
    stub: ChunkedServiceStub,
    worker: FakeWorker,
    messages: list[pb.CallRequest],
    field: str,
    sentence: str,
) -> None:
    failure = failure_of(lambda: list(stub.Call(iter(messages), timeout=LONG)))
    assert failure.code is StatusCode.INVALID_ARGUMENT
    assert sentence in failure.fields[field]
    assert failure.message == f"{field}: {failure.fields[field]}"
    assert not worker.calls


def test_a_part_outside_a_chunked_call_is_refused(
    channel: grpc.Channel, worker: FakeWorker
) -> None:
    failure = failure_of(lambda: InterpretServiceStub(channel).Run(RUN))
    assert failure.code is StatusCode.INVALID_ARGUMENT
    assert list(failure.fields) == ["inputs.part"]
    assert not worker.calls


def test_more_bytes_than_the_server_takes_are_refused_before_they_are_sent(
    worker: FakeWorker,
) -> None:
    sent = []

    def messages() -> Iterator[pb.CallRequest]:
        half = MIB // 2
        yield header(
            [half, half + 1],
            run=run_request(
                types.Tensor(dtype=types.DATA_TYPE_UINT8, shape=[half], part=1),
                tensors={
                    "mask": types.Tensor(dtype=types.DATA_TYPE_UINT8, shape=[half + 1], part=2)
                },
            ),
        )
        assert refused.wait(LONG)
        sent.append(1)

    refused = threading.Event()
    with (
        serve(worker=worker, max_request_bytes=MIB) as address,
        grpc.insecure_channel(address) as channel,
    ):
        failure = failure_of(lambda: list(ChunkedServiceStub(channel).Call(messages())))
        assert not sent
        refused.set()
    assert failure.code is StatusCode.RESOURCE_EXHAUSTED
    assert failure.reason == "REQUEST_TOO_LARGE"
    assert failure.retry_after is None
    assert f"have {MIB + 1} bytes, and this server takes at most {MIB}" in failure.message
    assert not worker.calls


@pytest.mark.parametrize("plugin", ["overloaded", "missing", "broken"])
def test_the_workers_errors_are_those_of_a_call_in_one_message(
    channel: grpc.Channel, stub: ChunkedServiceStub, plugin: str
) -> None:
    request = run_request(inline(values(4)), plugin)
    plain = failure_of(lambda: InterpretServiceStub(channel).Run(request))
    split = failure_of(lambda: list(stub.Call(call(run=request))))
    assert (split.code, split.reason, split.fields) == (plain.code, plain.reason, plain.fields)
    assert split.retry_after == plain.retry_after
    assert split.message.replace(split.request_id, "") == plain.message.replace(
        plain.request_id, ""
    )


def test_a_wrong_cotangent_is_called_as_in_the_request(stub: ChunkedServiceStub) -> None:
    tensor = inline(values(4))
    request = models.ComputeGradientRequest(
        model="net", inputs=types.Inputs(tensor=tensor), grad_outputs=beside([1, 2], 1)
    )
    failure = failure_of(lambda: list(stub.Call(call(bytes(8), compute_gradient=request))))
    assert list(failure.fields) == ["grad_outputs"]


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


class Stalled(Iterator[pb.CallRequest]):
    """Messages, after which nothing more comes until the test is over."""

    def __init__(self, messages: Iterable[pb.CallRequest]) -> None:
        self._messages = iter(messages)
        self.over = threading.Event()
        self.waiting = threading.Event()

    def __next__(self) -> pb.CallRequest:
        if (message := next(self._messages, None)) is not None:
            return message
        self.waiting.set()
        assert self.over.wait(LONG)
        raise StopIteration


@pytest.mark.parametrize("count", [0, 1, 2, 3], ids=["nothing", "header", "half", "no end"])
def test_a_sender_that_stalls_is_given_up(worker: FakeWorker, count: int) -> None:
    whole = [header([16], run=RUN), chunk(1, DATA[:8]), chunk(1, DATA[8:])]
    with (
        serve(worker=worker, idle_timeout=0.2) as address,
        grpc.insecure_channel(address) as channel,
    ):
        messages = Stalled(whole[:count])
        failure = failure_of(lambda: list(ChunkedServiceStub(channel).Call(messages)))
        messages.over.set()
    assert failure.code is StatusCode.DEADLINE_EXCEEDED
    assert "did not come within 0.2 s" in failure.message
    assert not worker.calls


def test_a_reader_that_stalls_is_given_up(worker: FakeWorker) -> None:
    large = values(8 * MIB)
    request = runs.RunStreamRequest(
        request=run_request(beside(large.shape, 1), "flood"), previews=True
    )
    with (
        serve(worker=worker, idle_timeout=0.2) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stream = ChunkedServiceStub(channel).Call(call(large.tobytes(), run_stream=request))
        next(stream)
        assert worker.ended.wait(LONG)  # though the stream is neither read nor cancelled
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
    assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED


def test_a_call_that_is_cancelled_while_it_runs_ends_the_workers(
    stub: ChunkedServiceStub, worker: FakeWorker
) -> None:
    request = runs.RunStreamRequest(request=run_request(beside(SHAPE, 1), "endless"))
    stream = stub.Call(call(DATA, run_stream=request))
    assert next(stream).header.run_stream.progress.total == 1000
    assert not worker.ended.is_set()
    stream.cancel()
    assert worker.ended.wait(LONG)


def test_the_deadline_ends_a_call_that_is_still_arriving(
    stub: ChunkedServiceStub, worker: FakeWorker
) -> None:
    messages = Stalled([header([16], run=RUN)])
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Call(messages, timeout=0.3))
    messages.over.set()
    assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
    assert not worker.calls


def test_more_bytes_than_may_arrive_at_once_are_refused_until_others_are_through(
    worker: FakeWorker,
) -> None:
    data = bytes(MIB)
    request = run_request(types.Tensor(dtype=types.DATA_TYPE_UINT8, shape=[MIB], part=1))
    with (
        serve(worker=worker, max_request_bytes=MIB) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub = ChunkedServiceStub(channel)
        waiting = [Stalled([header([MIB], run=request), chunk(1, data[1:])]) for _ in range(4)]
        streams = [stub.Call(messages) for messages in waiting]
        assert all(messages.waiting.wait(LONG) for messages in waiting)

        def outcome() -> StatusCode:
            stream = stub.Call(call(data, run=request))
            with contextlib.suppress(grpc.RpcError):
                list(stream)
            return stream.code()

        until(lambda: outcome() is StatusCode.RESOURCE_EXHAUSTED)
        failure = failure_of(lambda: list(stub.Call(call(data, run=request))))
        assert failure.reason == "OVERLOADED"
        assert failure.retry_after
        for stream, messages in zip(streams, waiting, strict=True):
            stream.cancel()
            messages.over.set()
        until(lambda: outcome() is StatusCode.OK)


def buffers() -> int:
    """Requests that the server of this process is putting together."""
    return sum(type(item) is parts_module.Incoming for item in gc.get_objects())


def test_nothing_is_left_of_calls_that_are_cancelled_while_they_arrive(
    stub: ChunkedServiceStub, worker: FakeWorker
) -> None:
    before = buffers()
    large = values(2 * MIB)
    for count in range(8):
        first = header([large.nbytes], run=run_request(beside(large.shape, 1)))
        arriving = list(chunks(large.tobytes()))[:count]
        messages = Stalled([first, *arriving])
        stream = stub.Call(messages)
        assert messages.waiting.wait(LONG)
        stream.cancel()
        messages.over.set()
    until(lambda: buffers() == before)
    assert not worker.calls
    ((_, parts),) = answers(
        stub.Call(call(large.tobytes(), run=run_request(beside(large.shape, 1))))
    )
    assert parts == [large.tobytes()]
