"""The asynchronous client: the same calls, retries and cancellation."""

import asyncio
import inspect
from pathlib import Path

import fake_interpret_server as fakes
import numpy as np
import pytest
from fake_interpret_server import FakeServer

import interpret_client
from interpret_client import Client, aio


def _public(cls: type) -> dict[str, inspect.Signature]:
    found = {}
    for name, method in vars(cls).items():
        if not name.startswith("_") and callable(method):
            signature = inspect.signature(method)
            found[name] = signature.replace(return_annotation=inspect.Signature.empty)
    return found


def test_both_clients_have_the_same_methods() -> None:
    assert _public(Client) == _public(aio.AsyncClient)


async def test_every_method_answers_as_the_blocking_client_does(
    fake: FakeServer, client: Client, inputs: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "net.pt").write_bytes(b"m" * ((1 << 20) + 1))
    async with aio.connect(fake.address, token="secret") as other:
        assert await other.models() == client.models()
        assert await other.model("net") == client.model("net")
        assert await other.plugins() == client.plugins()
        assert await other.plugin("saliency") == client.plugin("saliency")
        answer = await other.predict("net", inputs)
        np.testing.assert_array_equal(answer.logits, client.predict("net", inputs).logits)
        gradient = await other.gradient("net", inputs, answer.logits)
        assert gradient.gradient.shape == inputs.shape
        assert (await other.activations("net", inputs, ["fc"]))["fc"].shape == (2, 3)
        await other.run("saliency", "net", inputs, target=[1, 2], seed=3)
        client.run("saliency", "net", inputs, target=[1, 2], seed=3)
        one, two = fake.requests["Run"]
        assert one == two
        await other.load_model("one", tmp_path / "net.pt")
        client.load_model("two", tmp_path / "net.pt")
        (first, *one_chunks), (second, *two_chunks) = fake.requests["UploadModel"]
        assert one_chunks == two_chunks
        assert first.header.sha256 == second.header.sha256
        await other.unload_model("one")
    assert fake.metadata["authorization"] == "Bearer secret"


async def test_errors_and_retries_are_the_same(fake: FakeServer) -> None:
    async with aio.connect(fake.address) as client:
        fake.fail("Run", fakes.overloaded(), fakes.overloaded())
        assert (await client.run("saliency", "net")).tensors
        fake.fail("Run", *[fakes.overloaded(0.02)] * 3)
        with pytest.raises(interpret_client.Overloaded) as caught:
            await client.run("saliency", "net")
        assert caught.value.retry_after == pytest.approx(0.02)
        with pytest.raises(interpret_client.NotFound, match="nothing"):
            await client.model("nothing")
        with pytest.raises(interpret_client.InvalidRequest, match="target"):
            await client.run("saliency", "net", target="cat")
        with pytest.raises(interpret_client.DeadlineExceeded):
            await client.predict("hanging", np.zeros((1, 4), np.float32), timeout=0.5)


async def test_stream_gives_its_events(fake: FakeServer, inputs: np.ndarray) -> None:
    async with aio.connect(fake.address) as client:
        events = [event async for event in client.stream("saliency", "net", inputs)]
        assert len(events) == 7
        assert events[-1].result is not None
        fake.truncate_stream = True
        with pytest.raises(interpret_client.ServerError, match="without a result"):
            [event async for event in client.stream("saliency", "net")]
        fake.fail("RunStream", fakes.overloaded())
        with pytest.raises(interpret_client.Overloaded):
            await anext(client.stream("saliency", "net"))
        with pytest.raises(interpret_client.InvalidRequest, match="seed"):
            await anext(client.stream("saliency", "net", seed=-1))


async def _wait(event: object) -> None:
    assert await asyncio.to_thread(event.wait, 20)  # type: ignore[attr-defined]


async def test_leaving_a_stream_cancels_the_call(fake: FakeServer) -> None:
    async with aio.connect(fake.address) as client:
        async for _ in client.stream("saliency", "hanging"):
            await _wait(fake.running)
            break
        await _wait(fake.cancelled)


async def test_leaving_the_with_block_cancels_the_call(fake: FakeServer) -> None:
    async with aio.connect(fake.address) as client:
        async with client.stream("saliency", "hanging") as stream:
            await anext(stream)
            await _wait(fake.running)
        await _wait(fake.cancelled)
        assert [event async for event in stream] == []


@pytest.mark.parametrize("streaming", [False, True])
async def test_cancelled_task_cancels_the_call(fake: FakeServer, streaming: bool) -> None:
    async with aio.connect(fake.address) as client:

        async def read() -> None:
            if streaming:
                async for _ in client.stream("saliency", "hanging", previews=False):
                    pass
            else:
                await client.predict("hanging", np.zeros((1, 4), np.float32))

        task = asyncio.create_task(read())
        await _wait(fake.running)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await _wait(fake.cancelled)


async def test_concurrent_calls_share_a_connection(fake: FakeServer, inputs: np.ndarray) -> None:
    async with aio.connect(fake.address) as client:
        answers = await asyncio.gather(*(client.predict("net", inputs + i) for i in range(16)))
    for i, answer in enumerate(answers):
        np.testing.assert_allclose(answer.logits, fakes.logits_of(inputs + np.float32(i)))
