"""Models in processes of their own: right answers, cancellation, deadlines, loading."""

import asyncio
import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from fleets import (
    MANIFEST,
    alive,
    archive,
    calling,
    events,
    fleet_of,
    kill,
    number,
    plugin_folder,
    result,
    rows,
    settled,
    until,
)

from interpret_server.engine.api import Array, Call, Preview, Progress, Result, Target
from interpret_server.engine.local import LocalWorker
from interpret_server.engine.workers.fleet import Fleet
from interpret_server.engine.workers.nursery import NurseryError
from interpret_server.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    InvalidModel,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from interpret_server.models.manifest import Manifest
from interpret_server.registry import Registry

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    plugin_folder(folder / "plugins")
    archive(folder / "one.pt", 1.0)
    archive(folder / "two.pt", 2.0)
    archive(folder / "wide.pt", 0.001, 1 << 20)
    (folder / "corrupt.pt").write_bytes(b"not a model")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(folder: Path):
    async with fleet_of(folder / "plugins") as fleet:
        await fleet.load("net", folder / "one.pt", MANIFEST)
        yield fleet


async def test_the_front_end_imports_no_torch():
    code = (
        "import sys, interpret_server.engine.workers.fleet, interpret_server.rpc.server;"
        "print([n for n in ('torch', 'captum', 'onnx', 'onnxruntime') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


async def test_plugins_and_models_are_told(fleet: Fleet, folder: Path):
    registry = Registry.installed()
    registry.add_folder(folder / "plugins")
    local = LocalWorker(registry, device="cpu")
    assert fleet.plugins() == local.plugins()
    info = await local.load("net", folder / "one.pt", MANIFEST)
    (told,) = [item for item in fleet.models() if item.name == "net"]
    assert told == info
    await local.close(0)


@pytest.mark.parametrize("plugin", ["saliency", "_gradient", "pgd", "_predict"])
async def test_answers_are_those_of_a_worker_in_this_process(
    fleet: Fleet, folder: Path, plugin: str
):
    local = LocalWorker(Registry.installed(), device="cpu")
    await local.load("net", folder / "one.pt", MANIFEST)
    more = {"tensors": {"grad_outputs": rows(1.0, -2.0, size=3)}} if plugin == "_gradient" else {}
    call = calling("net", plugin, rows(0.3, -0.7), seeds=(7,), **more)
    theirs, ours = await result(fleet, call), None
    async for event in local.run(call):
        ours = event
    assert isinstance(ours, Result)
    assert theirs.tensors == ours.tensors
    assert (theirs.metrics, theirs.before, theirs.after) == (ours.metrics, ours.before, ours.after)
    assert theirs.provenance.params == ours.provenance.params
    await local.close(0)


async def test_large_tensors_pass_both_ways(fleet: Fleet, folder: Path):
    wide = Manifest.model_validate({"shape": [1 << 20], "bounds": [-10, 10]})
    await fleet.load("wide", folder / "wide.pt", wide)
    values = torch.linspace(-1, 1, 5 << 20).reshape(5, 1 << 20)
    call = Call(
        "wide", "misbehave", inputs=Array("float32", (5, 1 << 20), values.numpy().tobytes())
    )
    for _ in range(3):
        images = (await result(fleet, call)).tensors["images"]
        assert images.shape == (5, 1 << 20)
        assert images.data == values.numpy().tobytes()
    logits = (await result(fleet, Call("wide", "_predict", inputs=call.inputs))).tensors["logits"]
    expected = 0.001 * values.double().sum(1) + 0.5
    found = torch.frombuffer(bytearray(logits.data), dtype=torch.float32).reshape(5, 3)
    torch.testing.assert_close(found[:, 0].double(), expected, rtol=1e-3, atol=1e-3)
    await fleet.unload("wide")


async def test_progress_and_previews_come_in_order(fleet: Fleet):
    call = calling("net", "misbehave", params='{"steps": 20, "seconds": 0.01}', previews=True)
    found = await events(fleet, call)
    assert isinstance(found[-1], Result)
    done = [event.done for event in found if isinstance(event, Progress)]
    assert done == sorted(done)
    assert done[-1] == 20
    previews = [event for event in found if isinstance(event, Preview)]
    assert previews
    for preview in previews:
        data = torch.frombuffer(bytearray(preview.tensors["images"].data), dtype=torch.float32)
        assert data.tolist() == [1.0 + round(data[0].item() - 1)] * 4


async def test_a_closed_call_is_cancelled(fleet: Fleet):
    params = '{"steps": 1000000, "seconds": 0.001}'
    async with contextlib.aclosing(fleet.run(calling("net", "misbehave", params=params))) as run:
        await anext(run)
    connection = await fleet._keepers["net"].worker(None)
    await until(lambda: not connection.calls)
    await result(fleet, calling("net"))


async def test_a_deadline_ends_a_call(fleet: Fleet):
    params = '{"steps": 1000000, "seconds": 0.001}'
    with pytest.raises(DeadlineExceeded):
        await events(fleet, calling("net", "misbehave", params=params, timeout=0.2))
    with pytest.raises(DeadlineExceeded):
        await events(fleet, calling("net", timeout=0.0))


async def test_errors_keep_their_type_and_fields(fleet: Fleet, folder: Path):
    with pytest.raises(InvalidRequest) as caught:
        await result(fleet, calling("net", "pgd", params='{"epsilon": "big"}'))
    assert caught.value.violations[0].field == "params.epsilon"
    with pytest.raises(NotFound, match="no plugin"):
        await result(fleet, calling("net", "nothing"))
    with pytest.raises(NotFound, match="no model"):
        await result(fleet, calling("nobody"))
    with pytest.raises(InvalidModel):
        await fleet.load("corrupt", folder / "corrupt.pt", MANIFEST)
    with pytest.raises(AlreadyExists):
        await fleet.load("net", folder / "two.pt", MANIFEST)
    with pytest.raises(InvalidRequest):
        await fleet.load("a/b", folder / "two.pt", MANIFEST)
    assert [info.name for info in fleet.models()] == ["net"]


async def test_a_model_is_replaced_while_calls_run_on_it(fleet: Fleet, folder: Path):
    await fleet.load("twin", folder / "one.pt", MANIFEST)
    params = '{"steps": 50, "seconds": 0.01}'
    running = asyncio.create_task(result(fleet, calling("twin", "misbehave", params=params)))
    await until(lambda: fleet._keepers["twin"].users.count)
    (old,) = fleet.process_ids()["twin"]
    with pytest.raises(InvalidModel):
        await fleet.load("twin", folder / "corrupt.pt", MANIFEST, replace=True)
    await fleet.load("twin", folder / "two.pt", MANIFEST, replace=True)
    assert (await result(fleet, calling("twin"))).before[0].logits[0] == 8.5
    first = (await running).provenance.model_sha256
    assert first != (await result(fleet, calling("twin"))).provenance.model_sha256
    await until(lambda: not alive(old))
    (new,) = fleet.process_ids()["twin"]
    await fleet.unload("twin")
    assert not alive(new)


async def test_a_call_of_an_unloaded_model_finishes(fleet: Fleet, folder: Path):
    await fleet.load("leaving", folder / "one.pt", MANIFEST)
    params = '{"steps": 50, "seconds": 0.01}'
    running = asyncio.create_task(result(fleet, calling("leaving", "misbehave", params=params)))
    await until(lambda: fleet._keepers["leaving"].users.count)
    await fleet.unload("leaving")
    assert running.done()
    assert (await running).provenance.model == "leaving"


async def test_workers_on_two_devices_share_the_calls(folder: Path):
    async with fleet_of(folder / "plugins", devices=("cpu", "cpu")) as fleet:
        await fleet.load("net", folder / "one.pt", MANIFEST)
        assert len(set(fleet.process_ids()["net"])) == 2
        params = '{"deed": "name", "seconds": 0.2}'
        names = await asyncio.gather(*(number(fleet, "net", params) for _ in range(4)))
        assert len(set(names)) == 2


async def test_models_sleep_over_the_memory_budget(folder: Path):
    async with fleet_of(memory_bytes=1) as fleet:
        await fleet.load("a", folder / "one.pt", MANIFEST)
        await fleet.load("b", folder / "two.pt", MANIFEST)
        await until(lambda: not fleet.process_ids()["a"])
        assert [info.name for info in fleet.models()] == ["a", "b"]
        assert (await result(fleet, calling("a"))).before[0].logits[0] == 4.5
        await until(lambda: not fleet.process_ids()["b"])
        assert (await result(fleet, calling("b"))).before[0].logits[0] == 8.5


async def test_closing_ends_every_process(folder: Path):
    async with fleet_of(folder / "plugins") as fleet:
        await fleet.load("net", folder / "one.pt", MANIFEST)
        (process,) = fleet.process_ids()["net"]
        params = '{"steps": 1000000, "seconds": 0.001}'
        running = asyncio.create_task(events(fleet, calling("net", "misbehave", params=params)))
        await until(lambda: fleet._keepers["net"].users.count)
        await fleet.close(0.1)
        with pytest.raises((Unavailable, Cancelled)):
            await running
        assert not alive(process)
        with pytest.raises(Unavailable):
            await result(fleet, calling("net"))


async def test_a_plugin_that_does_not_load_is_named(folder: Path):
    bad = folder / "bad"
    bad.mkdir()
    (bad / "broken.py").write_text("import nowhere")
    fleet = Fleet(devices=("cpu",), plugin_dirs=[bad])
    with pytest.raises(NurseryError, match=r"broken\.py"):
        await fleet.start()
    await fleet.close(0)
    missing = Fleet(devices=("cuda:99",))
    with pytest.raises(NurseryError, match="there is no cuda:99"):
        await missing.start()
    await missing.close(0)


async def test_target_layers_pass(fleet: Fleet):
    call = calling("net", "saliency", targets=(Target("class", (2,)),), params=json.dumps({}))
    assert (await result(fleet, call)).provenance.targets == (Target("class", (2,)),)


async def test_a_killed_worker_comes_back(fleet: Fleet):
    kill(fleet, "net")
    assert await settled(fleet, "net") == 4.5
