"""Calls on stored data sets, from a client and the command to a real server and back."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import interpret_client
from interpret_client import Client, DataSet
from interpret_client.cli import main
from interpret_plugins.attribution.saliency import Saliency
from interpret_server.data import DataRoot, DataWorker, StoredCall, StoredRows
from interpret_server.engine.api import Call
from interpret_server.errors import FailedPrecondition, Overloaded, RequestTooLarge
from interpret_server.registry import Registry
from interpret_server.testing import classifier, serve

X = np.random.default_rng(0).random((3000, 1, 4, 4), dtype=np.float32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    np.savez(root / "set.npz", inputs=X, labels=np.arange(3000) % 3)
    np.savez_compressed(root / "small.npz", inputs=X[:5])
    np.save(root / "wrong.npy", X[:, :, :3])
    np.save(root / "bytes.npy", (X * 255).astype(np.uint8))
    (root / "photos").mkdir()
    for number in range(3):
        pixels = (X[number, 0] * 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    registry = Registry()
    registry.add(Saliency, "tests")
    models = {"net": classifier(network, (1, 4, 4), input_layout="CHW")}
    with serve(registry, models, data_root=root, max_request_bytes=150_000) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with interpret_client.connect(address, timeout=120) as client:
        yield client


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(100, 1100), X[100:1100]),
        (slice(2990, None), X[2990:]),
        (7, X[7:8]),
        ([5, 3, 5], X[[5, 3, 5]]),
        (np.arange(4), X[:4]),
    ],
)
def test_rows_of_a_set_are_as_if_they_had_been_sent(client: Client, rows: Any, expected: Any):
    found = client.run("saliency", "net", DataSet("set", rows), target=1)
    sent = client.run("saliency", "net", expected, target=1)
    np.testing.assert_array_equal(found.tensors["attributions"], sent.tensors["attributions"])
    assert found.before == sent.before


def test_every_call_on_a_model_takes_them(client: Client):
    small = DataSet("small")
    answer = client.predict("net", small)
    np.testing.assert_array_equal(answer.logits, client.predict("net", X[:5]).logits)
    gradient = client.gradient("net", small, np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]])
    assert gradient.gradient is not None
    assert gradient.gradient.shape == (5, 1, 4, 4)
    (layer, *_) = client.model("net").layers
    assert len(client.activations("net", small, [layer.name])[layer.name]) == 5
    with client.stream("saliency", "net", small) as stream:
        assert list(stream)[-1].result is not None


async def test_the_asynchronous_client_does_too(address: str):
    async with interpret_client.aio.connect(address) as client:
        answer = await client.predict("net", DataSet("set", slice(0, 2)))
    assert answer.logits.shape == (2, 3)


def test_images_are_sent_encoded(client: Client):
    answer = client.predict("net", DataSet("photos"))
    pixels = (X[:3] * 255).astype(np.uint8).astype(np.float32) / 255
    np.testing.assert_allclose(answer.logits, client.predict("net", pixels).logits, atol=1e-5)


def test_what_is_wrong_is_refused_by_its_field(client: Client):
    def violated(rows: Any, name: str = "set") -> str:
        with pytest.raises(interpret_client.InvalidRequest) as caught:
            client.predict("net", DataSet(name, rows))
        return caught.value.violations[0].field

    assert violated(slice(2999, 3001)) == "inputs.dataset.rows"
    assert violated(slice(0, 0)) == "inputs.dataset.rows"
    assert violated(slice(-5, None)) == "inputs.dataset.rows"
    assert violated([]) == "inputs.dataset.rows"
    assert violated([0.5]) == "inputs.dataset.rows"
    assert violated(None, "../set") == "inputs.dataset.name"
    assert violated(None, "") == "inputs.dataset.name"
    assert violated(slice(0, 5), "wrong") == "inputs"
    assert violated(slice(0, 5), "bytes") == "inputs"
    with pytest.raises(interpret_client.NotFound, match="no data set 'sett'; did you mean set"):
        client.predict("net", DataSet("sett"))
    with pytest.raises(interpret_client.NotFound, match="no model 'nobody'"):
        client.predict("nobody", DataSet("set"))
    with pytest.raises(interpret_client.MessageTooLarge, match="3000 rows have 192000 bytes"):
        client.predict("net", DataSet("set"))


def test_the_command_names_them(address: str):
    def run(*arguments: str) -> Any:
        command = ["run", "saliency", "net", "--json", *arguments]
        return CliRunner().invoke(main, command, env={"INTERPRET_ADDRESS": address})

    done = run("--dataset", "set", "--rows", "10:30")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["tensors"]["attributions"]["shape"] == [20, 1, 4, 4]
    listed = json.loads(run("--dataset", "set", "--rows", "4,2").stdout)
    assert listed["tensors"]["attributions"]["shape"][0] == 2
    assert run("--dataset", "set", "--rows", "two").exit_code == 2
    assert run("--rows", "1:2").exit_code == 2
    assert run("digit.png", "--dataset", "set").exit_code == 2


class Waiting:
    """A worker whose calls wait."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.go = asyncio.Event()

    def models(self) -> Any:
        from types import SimpleNamespace

        return (SimpleNamespace(name="net", inputs=(), input_shape=()),)

    async def run(self, call: Call) -> Any:
        self.calls.append(call)
        await self.go.wait()
        yield None


async def ended(worker: DataWorker, call: Call) -> None:
    async for _ in worker.run(call):
        pass


def stored(count: int) -> StoredCall:
    rows = StoredRows("set", 0, count)
    return StoredCall(model="net", plugin="saliency", timeout=5.0, dataset=rows)


async def test_calls_hold_no_more_than_so_many_bytes_together(root: Path):
    inner = Waiting()
    worker = DataWorker(inner, DataRoot(root), 64 * 100)  # type: ignore[arg-type]
    running = [asyncio.create_task(ended(worker, stored(100))) for _ in range(4)]
    async with asyncio.timeout(20):
        while len(inner.calls) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    with pytest.raises(Overloaded, match="too many calls on stored rows"):
        await ended(worker, stored(1))
    with pytest.raises(RequestTooLarge):
        await ended(worker, stored(101))
    inner.go.set()
    await asyncio.gather(*running)
    await ended(worker, stored(100))
    call = inner.calls[-1]
    assert type(call) is Call
    assert call.timeout is not None
    assert 0 < call.timeout < 5.0


async def test_without_a_root_there_are_no_data_sets():
    worker = DataWorker(Waiting(), None, 100)  # type: ignore[arg-type]
    with pytest.raises(FailedPrecondition, match="start it with --data-root"):
        await ended(worker, stored(1))
