"""Who calls, and whose work goes first, as the clients send it."""

import numpy as np
import pytest
from fake_interpret_server import FakeServer

import interpret_client
from interpret_api.v1 import types_pb2 as types
from interpret_client import Client, aio


def test_every_call_on_a_model_sends_its_priority(
    fake: FakeServer, client: Client, inputs: np.ndarray
) -> None:
    client.predict("net", inputs, priority="low")
    client.gradient("net", inputs, np.ones((2, 3), np.float32), priority="normal")
    client.activations("net", inputs, "fc", priority="high")
    client.run("saliency", "net", inputs, priority="high")
    with client.stream("saliency", "net", inputs, priority="low") as stream:
        assert list(stream)
    requests = [
        fake.requests[method][0]
        for method in ("Predict", "ComputeGradient", "ComputeActivations", "Run", "RunStream")
    ]
    sent = [getattr(request, "request", request).priority for request in requests]
    assert sent == [
        types.PRIORITY_LOW,
        types.PRIORITY_NORMAL,
        types.PRIORITY_HIGH,
        types.PRIORITY_HIGH,
        types.PRIORITY_LOW,
    ]


def test_nothing_is_sent_where_nothing_was_said(
    fake: FakeServer, client: Client, inputs: np.ndarray
) -> None:
    client.run("saliency", "net", inputs)
    assert fake.requests["Run"][0].priority == types.PRIORITY_UNSPECIFIED
    assert "x-client-id" not in fake.metadata


def test_a_priority_that_there_is_not_is_refused_before_sending(
    fake: FakeServer, client: Client, inputs: np.ndarray
) -> None:
    with pytest.raises(interpret_client.InvalidRequest) as caught:
        client.run("saliency", "net", inputs, priority="urgent")
    assert str(caught.value) == "priority: give low, normal or high"
    assert not fake.requests["Run"]


async def test_both_clients_send_their_id_with_every_call(fake: FakeServer) -> None:
    with interpret_client.connect(fake.address, token="secret", client_id="team a") as client:
        client.models()
    assert fake.metadata["x-client-id"] == "team a"
    assert fake.metadata["authorization"] == "Bearer secret"
    async with aio.connect(fake.address, client_id="team b") as other:
        await other.models()
    assert fake.metadata["x-client-id"] == "team b"


@pytest.mark.parametrize("client_id", ["", "x" * 129, "a\nb", "é"])
@pytest.mark.parametrize("connect", [interpret_client.connect, aio.connect])
async def test_a_client_id_is_printable_ascii(connect: object, client_id: str) -> None:
    with pytest.raises(interpret_client.InvalidRequest, match="client_id: give 1 to 128"):
        connect("localhost:1", client_id=client_id)  # type: ignore[operator]
