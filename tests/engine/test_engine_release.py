"""Unloaded and replaced models give their memory back, without a full garbage collection."""

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_fakes import Act, Loader, Walk, calling, linear, result, rows, serving, until
from torch import fx, nn

from interpret_server.engine.release import dismantle
from interpret_server.errors import InterpretError, InvalidModel, NotFound
from interpret_server.models.classifier import Classifier
from interpret_server.models.manifest import Manifest
from interpret_server.testing.classifiers import classifier


class Weights:
    """Makes classifiers and remembers their weights weakly."""

    def __init__(self) -> None:
        self.made: list[weakref.ref[torch.Tensor]] = []
        self.classifiers: list[weakref.ref[Classifier]] = []

    def __call__(self) -> Classifier:
        model = classifier(fx.symbolic_trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU())), (4,))
        self.made += [weakref.ref(item) for item in model.module.parameters()]
        self.classifiers.append(weakref.ref(model))
        assert self.made
        return model

    def gone(self) -> bool:
        return not any(item() is not None for item in (*self.made, *self.classifiers))


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def weights() -> Weights:
    return Weights()


pytestmark = pytest.mark.usefixtures("no_collector")


def fail(model, batch, job):
    raise RuntimeError("a plugin's mistake")


def hold_on(model, batch, job):
    return model(batch.inputs)


@pytest.mark.parametrize("plugin", [None, "_predict", "_gradient", "act"])
async def test_an_unloaded_model_is_freed(plugin, weights):
    async with serving(Act(hold_on), loader=Loader({"one": weights})) as worker:
        await worker.load("a", Path("one"), Manifest())
        if plugin == "_gradient":
            tensors = {"grad_outputs": rows(1.0)}
            with pytest.raises(InterpretError):  # four numbers for three logits
                await result(worker, calling(plugin, rows(1.0), model="a", tensors=tensors))
        elif plugin is not None:
            await result(worker, calling(plugin, rows(1.0), model="a"))
        await worker.unload("a")
        await until(weights.gone)


async def test_a_replaced_model_is_freed(weights):
    loader = Loader({"one": weights, "two": linear})
    async with serving(loader=loader) as worker:
        await worker.load("a", Path("one"), Manifest())
        await worker.load("a", Path("two"), Manifest(), replace=True)
        await until(weights.gone)
        await result(worker, calling("_predict", rows(1.0), model="a"))


async def test_a_replaced_model_is_freed_after_its_last_call(weights):
    walk = Walk()
    loader = Loader({"one": weights, "two": linear})
    async with serving(walk, loader=loader) as worker:
        await worker.load("a", Path("one"), Manifest())
        walk.go.clear()
        task = asyncio.create_task(result(worker, calling("walk", rows(0), model="a")))
        await until(lambda: bool(walk.log))
        await worker.load("a", Path("two"), Manifest(), replace=True)
        assert not weights.gone()
        walk.go.set()
        await task
        await until(weights.gone)


async def test_a_model_whose_call_failed_is_freed(weights, caplog):
    caplog.set_level(logging.CRITICAL, "interpret_server.engine")  # pytest keeps tracebacks
    async with serving(Act(fail), loader=Loader({"one": weights})) as worker:
        await worker.load("a", Path("one"), Manifest())
        with pytest.raises(InterpretError):
            await result(worker, calling("act", rows(1.0), model="a"))
        await worker.unload("a")
        await until(weights.gone)


async def test_the_modules_of_a_cancelled_call_stay_whole_until_its_step_ends(weights):
    begun, hold, values = threading.Event(), threading.Event(), []

    def slow(model, batch, job):
        begun.set()
        assert hold.wait(20)
        values.append(model(batch.inputs))
        return batch.inputs

    async with serving(Act(slow), loader=Loader({"one": weights})) as worker:
        await worker.load("a", Path("one"), Manifest())
        task = asyncio.create_task(result(worker, calling("act", rows(1.0), model="a")))
        await until(begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        unloading = asyncio.create_task(worker.unload("a"))
        await asyncio.sleep(0)
        with pytest.raises(NotFound):
            await worker.unload("a")
        hold.set()
        await unloading
        await until(weights.gone)
    assert len(values) == 1


async def test_a_classifier_of_the_callers_own_is_left_whole():
    model = linear()
    async with serving() as worker:
        worker.add("a", model)
        await worker.unload("a")
    assert model(torch.zeros(1, 4)).shape == (1, 3)


async def test_unloading_while_a_replacement_loads_leaves_the_replacement(weights):
    loader = Loader({"one": weights, "two": linear})
    async with serving(loader=loader) as worker:
        await worker.load("a", Path("one"), Manifest())
        loader.go.clear()
        loading = asyncio.create_task(worker.load("a", Path("two"), Manifest(), replace=True))
        await asyncio.sleep(0)
        await worker.unload("a")
        await until(weights.gone)
        loader.go.set()
        await loading
        assert [info.name for info in worker.models()] == ["a", "net"]


async def test_closing_while_a_model_loads_drops_it(weights):
    loader = Loader({"one": weights})
    async with serving(loader=loader) as worker:
        loader.go.clear()
        loading = asyncio.create_task(worker.load("a", Path("one"), Manifest()))
        await asyncio.sleep(0)
        await worker.close()
        loader.go.set()
        with pytest.raises(InterpretError, match="shutting down"):
            await loading
        assert [info.name for info in worker.models()] == ["net"]


async def test_what_a_failed_load_leaves_is_freed(weights):
    def spoilt():
        model = weights()
        raise InvalidModel(f"{model.name} is no good")

    async with serving(loader=Loader({"one": spoilt})) as worker:
        with pytest.raises(InvalidModel):
            await worker.load("a", Path("one"), Manifest())
        assert weights.gone()


def test_dismantling_empties_the_modules_alone():
    model = linear()
    dismantle(model)
    assert model.classes == 3
    with pytest.raises(AttributeError):
        model(torch.zeros(1, 4))


_SCRIPT = """
import asyncio, sys
from pathlib import Path
import torch
from interpret_server.engine.allocator import keep_freed_memory
from interpret_server.engine.api import Array, Call
from interpret_server.engine.local import LocalWorker
from interpret_server.models.manifest import Manifest
from interpret_server.registry import Registry

class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, width),
            torch.nn.ReLU(), torch.nn.Linear(width, 4))
    def forward(self, x):
        return self.layers(x)

def save(width, path):
    torch.jit.save(torch.jit.trace(Net(width).eval(), torch.zeros(2, 8)), str(path))

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))

async def measure(small, large):
    worker = LocalWorker(Registry.installed(), device="cpu")
    manifest = Manifest(shape=[8], bounds=[0, 1])
    async def use(path):
        await worker.load("net", path, manifest)
        call = Call("net", "saliency", inputs=Array("float32", (1, 8), bytes(32)))
        async for _ in worker.run(call):
            pass
        reached = resident()
        await worker.unload("net")
        return reached
    await use(small)
    before = resident()
    reached = await use(large)
    print(before, reached, resident())
    await worker.close()

small, large = Path(sys.argv[1]) / "small.pt", Path(sys.argv[1]) / "large.pt"
save(16, small)
save(5000, large)
keep_freed_memory()
asyncio.run(measure(small, large))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_unloading_a_hundred_megabytes_returns_them_to_the_system(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", _SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, reached, after = map(int, done.stdout.split()[-3:])
    assert reached - before > 80
    assert after - before < 20
