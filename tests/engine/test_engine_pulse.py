"""What a watchdog is told about the step that runs."""

import asyncio
import contextlib
import threading
import time

from engine_fakes import Act, Walk, calling, queued, result, rows, serving, until

from interpret_server.engine.group import Pulse

IDLE = Pulse(0.0, False)


def walking(tag, steps):
    return calling("walk", rows(0), params={"steps": steps, "tag": tag})


async def held(worker, walk, tag, steps=2):
    """A call that is held in its first step."""
    walk.go.clear()
    task = asyncio.create_task(result(worker, walking(tag, steps)))
    await until(lambda: bool(walk.log))
    return task


async def leave(task):
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_an_idle_device_has_no_pulse():
    walk = Walk()
    async with serving(walk) as worker:
        assert worker.pulse() == IDLE
        await result(worker, walking("a", 3))
        await until(lambda: worker.pulse() == IDLE)


async def test_the_pulse_grows_within_a_step_and_starts_anew_at_the_next():
    inside, onward = ([threading.Event() for _ in range(2)] for _ in range(2))

    def steps(model, batch, job):
        for step in job.track(2):
            inside[step].set()
            assert onward[step].wait(20)
        return batch.inputs

    async with serving(Act(steps)) as worker:
        task = asyncio.create_task(result(worker, calling("act", rows(0))))
        await until(inside[0].is_set)
        since = time.monotonic()
        await until(lambda: worker.pulse().busy_seconds > 0.02)
        assert worker.pulse().busy_seconds >= time.monotonic() - since - 0.02
        assert worker.pulse().wanted
        turned = time.monotonic()
        onward[0].set()
        await until(inside[1].is_set)
        assert 0 < worker.pulse().busy_seconds <= time.monotonic() - turned
        onward[1].set()
        await task


async def test_a_step_that_nobody_waits_for_any_more_says_so():
    walk = Walk()
    async with serving(walk) as worker:
        task = await held(worker, walk, "a")
        assert worker.pulse().wanted
        await leave(task)
        pulse = worker.pulse()
        assert pulse.busy_seconds > 0
        assert not pulse.wanted
        walk.go.set()
        await until(lambda: worker.pulse() == IDLE)


async def test_a_step_that_one_of_its_callers_waits_for_is_wanted():
    walk = Walk()
    async with serving(walk) as worker:
        blocker = await held(worker, walk, "a", steps=1)
        pair = [asyncio.create_task(result(worker, walking("b", 2))) for _ in range(2)]
        await until(lambda: queued(worker) == 2)
        walk.gates["b"] = threading.Event()
        walk.go.set()
        await blocker
        await until(lambda: ("b", 0) in walk.log)
        await leave(pair[0])
        assert worker.pulse().wanted
        walk.gates["b"].set()
        await pair[1]
    assert walk.batches == [1, 2]
