"""Who calls, and whose work goes first, over a fake worker."""

from typing import Any

import grpc
import pytest
from failures import failure_of
from fake_worker import FakeWorker

from interpret_api.open_inference import grpc_predict_v2_pb2 as inference
from interpret_api.open_inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import model_service_pb2 as models
from interpret_api.v1 import types_pb2 as types
from interpret_api.v1.interpret_service_pb2_grpc import InterpretServiceStub
from interpret_api.v1.model_service_pb2_grpc import ModelServiceStub
from interpret_server.errors import InvalidRequest
from interpret_server.rpc.callers import client_of

TENSOR = types.Tensor(dtype=types.DATA_TYPE_FLOAT32, shape=[2, 2], data=bytes(16))
INPUTS = types.Inputs(tensor=TENSOR)


class Context:
    """What `client_of` reads of a call."""

    def __init__(self, peer: str, metadata: Any = ()) -> None:
        self._peer, self._metadata = peer, metadata

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> Any:
        return self._metadata


def run(channel: grpc.Channel, metadata: Any = (), **fields: Any) -> None:
    request = runs.RunRequest(model="net", plugin="echo", inputs=INPUTS, **fields)
    InterpretServiceStub(channel).Run(request, metadata=metadata)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("PRIORITY_UNSPECIFIED", 0),
        ("PRIORITY_LOW", -1),
        ("PRIORITY_NORMAL", 0),
        ("PRIORITY_HIGH", 1),
    ],
)
def test_every_priority_reaches_the_worker(
    channel: grpc.Channel, worker: FakeWorker, name: str, number: int
) -> None:
    run(channel, priority=name)
    assert worker.calls[-1].priority == number


def test_every_call_on_a_model_has_a_priority_and_a_client(
    channel: grpc.Channel, worker: FakeWorker
) -> None:
    metadata = (("x-client-id", "team a"),)
    fields: dict[str, Any] = {"model": "net", "inputs": INPUTS, "priority": "PRIORITY_HIGH"}
    stub = ModelServiceStub(channel)
    stub.Predict(models.PredictRequest(**fields), metadata=metadata)
    stub.ComputeGradient(
        models.ComputeGradientRequest(**fields, grad_outputs=TENSOR), metadata=metadata
    )
    stub.ComputeActivations(
        models.ComputeActivationsRequest(**fields, layers=["relu"]), metadata=metadata
    )
    run_request = runs.RunRequest(**fields, plugin="echo")
    request = runs.RunStreamRequest(request=run_request)
    assert list(InterpretServiceStub(channel).RunStream(request, metadata=metadata))
    assert [(call.client, call.priority) for call in worker.calls] == [("team a", 1)] * 4


def test_an_open_inference_call_has_a_client(channel: grpc.Channel, worker: FakeWorker) -> None:
    tensor = inference.ModelInferRequest.InferInputTensor(
        name="image", datatype="FP32", shape=[1, 2]
    )
    request = inference.ModelInferRequest(
        model_name="net", inputs=[tensor], raw_input_contents=[bytes(8)]
    )
    metadata = (("x-client-id", "b"),)
    GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=metadata)
    assert worker.calls[-1].client == "b"


def test_a_priority_that_there_is_not_is_refused(channel: grpc.Channel) -> None:
    failure = failure_of(lambda: run(channel, priority=7))
    sentence = "7 is none of PRIORITY_LOW, PRIORITY_NORMAL, PRIORITY_HIGH"
    assert (failure.code, failure.message) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        f"priority: {sentence}",
    )
    assert failure.fields == {"priority": sentence}


@pytest.mark.parametrize("client", ["", "x" * 129], ids=["empty", "long"])
def test_a_bad_client_id_is_refused(channel: grpc.Channel, client: str) -> None:
    failure = failure_of(lambda: run(channel, (("x-client-id", client),)))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.message == "x-client-id: give 1 to 128 printable ASCII characters"


@pytest.mark.parametrize("value", ["a\nb", "é", b"raw"])
def test_a_client_id_is_printable_ascii(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="x-client-id"):
        client_of(Context("ipv4:1.2.3.4:5", (("x-client-id", value),)))


def test_without_an_id_two_connections_from_one_address_are_one_client(
    address: str, worker: FakeWorker
) -> None:
    for _ in range(2):
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(address, options=options) as channel:
            run(channel)
    first, second = (call.client for call in worker.calls)
    assert first == second
    assert first in ("ipv4:127.0.0.1", "ipv6:%5B::1%5D", "ipv6:[::1]")


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("ipv4:10.0.0.7:50312", "ipv4:10.0.0.7"),
        ("ipv6:%5B2001:db8::7%5D:50312", "ipv6:%5B2001:db8::7%5D"),
        ("unix:", "unix:"),
        ("unix:/run/interpret:1", "unix:/run/interpret:1"),
    ],
)
def test_the_address_counts_without_its_port(peer: str, client: str) -> None:
    assert client_of(Context(peer)) == client
