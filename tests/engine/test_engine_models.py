"""Loading, replacing and unloading while calls run; shutting down."""

import asyncio
import threading
from pathlib import Path

import pytest
import torch
from engine_fakes import (
    Act,
    Double,
    Loader,
    Walk,
    calling,
    linear,
    queued,
    result,
    rows,
    serving,
    until,
)

from interpret_server.errors import (
    AlreadyExists,
    InterpretError,
    InvalidModel,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from interpret_server.models.manifest import Manifest


def corrupt():
    raise InvalidModel("the file is corrupt")


def broken():
    raise KeyError("secret")


FILES = {
    "one": lambda: linear(1.0),
    "two": lambda: linear(2.0),
    "corrupt": corrupt,
    "broken": broken,
}


async def first_logit(worker, model="a"):
    return (await result(worker, calling("_predict", rows(1.0), model=model))).before[0].logits[0]


async def test_a_model_is_loaded_listed_served_and_unloaded():
    async with serving(loader=Loader(FILES)) as worker:
        info = await worker.load("a", Path("one"), Manifest(max_batch=3))
        assert (info.name, info.sha256, info.max_batch) == ("a", "one", 3)
        assert [item.name for item in worker.models()] == ["a", "net"]
        item = await result(worker, calling("_predict", rows(1.0), model="a"))
        assert item.provenance.model_sha256 == "one"
        assert item.before[0].labels == ("a", "b", "c")
        await worker.unload("a")
        with pytest.raises(NotFound):
            await first_logit(worker)
        with pytest.raises(NotFound):
            await worker.unload("a")


async def test_a_name_is_taken_until_it_is_replaced():
    async with serving(loader=Loader(FILES)) as worker:
        await worker.load("a", Path("one"), Manifest())
        with pytest.raises(AlreadyExists, match="unload it first, or ask to replace it"):
            await worker.load("a", Path("two"), Manifest())
        with pytest.raises(AlreadyExists):
            worker.add("a", linear())
        await worker.load("a", Path("two"), Manifest(), replace=True)
        assert await first_logit(worker) == 2.0


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".a", "a" * 129, "a\n"])
async def test_names_that_could_be_mistaken_for_paths_are_refused(name):
    async with serving(loader=Loader(FILES)) as worker:
        with pytest.raises(InvalidRequest, match="no model name"):
            await worker.load(name, Path("one"), Manifest())


@pytest.mark.parametrize(("file", "error"), [("corrupt", InvalidModel), ("broken", InterpretError)])
async def test_a_failed_replacement_keeps_the_old_model(file, error, caplog):
    async with serving(loader=Loader(FILES)) as worker:
        await worker.load("a", Path("one"), Manifest())
        with pytest.raises(error) as caught:
            await worker.load("a", Path(file), Manifest(), replace=True)
        assert "secret" not in str(caught.value)
        assert await first_logit(worker) == 1.0


async def test_the_old_model_serves_while_its_replacement_loads():
    loader = Loader(FILES)
    async with serving(loader=loader) as worker:
        await worker.load("a", Path("one"), Manifest())
        loader.go.clear()
        replacing = asyncio.create_task(worker.load("a", Path("two"), Manifest(), replace=True))
        await asyncio.sleep(0)
        assert await first_logit(worker) == 1.0
        with pytest.raises(AlreadyExists, match="being loaded already"):
            await worker.load("a", Path("one"), Manifest(), replace=True)
        loader.go.set()
        await replacing
        assert await first_logit(worker) == 2.0


async def test_a_call_finishes_on_the_model_it_began_with():
    seen, hold = [], threading.Event()

    def look(model, batch, job):
        for _ in job.track(2):
            seen.append(model(batch.inputs)[0, 0].item())
            assert hold.wait(20)
        return batch.inputs

    async with serving(Act(look), loader=Loader(FILES)) as worker:
        await worker.load("a", Path("one"), Manifest())
        task = asyncio.create_task(result(worker, calling("act", rows(1.0), model="a")))
        await until(lambda: bool(seen))
        await worker.load("a", Path("two"), Manifest(), replace=True)
        hold.set()
        item = await task
        assert seen == [1.0, 1.0]
        assert item.provenance.model_sha256 == "one"
        assert await first_logit(worker) == 2.0


async def test_unloading_waits_for_the_calls_that_run_and_refuses_new_ones():
    walk = Walk()
    async with serving(walk, loader=Loader(FILES)) as worker:
        await worker.load("a", Path("one"), Manifest())
        walk.go.clear()
        task = asyncio.create_task(result(worker, calling("walk", rows(0), model="a")))
        await until(lambda: bool(walk.log))
        unloading = asyncio.create_task(worker.unload("a"))
        await asyncio.sleep(0.01)
        assert not unloading.done()
        with pytest.raises(NotFound):
            await first_logit(worker)
        walk.go.set()
        await unloading
        assert task.done()
        await task


async def test_models_come_and_go_under_load():
    # Made before calls run: tracing a module changes how every thread calls modules.
    made = {name: [FILES[name]() for _ in range(4)] for name in ("one", "two")}
    loader = Loader({name: made[name].pop for name in made})
    async with serving(Double(), loader=loader) as worker:
        await worker.load("a", Path("one"), Manifest())
        stop = False
        answers = []

        async def caller():
            while not stop:
                answers.append(await first_logit(worker))

        callers = [asyncio.create_task(caller()) for _ in range(4)]
        for turn in range(6):
            await worker.load("a", Path(("two", "one")[turn % 2]), Manifest(), replace=True)
            reached = len(answers)
            await until(lambda reached=reached: len(answers) > reached + 4)
        stop = True
        await asyncio.gather(*callers)
    assert set(answers) == {1.0, 2.0}


async def test_closing_lets_running_calls_finish():
    walk = Walk()
    async with serving(walk) as worker:
        walk.go.clear()
        task = asyncio.create_task(result(worker, calling("walk", rows(0))))
        await until(lambda: bool(walk.log))
        closing = asyncio.create_task(worker.close(grace=20))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await result(worker, calling("walk", rows(0)))
        with pytest.raises(Unavailable):
            await worker.load("a", Path("one"), Manifest())
        walk.go.set()
        await closing
        assert len((await task).tensors) == 1


async def test_closing_ends_what_takes_longer_than_the_grace():
    walk = Walk()
    async with serving(walk) as worker:
        walk.go.clear()
        running = asyncio.create_task(
            result(worker, calling("walk", rows(0), params={"steps": 1000, "tag": "a"}))
        )
        await until(lambda: bool(walk.log))
        waiting = asyncio.create_task(result(worker, calling("walk", rows(0), params={"tag": "b"})))
        await until(lambda: queued(worker) == 1)
        closing = asyncio.create_task(worker.close(grace=0.05))
        for task in (running, waiting):
            with pytest.raises(Unavailable, match="shutting down"):
                await task
        walk.go.set()
        await closing
        await until(lambda: len(worker._scheduler._pool) == 0)
    assert walk.log == [("a", 0)]


async def test_closing_twice_is_harmless():
    async with serving(Double()) as worker:
        await worker.close()


async def test_the_device_is_the_cpu_where_there_is_no_other(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = []

    def loader(name, path, manifest, *, device, default_max_batch):
        given.append((device, default_max_batch))
        raise InvalidModel("no")

    from interpret_server.engine.local import LocalWorker
    from interpret_server.registry import Registry

    worker = LocalWorker(Registry(), max_batch=7, loader=loader)
    with pytest.raises(InvalidModel):
        await worker.load("a", Path("a"), Manifest())
    assert given == [(torch.device("cpu"), 7)]
    await worker.close()
