"""Chunked calls that succeed, over a fake worker: the same as in one message, part by part."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from chunking import MIB, answers, beside, call, chunk, header, inline, run_request, values
from fake_worker import FakeWorker

from interpret_api.v1 import chunked_service_pb2 as pb
from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import model_service_pb2 as models
from interpret_api.v1 import types_pb2 as types
from interpret_api.v1.chunked_service_pb2_grpc import ChunkedServiceStub
from interpret_api.v1.interpret_service_pb2_grpc import InterpretServiceStub
from interpret_api.v1.model_service_pb2_grpc import ModelServiceStub
from interpret_server.engine import api

LARGE = values(5 * MIB // 8)  # 2.5 MiB
SMALL = values(4)


@pytest.fixture
def stub(channel: grpc.Channel) -> ChunkedServiceStub:
    return ChunkedServiceStub(channel)


def with_data(answer: types.Tensor, parts: list[bytes]) -> types.Tensor:
    """The tensor as it would have come in one message."""
    whole = types.Tensor()
    whole.CopyFrom(answer)
    if whole.part:
        whole.data = parts[whole.part - 1]
        whole.ClearField("part")
    return whole


@pytest.mark.parametrize("size", [MIB, 1000 * 4 + 1])
def test_a_run_is_the_same_as_in_one_message(
    channel: grpc.Channel, stub: ChunkedServiceStub, worker: FakeWorker, size: int
) -> None:
    fields = {"targets": [types.Target(class_index=1)], "seeds": [7], "render": True}
    whole = run_request(inline(LARGE), tensors={"mask": inline(SMALL)}, **fields)
    expected = InterpretServiceStub(channel).Run(whole).result
    request = run_request(beside(LARGE.shape, 1), tensors={"mask": inline(SMALL)}, **fields)
    ((answer, parts),) = answers(stub.Call(call(LARGE.tobytes(), size=size, run=request)))
    assert parts == [LARGE.tobytes()]
    tensors = answer.result.tensors
    tensors["attributions"].CopyFrom(with_data(tensors["attributions"], parts))
    assert answer.result == expected
    one, two = worker.calls
    assert isinstance(two.inputs, api.Array)
    assert bytes(two.inputs.data) == LARGE.tobytes()
    assert one == two


def test_every_field_may_be_a_part_in_any_order(
    stub: ChunkedServiceStub, worker: FakeWorker
) -> None:
    target = types.Target(layer="relu", direction=beside([2], 1))
    request = run_request(
        beside(SMALL.shape, 3), targets=[target], tensors={"mask": beside(SMALL.shape, 2)}
    )
    data = [np.float32([1, 2]).tobytes(), (SMALL + 1).tobytes(), SMALL.tobytes()]
    ((answer, parts),) = answers(stub.Call(call(*data, run=request)))
    assert not parts  # too few bytes
    assert answer.result.tensors["attributions"].data == data[2]
    assert answer.result.tensors["mask"].data == data[1]
    direction = worker.calls[0].targets[0].direction
    assert direction is not None
    assert bytes(direction.data) == data[0]


def test_a_request_without_parts_may_have_an_answer_with_parts(stub: ChunkedServiceStub) -> None:
    ((answer, parts),) = answers(stub.Call(call(run=run_request(inline(LARGE)))))
    assert answer.result.tensors["attributions"].part == 1
    assert parts == [LARGE.tobytes()]


def test_events_come_in_order_each_with_its_parts(stub: ChunkedServiceStub) -> None:
    request = runs.RunStreamRequest(request=run_request(beside(LARGE.shape, 1)), previews=True)
    events = answers(stub.Call(call(LARGE.tobytes(), run_stream=request)))
    assert [event.WhichOneof("event") for event, _ in events] == ["progress", "preview", "result"]
    assert [parts for _, parts in events] == [[], [LARGE.tobytes()], [LARGE.tobytes()]]
    assert events[1][0].preview.tensors["images"].part == 1


def test_predictions_gradients_and_activations_are_the_same(
    channel: grpc.Channel, stub: ChunkedServiceStub
) -> None:
    plain, data = ModelServiceStub(channel), LARGE.tobytes()
    whole, split = (
        types.Inputs(tensor=tensor) for tensor in (inline(LARGE), beside(LARGE.shape, 1))
    )
    cotangent = types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=[2, 2], data=bytes(16))
    requests = {
        "predict": (plain.Predict, models.PredictRequest, {}),
        "compute_gradient": (
            plain.ComputeGradient,
            models.ComputeGradientRequest,
            {"grad_outputs": cotangent},
        ),
        "compute_activations": (
            plain.ComputeActivations,
            models.ComputeActivationsRequest,
            {"layers": ["relu", "relu"]},
        ),
    }
    for kind, (method, message, fields) in requests.items():
        expected = method(message(model="net", inputs=whole, **fields))
        request = message(model="net", inputs=split, **fields)
        ((answer, parts),) = answers(stub.Call(call(data, **{kind: request})))
        if kind == "compute_gradient":
            answer.gradient.CopyFrom(with_data(answer.gradient, parts))
        elif kind == "compute_activations":
            relu = answer.activations["relu"]
            relu.CopyFrom(with_data(relu, parts))
        assert answer == expected, kind


def test_named_tensors_and_images_may_be_parts(
    stub: ChunkedServiceStub, worker: FakeWorker
) -> None:
    named = types.NamedTensors(tensors={"a": beside([2, 2], 2), "b": beside([2, 1], 1)})
    inputs = types.Inputs(named=named)
    request = runs.RunRequest(model="net", plugin="mute", inputs=inputs)
    answers(stub.Call(call(b"b" * 8, b"a" * 16, run=request)))
    images = types.EncodedImages(parts=[2, 1])
    request = runs.RunRequest(model="net", plugin="mute", inputs=types.Inputs(images=images))
    answers(stub.Call(call(b"second", b"first", run=request)))
    one, two = worker.calls
    assert isinstance(one.inputs, dict)
    assert {name: bytes(array.data) for name, array in one.inputs.items()} == {
        "a": b"a" * 16,
        "b": b"b" * 8,
    }
    assert two.inputs == (b"first", b"second")
    assert all(isinstance(image, bytes) for image in two.inputs)


def test_large_pictures_are_parts(stub: ChunkedServiceStub) -> None:
    ((answer, parts),) = answers(stub.Call(call(run=run_request(inline(SMALL), "drawn"))))
    pictures = answer.result.pictures
    assert list(pictures["images"].parts) == [1, 2]
    assert parts == [b"1" * 100_000, b"2"]
    assert list(pictures["masks"].png) == [b"small"]


def test_the_time_left_counts_from_the_last_chunk(
    stub: ChunkedServiceStub, worker: FakeWorker
) -> None:
    def late() -> Iterator[pb.CallRequest]:
        first, last = call(bytes(16), run=run_request(beside((2, 2), 1)))
        yield first
        time.sleep(0.5)
        yield last

    answers(stub.Call(late(), timeout=20))
    answers(stub.Call(call(run=run_request(inline(SMALL)))))
    limited, unlimited = worker.calls
    assert limited.timeout is not None
    assert 0 < limited.timeout < 19.6
    assert unlimited.timeout is None


def test_interleaved_calls_get_their_own_answers(stub: ChunkedServiceStub) -> None:
    def one(seed: int) -> bool:
        array = values(MIB, seed)
        messages = call(array.tobytes(), size=1 << 16, run=run_request(beside(array.shape, 1)))
        ((_, parts),) = answers(stub.Call(messages))
        return parts == [array.tobytes()]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(24)))


def test_a_call_that_is_still_arriving_holds_up_nobody(
    channel: grpc.Channel, stub: ChunkedServiceStub
) -> None:
    def slow() -> Iterator[pb.CallRequest]:
        yield header([LARGE.nbytes], run=run_request(beside(LARGE.shape, 1)))
        for index in range(3):
            small = InterpretServiceStub(channel).Run(run_request(inline(SMALL)), timeout=20)
            assert small.result.tensors["attributions"].data == SMALL.tobytes()
            yield chunk(1, LARGE.tobytes()[index * MIB :][:MIB])

    ((_, parts),) = answers(stub.Call(slow()))
    assert parts == [LARGE.tobytes()]
