"""What callers see of errors, over a fake worker."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from failures import failure_of
from fake_worker import SECRET, FakeWorker
from grpc import StatusCode, aio

from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import model_service_pb2 as models
from interpret_api.v1 import plugin_service_pb2 as plugins
from interpret_api.v1 import types_pb2 as types
from interpret_api.v1.interpret_service_pb2_grpc import InterpretServiceStub
from interpret_api.v1.model_service_pb2_grpc import ModelServiceStub
from interpret_api.v1.plugin_service_pb2_grpc import PluginServiceStub
from interpret_server.rpc.interceptor import CallInterceptor
from interpret_server.testing.server import serve

FLOAT = types.DATA_TYPE_FLOAT32
TENSOR = types.Tensor(dtype=FLOAT, shape=[1, 2], data=bytes(8))
INPUTS = types.Inputs(tensor=TENSOR)


def run(channel: grpc.Channel, **fields: Any) -> runs.RunResponse:
    request = {"model": "net", "plugin": "echo", "inputs": INPUTS, **fields}
    return InterpretServiceStub(channel).Run(runs.RunRequest(**request))


def tensor(**fields: Any) -> types.Inputs:
    given = {"dtype": FLOAT, "shape": [1, 2], "data": bytes(8), **fields}
    return types.Inputs(tensor=types.Tensor(**given))


BAD_RUNS: list[tuple[dict[str, Any], StatusCode, str | None, str]] = [
    ({"model": ""}, StatusCode.INVALID_ARGUMENT, "model", "ListModels"),
    ({"model": "other"}, StatusCode.NOT_FOUND, None, "'other'"),
    ({"plugin": ""}, StatusCode.INVALID_ARGUMENT, "plugin", "ListPlugins"),
    ({"plugin": "other"}, StatusCode.NOT_FOUND, None, "'other'"),
    ({"plugin": "_predict"}, StatusCode.NOT_FOUND, None, "'_predict'"),
    (
        {"inputs": tensor(data=bytes(7))},
        StatusCode.INVALID_ARGUMENT,
        "inputs.data",
        r"7 bytes .* \[1, 2\] of float32 takes 8",
    ),
    (
        {"inputs": tensor(shape=[-1, -2])},
        StatusCode.INVALID_ARGUMENT,
        "inputs.shape",
        "negative",
    ),
    (
        {"inputs": tensor(shape=[2**62, 2**62], data=b"")},
        StatusCode.INVALID_ARGUMENT,
        "inputs.data",
        "0 bytes",
    ),
    (
        {"inputs": tensor(dtype=0)},
        StatusCode.INVALID_ARGUMENT,
        "inputs.dtype",
        "DATA_TYPE_FLOAT32",
    ),
    ({"inputs": tensor(dtype=77)}, StatusCode.INVALID_ARGUMENT, "inputs.dtype", "DATA_TYPE_INT8"),
    (
        {"inputs": types.Inputs(images=types.EncodedImages())},
        StatusCode.INVALID_ARGUMENT,
        "inputs.images",
        "at least one",
    ),
    (
        {"tensors": {"mask": types.Tensor(dtype=FLOAT, shape=[3], data=b"x")}},
        StatusCode.INVALID_ARGUMENT,
        "tensors.mask.data",
        "12",
    ),
    (
        {"targets": [types.Target(class_index=0), types.Target(layer="relu")]},
        StatusCode.INVALID_ARGUMENT,
        "targets[1]",
        "class_index",
    ),
    (
        {"targets": [types.Target(class_index=0, layer="relu")]},
        StatusCode.INVALID_ARGUMENT,
        "targets[0].layer",
        "channel or neuron",
    ),
    (
        {"targets": [types.Target(direction=types.Tensor(dtype=FLOAT, shape=[2]))]},
        StatusCode.INVALID_ARGUMENT,
        "targets[0].direction.data",
        "takes 8",
    ),
]


@pytest.mark.parametrize(("fields", "code", "field", "sentence"), BAD_RUNS)
def test_a_bad_run_is_answered_with_the_field_that_is_wrong(
    channel: grpc.Channel,
    fields: dict[str, Any],
    code: StatusCode,
    field: str | None,
    sentence: str,
) -> None:
    failure = failure_of(lambda: run(channel, **fields))
    assert failure.code is code
    assert re.search(sentence, failure.message)
    assert list(failure.fields) == ([] if field is None else [field])
    assert failure.domain == "interpret-server"
    assert run(channel).result.tensors["attributions"] == TENSOR


Send = Callable[[grpc.Channel], object]
BAD_CALLS: dict[str, tuple[Send, StatusCode, list[str]]] = {
    "get a model without a name": (
        lambda c: ModelServiceStub(c).GetModel(models.GetModelRequest()),
        StatusCode.INVALID_ARGUMENT,
        ["name"],
    ),
    "get an unknown model": (
        lambda c: ModelServiceStub(c).GetModel(models.GetModelRequest(name="other")),
        StatusCode.NOT_FOUND,
        [],
    ),
    "unload an unknown model": (
        lambda c: ModelServiceStub(c).UnloadModel(models.UnloadModelRequest(name="other")),
        StatusCode.NOT_FOUND,
        [],
    ),
    "get an unknown plugin": (
        lambda c: PluginServiceStub(c).GetPlugin(plugins.GetPluginRequest(name="other")),
        StatusCode.NOT_FOUND,
        [],
    ),
    "get a primitive": (
        lambda c: PluginServiceStub(c).GetPlugin(plugins.GetPluginRequest(name="_predict")),
        StatusCode.NOT_FOUND,
        [],
    ),
    "predict without inputs": (
        lambda c: ModelServiceStub(c).Predict(models.PredictRequest(model="net")),
        StatusCode.INVALID_ARGUMENT,
        ["inputs"],
    ),
    "predict with empty inputs": (
        lambda c: ModelServiceStub(c).Predict(
            models.PredictRequest(model="net", inputs=types.Inputs())
        ),
        StatusCode.INVALID_ARGUMENT,
        ["inputs"],
    ),
    "gradient without a cotangent": (
        lambda c: ModelServiceStub(c).ComputeGradient(
            models.ComputeGradientRequest(model="net", inputs=INPUTS)
        ),
        StatusCode.INVALID_ARGUMENT,
        ["grad_outputs"],
    ),
    "gradient with a cotangent of another shape": (
        lambda c: ModelServiceStub(c).ComputeGradient(
            models.ComputeGradientRequest(model="net", inputs=INPUTS, grad_outputs=TENSOR)
        ),
        StatusCode.INVALID_ARGUMENT,
        ["grad_outputs"],
    ),
    "activations of no layer": (
        lambda c: ModelServiceStub(c).ComputeActivations(
            models.ComputeActivationsRequest(model="net", inputs=INPUTS)
        ),
        StatusCode.INVALID_ARGUMENT,
        ["layers"],
    ),
    "a request of another message type": (
        lambda c: c.unary_unary("/interpret_api.v1.InterpretService/Run")(b"\x0a\xff\xff"),
        StatusCode.INVALID_ARGUMENT,
        [],
    ),
}


@pytest.mark.parametrize(("send", "code", "fields"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_call_is_answered_with_its_status(
    channel: grpc.Channel, send: Send, code: StatusCode, fields: list[str]
) -> None:
    failure = failure_of(lambda: send(channel))
    assert failure.code is code
    assert list(failure.fields) == fields
    assert failure.message
    assert run(channel).result.tensors


def test_a_full_queue_says_when_to_retry(channel: grpc.Channel) -> None:
    failure = failure_of(lambda: run(channel, plugin="overloaded"))
    assert failure.code is StatusCode.RESOURCE_EXHAUSTED
    assert (failure.reason, failure.retry_after) == ("OVERLOADED", 1.5)


def test_a_defect_shows_its_request_id_and_nothing_else(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        failure = failure_of(lambda: run(channel, plugin="broken"))
    assert failure.code is StatusCode.INTERNAL
    assert failure.message == f"internal error; request id {failure.request_id}"
    (record,) = [item for item in caplog.records if failure.request_id in item.getMessage()]
    assert record.exc_info is not None
    assert SECRET in str(record.exc_info[1])


def test_a_stream_fails_as_a_call_does(channel: grpc.Channel) -> None:
    request = runs.RunStreamRequest(
        request=runs.RunRequest(model="net", plugin="broken", inputs=INPUTS)
    )
    failure = failure_of(lambda: list(InterpretServiceStub(channel).RunStream(request)))
    assert failure.code is StatusCode.INTERNAL
    assert failure.request_id in failure.message


def test_long_errors_are_cut_to_what_a_client_accepts(channel: grpc.Channel) -> None:
    failure = failure_of(lambda: run(channel, plugin="unvarnished"))
    assert failure.code is StatusCode.INVALID_ARGUMENT
    assert 500 < len(failure.message) <= 1000
    assert 3 < len(failure.fields) < 100


@pytest.mark.parametrize("plugin", ["echo", "broken"])
def test_the_callers_request_id_comes_back(channel: grpc.Channel, plugin: str) -> None:
    stub = InterpretServiceStub(channel).Run
    request = runs.RunRequest(model="net", plugin=plugin, inputs=INPUTS)
    call = stub.future(request, metadata=[("x-request-id", "order-66")])
    assert (call.exception() is None) == (plugin == "echo")
    assert dict(call.trailing_metadata())["x-request-id"] == "order-66"


@pytest.mark.parametrize("given", [None, "has spaces", "x" * 129])
def test_a_request_id_is_made_where_the_caller_sent_none_of_use(
    channel: grpc.Channel, given: str | None
) -> None:
    request = runs.RunRequest(model="net", plugin="echo", inputs=INPUTS)
    metadata = [] if given is None else [("x-request-id", given)]
    _, call = InterpretServiceStub(channel).Run.with_call(request, metadata=metadata)
    assert re.fullmatch("[0-9a-f]{32}", dict(call.trailing_metadata())["x-request-id"])


def test_an_oversize_message_names_both_sizes_and_the_server_still_serves(
    worker: FakeWorker,
) -> None:
    with (
        serve(worker=worker, max_message_bytes=1 << 20) as address,
        grpc.insecure_channel(address) as channel,
    ):
        with pytest.raises(grpc.RpcError) as caught:
            run(channel, inputs=tensor(shape=[1, 1 << 19], data=bytes(1 << 21)))
        assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
        assert re.search(r"larger than max \(20\d{5} vs. 1048576\)", caught.value.details())
        assert run(channel).result.tensors
    assert len(worker.calls) == 1


@pytest.mark.parametrize("streams", [False, True])
async def test_a_caller_who_is_gone_is_no_error(
    streams: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Gone:
        aborted = False

        def set_trailing_metadata(self, metadata: object) -> None:
            pass

        async def write(self, message: object) -> None:
            raise aio.InternalError("Failed to send")

        async def abort(self, *status: object) -> None:
            self.aborted = True

    async def at_once(request: bytes, context: Gone) -> None:
        await context.write(request)

    async def one_by_one(request: bytes, context: Gone) -> AsyncIterator[bytes]:
        yield request

    handler = (
        grpc.unary_stream_rpc_method_handler(one_by_one)
        if streams
        else grpc.unary_unary_rpc_method_handler(at_once)
    )

    async def found(details: object) -> object:
        return handler

    details = Mock(method="/there", invocation_metadata=())
    made = await CallInterceptor().intercept_service(found, details)
    behaviour = made.unary_stream if streams else made.unary_unary
    context = Gone()
    with pytest.raises(asyncio.CancelledError):
        await behaviour(b"", context)
    assert not context.aborted
    assert not caplog.records
