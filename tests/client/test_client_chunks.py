"""Large calls go in chunks by themselves, and nothing else about them changes."""

import asyncio
from collections.abc import Callable
from typing import Any

import fake_interpret_server as fakes
import grpc
import numpy as np
import pytest
from fake_interpret_server import Failure, FakeServer

import interpret_client
from interpret_api.v1 import chunked_service_pb2 as chunked
from interpret_client import Client, _chunks, _codec, _content, aio

MIB = 1 << 20
LIMIT = 4096
ROW = 16  # bytes of a row of the fake's classifier


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of some KiB, since the fake is slow."""
    monkeypatch.setattr(_content, "LARGE_BYTES", LIMIT)
    monkeypatch.setattr(_chunks, "INLINE_BYTES", 64)
    monkeypatch.setattr(_chunks, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(_codec, "IMAGE_BYTES", 500)


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(2).random((count, *fakes.SHAPE), dtype=np.float32)


@pytest.fixture
def large(small: None) -> np.ndarray:
    """Just over the limit."""
    return rows(LIMIT // ROW + 1)


@pytest.mark.usefixtures("small")
def test_a_call_switches_where_it_exceeds_the_limit(client: Client, fake: FakeServer) -> None:
    client.run("saliency", "net", rows(LIMIT // ROW))
    assert fake.chunked == []
    client.run("saliency", "net", rows(LIMIT // ROW + 1))
    assert fake.chunked == ["run"]


@pytest.mark.parametrize(
    ("inputs", "chunked"),
    [
        (np.zeros(2 * MIB, np.uint8), False),
        (np.zeros(2 * MIB + 1, np.uint8), True),  # float32 results are larger
        ({"a": np.zeros(MIB), "b": np.zeros(1)}, True),
        ([b"image"] * 8, False),
        ([b"image"] * 9, True),  # about a MiB each, once decoded
        ([b"x" * 8 * MIB, b"image"], True),
        (None, True),
    ],
)
def test_results_are_expected_to_be_as_large_as_their_inputs(inputs: Any, chunked: bool) -> None:
    content = _content.Content(inputs, any_size=inputs is None)
    assert (content.parts is not None) is chunked


def test_every_answer_is_the_same_in_chunks(
    client: Client, fake: FakeServer, large: np.ndarray
) -> None:
    few = large[:64]
    cotangent = np.ones((len(large), 3), np.float32)
    half = client.run("saliency", "net", large, target=1, half=True)
    assert half.tensors["attributions"].dtype == np.float16
    whole = client.run("saliency", "net", large, target=1, render=True)
    part = client.run("saliency", "net", few, target=1, render=True)
    np.testing.assert_array_equal(whole.tensors["attributions"][:64], part.tensors["attributions"])
    assert whole.tensors["attributions"].flags.writeable
    assert whole.tensors["success"].shape == (len(large),)
    assert whole.pictures["attributions"][:64] == part.pictures["attributions"]
    np.testing.assert_array_equal(
        client.predict("net", large).logits[:64], client.predict("net", few).logits
    )
    np.testing.assert_array_equal(
        client.gradient("net", large, cotangent).gradient[:64],
        client.gradient("net", few, cotangent[:64]).gradient,
    )
    assert client.activations("net", few, ["fc"])["fc"].shape == (64, 3)
    assert fake.chunked == ["run", "run", "predict", "compute_gradient", "compute_activations"]
    sent = fake.requests["Run"][1]
    np.testing.assert_array_equal(fakes.array(sent.inputs.tensor), large)


@pytest.mark.usefixtures("small")
def test_auxiliary_tensors_images_and_directions_are_sent_in_chunks(
    client: Client, fake: FakeServer
) -> None:
    images = [bytes([index]) * (LIMIT // 8) for index in range(9)]
    client.run("saliency", "net", images)
    mask = np.random.default_rng(0).random((2, LIMIT // 8))
    direction = np.arange(1 << 10, dtype=np.float32)
    target = {"layer": "a", "direction": direction}
    result = client.run("saliency", "net", rows(2), target=target, tensors={"mask": mask})
    assert fake.chunked == ["run", "run"]
    one, two = fake.requests["Run"]
    assert list(one.inputs.images.images) == images
    np.testing.assert_array_equal(np.frombuffer(two.tensors["mask"].data).reshape(mask.shape), mask)
    np.testing.assert_array_equal(result.provenance.targets[0]["direction"], direction)


@pytest.mark.usefixtures("small")
def test_arrays_of_every_layout_arrive(client: Client, fake: FakeServer) -> None:
    base = np.random.default_rng(0).random((40, 80), np.float32)
    for array in (base.T, base[::-1, ::2], base.astype(">f4"), np.asfortranarray(base)):
        mask = np.stack([array, array]).transpose(0, 2, 1)
        client.run("saliency", "net", rows(2), tensors={"mask": mask})
        np.testing.assert_array_equal(fakes.array(fake.requests["Run"][-1].tensors["mask"]), mask)
    assert fake.chunked == ["run"] * 4


def test_a_stream_in_chunks_gives_the_same_events(
    client: Client, fake: FakeServer, large: np.ndarray
) -> None:
    sent = large.copy()
    stream = client.stream("saliency", "net", sent, target=1)
    sent[:] = 0  # the caller may use its array again
    events = list(stream)
    assert fake.chunked == ["run_stream"]
    np.testing.assert_array_equal(
        fakes.array(fake.requests["RunStream"][0].request.inputs.tensor), large
    )
    assert [event.progress.done for event in events[:-1:2]] == [1, 2, 3]
    assert [event.preview.tensors["images"].max() for event in events[1:-1:2]] == [1, 2, 3]
    assert events[-1].result.tensors["attributions"].shape == large.shape
    assert next(stream, None) is None


async def test_the_asynchronous_client_does_the_same(
    client: Client, fake: FakeServer, large: np.ndarray
) -> None:
    async with aio.connect(fake.address) as other:
        results = await asyncio.gather(
            *(other.run("saliency", "net", large, target=target) for target in (0, 1, 2))
        )
        events = [event async for event in other.stream("saliency", "net", large, target=1)]
        fake.fail("Run", Failure(grpc.StatusCode.NOT_FOUND))
        with pytest.raises(interpret_client.NotFound):
            await other.run("saliency", "net", large)
    for target, result in enumerate(results):
        expected = np.broadcast_to(fakes.WEIGHTS[target].reshape(fakes.SHAPE), large.shape)
        np.testing.assert_array_equal(result.tensors["attributions"], expected)
    assert len(events) == 7
    np.testing.assert_array_equal(
        events[-1].result.tensors["attributions"], results[1].tensors["attributions"]
    )
    assert fake.chunked == ["run"] * 3 + ["run_stream", "run"]


def test_an_overloaded_call_is_sent_again_as_a_whole(
    client: Client, fake: FakeServer, large: np.ndarray
) -> None:
    fake.fail("Run", fakes.overloaded(), fakes.overloaded())
    assert client.run("saliency", "net", large).tensors
    assert [len(fakes.array(item.inputs.tensor)) for item in fake.requests["Run"]] == [
        len(large)
    ] * 3


def test_a_timeout_ends_a_large_call(client: Client, fake: FakeServer, large: np.ndarray) -> None:
    with pytest.raises(interpret_client.DeadlineExceeded):
        client.predict("hanging", large, timeout=2)
    assert fake.cancelled.wait(20)


def test_leaving_a_large_stream_cancels_the_call(
    client: Client, fake: FakeServer, large: np.ndarray
) -> None:
    for event in client.stream("saliency", "hanging", large, previews=False):
        assert event.progress is not None
        assert fake.running.wait(20)
        break
    assert fake.cancelled.wait(20)


def _chunk(part: int, data: bytes) -> chunked.CallResponse:
    return chunked.CallResponse(chunk=chunked.Chunk(part=part, data=data))


def _changed(messages: list[Any], **sizes: int) -> list[Any]:
    messages[0].header.part_sizes[0] += sizes["by"]
    return messages


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda messages: [], "sent 0 answers instead of one"),
        (lambda messages: messages * 2, "sent 2 answers instead of one"),
        (lambda messages: messages[:-1], "sent 0 answers instead of one"),
        (lambda messages: messages[1:], "bytes that belong to no answer"),
        (lambda messages: [*messages, _chunk(1, b"x")], "bytes that belong to no answer"),
        (lambda messages: [messages[0], messages[0]], "an answer that is not the one"),
        (lambda messages: [messages[0], _chunk(1, b"")], "bytes that are not the ones"),
        (lambda messages: [messages[0], _chunk(1, bytes(9999))], "bytes that are not the ones"),
        (lambda messages: _changed(messages, by=-1), "bytes that are not the ones"),
    ],
)
def test_a_server_that_sends_nonsense_is_told(
    client: Client, fake: FakeServer, spoil: Callable[[list[Any]], list[Any]], sentence: str
) -> None:
    fake.spoil = spoil
    with pytest.raises(interpret_client.ServerError, match=sentence):
        client.activations("net", rows(2), ["fc"])


def test_a_part_that_was_not_sent_is_told(client: Client, fake: FakeServer) -> None:
    def spoil(messages: list[Any]) -> list[Any]:
        messages[0].header.compute_activations.activations["fc"].part = 2
        return messages

    fake.spoil = spoil
    with pytest.raises(interpret_client.ServerError, match="fc: the server did not send"):
        client.activations("net", rows(2), ["fc"])
