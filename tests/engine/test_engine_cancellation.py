"""Callers that leave, and deadlines that pass."""

import asyncio
import contextlib
import threading
import time

import pytest
import torch
from engine_fakes import (
    Act,
    Double,
    Walk,
    calling,
    queued,
    result,
    rows,
    serving,
    tensor,
    until,
)

from interpret_server.errors import DeadlineExceeded


def walking(tag="", steps=200, first=0.0, **fields):
    return calling("walk", rows(first), params={"steps": steps, "tag": tag}, **fields)


async def started(worker, walk, *calls):
    """Tasks of calls of which the first is held in its first step and the others wait."""
    walk.go.clear()
    tasks = [asyncio.create_task(result(worker, calls[0]))]
    await until(lambda: bool(walk.log))
    for index, call in enumerate(calls[1:], start=1):
        tasks.append(asyncio.create_task(result(worker, call)))
        await until(lambda index=index: queued(worker) == index)
    return tasks


async def leave(task):
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_cancelled_caller_stops_its_plugin_within_one_step():
    walk = Walk()
    async with serving(walk) as worker:
        (task,) = await started(worker, walk, walking("a"))
        await leave(task)
        walk.go.set()
        await until(lambda: walk.ended == ["a"])
    assert walk.log == [("a", 0)]


async def test_closing_the_iterator_cancels_the_call():
    walk = Walk()
    async with serving(walk) as worker:
        stream = worker.run(walking("a", steps=10_000_000))
        assert (await anext(stream)).total == 10_000_000
        await stream.aclose()
        await until(lambda: walk.ended == ["a"])


async def test_a_cancelled_caller_neither_strands_nor_harms_its_batch_mates():
    walk = Walk()
    async with serving(walk) as worker:
        blocker, one, two, three = await started(
            worker,
            walk,
            walking("blocker", 1),
            *(walking("group", 3, first) for first in (0.1, 0.2, 0.3)),
        )
        walk.gates["group"] = threading.Event()
        walk.go.set()
        await blocker
        await until(lambda: ("group", 0) in walk.log)
        await leave(two)
        walk.gates["group"].set()
        results = [await one, await three]
    assert walk.batches == [1, 3]
    assert [tensor(item.tensors["images"])[0, 0].item() for item in results] == pytest.approx(
        [3.1, 3.3]
    )


async def test_a_group_stops_once_all_its_callers_have_gone():
    walk = Walk()
    async with serving(walk) as worker:
        blocker, *group = await started(
            worker, walk, walking("blocker", 1), walking("group"), walking("group")
        )
        walk.gates["group"] = threading.Event()
        walk.go.set()
        await blocker
        await until(lambda: ("group", 0) in walk.log)
        for task in group:
            await leave(task)
        walk.gates["group"].set()
        await until(lambda: "group" in walk.ended)
    assert walk.log == [("blocker", 0), ("group", 0)]


async def test_a_cancelled_call_in_the_queue_never_runs():
    walk = Walk()
    async with serving(walk) as worker:
        running, gone = await started(worker, walk, walking("a", 1), walking("b"))
        await leave(gone)
        assert queued(worker) == 0
        walk.go.set()
        await running
    assert walk.log == [("a", 0)]


async def test_a_cancelled_call_leaves_the_group_it_was_to_join():
    walk = Walk()
    async with serving(walk) as worker:
        running, gone, stays = await started(
            worker, walk, walking("a", 1), walking("b", 1, 0.1), walking("b", 1, 0.2)
        )
        await leave(gone)
        walk.go.set()
        await running
        item = await stays
    assert walk.batches == [1, 1]
    assert tensor(item.tensors["images"])[0, 0].item() == pytest.approx(1.2)


async def test_a_deadline_is_told_at_once_even_within_a_step():
    walk = Walk()
    async with serving(walk) as worker:
        (task,) = await started(worker, walk, walking("a", timeout=0.2))
        with pytest.raises(DeadlineExceeded):
            await task
        assert walk.ended == []
        walk.go.set()
        await until(lambda: walk.ended == ["a"])
    assert walk.log == [("a", 0)]


async def test_an_expired_call_in_the_queue_never_runs():
    walk = Walk()
    async with serving(walk) as worker:
        running, late = await started(worker, walk, walking("a", 1), walking("b", timeout=0.05))
        with pytest.raises(DeadlineExceeded):
            await late
        walk.go.set()
        await running
        await result(worker, walking("c", 1))
    assert walk.log == [("a", 0), ("c", 0)]


async def test_one_deadline_does_not_end_the_group():
    walk = Walk()
    async with serving(walk) as worker:
        blocker, late, patient = await started(
            worker,
            walk,
            walking("a", 1),
            walking("b", 2, 0.1, timeout=2.0),
            walking("b", 2, 0.2),
        )
        walk.gates["b"] = threading.Event()
        walk.go.set()
        await blocker
        await until(lambda: ("b", 0) in walk.log)
        with pytest.raises(DeadlineExceeded):
            await late
        walk.gates["b"].set()
        item = await patient
    assert walk.batches == [1, 2]
    assert tensor(item.tensors["images"])[0, 0].item() == pytest.approx(2.2)


async def test_a_deadline_that_has_passed_already_is_refused():
    walk = Walk()
    async with serving(walk) as worker:
        with pytest.raises(DeadlineExceeded):
            await result(worker, walking("a", timeout=0.0))
    assert walk.log == []


async def test_a_step_that_finds_every_deadline_passed_stops_even_if_no_reader_looks():
    walk = Walk()
    async with serving(walk) as worker:
        stream = worker.run(walking("a", timeout=0.3))
        await anext(stream)
        time.sleep(0.35)  # noqa: ASYNC251  the event loop itself is late
        await until(lambda: walk.ended == ["a"])
        await stream.aclose()


async def test_cancelling_a_finished_call_changes_nothing():
    async with serving(Double()) as worker:
        stream = worker.run(calling("double", rows(0)))
        assert (await anext(stream)).metrics["total"] == (0.75,)
        await stream.aclose()
        assert (await result(worker, calling("double", rows(0)))).metrics["total"] == (0.75,)


async def test_a_call_of_many_small_steps_ends_with_the_step_in_which_its_caller_left():
    ended, latest = threading.Event(), [0]

    def count(model, batch, job):
        try:
            for step in job.track(10_000_000):
                latest[0] = step
        finally:
            ended.set()
        return batch.inputs

    async with serving(Act(count)) as worker:
        task = asyncio.create_task(result(worker, calling("act", rows(0))))
        await until(lambda: latest[0] > 100)
        await leave(task)
        left = latest[0]
        await until(ended.is_set)
    assert latest[0] - left <= 1


async def test_steps_read_no_tensors():
    """A meta tensor has no values: whatever reads one, as a synchronisation would, raises."""
    seen = []

    def unread(model, batch, job):
        images = torch.empty(1, 4, device="meta")
        for step in job.track(50):
            images = images + 1
            job.preview(images=images)
            seen.append(step)
        return batch.inputs

    async with serving(Act(unread)) as worker:
        await result(worker, calling("act", rows(0)))
    assert seen == list(range(50))
