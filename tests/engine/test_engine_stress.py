"""Many callers at once, of whom many leave."""

import asyncio
import gc
import random
import threading
import time

import pytest
import torch
from engine_fakes import Act, Double, Walk, calling, result, rows, serving, tensor

from interpret_server.errors import InterpretError, InvalidRequest


async def test_two_hundred_callers_of_whom_a_third_leave_each_get_one_outcome():
    chance = random.Random(0)

    class SlowWalk(Walk):
        """Takes its time."""

        def run(self, model, batch, params, job):
            for _ in job.track(params.steps):
                time.sleep(0.001)
            return super().run(model, batch, params, job)

    def picky(model, batch, job):
        for _ in job.track(3):
            time.sleep(0.001)
            if (batch.inputs[:, 0] > 0.97).any():
                raise InvalidRequest.field("inputs", "too high")
        return batch.inputs * 2

    async def caller(worker, number):
        value = number / 200
        name = ("double", "walk", "act")[number % 3]
        steps = chance.choice((2, 5, 20))
        params = {"steps": steps, "tag": str(number % 8)} if name == "walk" else {}
        task = asyncio.create_task(result(worker, calling(name, rows(value), params=params)))
        await asyncio.sleep(chance.random() * 0.02)
        if leaves := chance.random() < 1 / 3:
            await asyncio.sleep(chance.random() * 0.1)
            task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, asyncio.CancelledError):
            assert leaves
            return "left"
        if isinstance(outcome, InterpretError):
            assert name == "act"
            assert value > 0.97
            return "refused"
        found = tensor(next(iter(outcome.tensors.values())))
        expected = value + steps if name == "walk" else value * 2
        assert found.shape == (1, 4)
        assert found[0, 0].item() == pytest.approx(expected, abs=1e-5)
        return "answered"

    threads = threading.active_count()
    async with serving(Double(), SlowWalk(), Act(picky)) as worker:
        outcomes = await asyncio.gather(*(caller(worker, number) for number in range(200)))
        assert len(outcomes) == 200
        assert outcomes.count("answered") > 60
        assert outcomes.count("left") > 10
        await result(worker, calling("double", rows(0.5)))
        scheduler = worker._scheduler
        assert worker._calls.count == 0
    assert scheduler._pool.join(10)
    assert not scheduler._ready
    assert not scheduler._open
    assert not scheduler._alive
    assert scheduler._started == 0
    assert len(scheduler._pool) == 0
    assert threading.active_count() <= threads + 1  # of the loop's default executor


async def test_calls_leave_no_tensors_behind():
    async with serving(Double(), Walk()) as worker:
        await result(worker, calling("walk", rows(0.5)))
        gc.collect()
        before = sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())
        for _ in range(20):
            await result(worker, calling("walk", rows(0.5)))
            await result(worker, calling("double", rows(0.5)))
        gc.collect()
        after = sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())
    assert after <= before + 4


def test_threads_are_used_again_latest_first():
    from interpret_server.engine.threads import ThreadPool

    pool, seen = ThreadPool("test"), []

    def work(done, reusable=True):
        def run():
            seen.append(threading.get_ident())
            done.set()
            return reusable

        return run

    def once(reusable=True):
        done = threading.Event()
        pool.run(work(done, reusable))
        assert done.wait(10)
        while reusable and not pool._idle:
            pass

    for _ in range(5):
        once()
    assert len(set(seen)) == 1
    once(reusable=False)
    pool.close()
    assert pool.join(10)
    assert len(pool) == 0


def test_idle_threads_end_after_a_while(monkeypatch):
    from interpret_server.engine import threads

    monkeypatch.setattr(threads, "IDLE_SECONDS", 0.01)
    pool, done = threads.ThreadPool("test"), threading.Event()
    pool.run(lambda: done.set() or True)
    assert pool.join(10)
    assert done.is_set()
    assert not pool._idle
