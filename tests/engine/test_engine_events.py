"""Progress, previews and readers of every pace."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from engine_fakes import (
    Act,
    Double,
    Walk,
    array,
    calling,
    events,
    queued,
    result,
    rows,
    serving,
    tensor,
    until,
)

from interpret_pictures.options import Rendering
from interpret_server.engine.api import Preview, Progress, Result
from interpret_server.engine.mailbox import Mailbox
from interpret_server.errors import InvalidRequest


def walking(steps, *firsts, tag="", **fields):
    return calling("walk", rows(*firsts or (0,)), params={"steps": steps, "tag": tag}, **fields)


async def test_progress_ends_with_the_last_step_and_then_one_result():
    async with serving(Walk()) as worker:
        *progress, last = await events(worker, walking(5))
    assert isinstance(last, Result)
    assert all(isinstance(item, Progress) for item in progress)
    assert progress[-1] == Progress(5, 5)


async def test_progress_is_thinned_out():
    async with serving(Walk()) as worker:
        seen = await events(worker, walking(5000))
    assert len(seen) < 2500
    assert seen[-2] == Progress(5000, 5000)


async def test_who_asks_for_no_progress_gets_none_beside_one_who_does():
    async with serving(Walk()) as worker:
        quiet, loud = await asyncio.gather(
            events(worker, walking(50, 1, progress=False)), events(worker, walking(50, 0))
        )
    (only,) = quiet
    assert isinstance(only, Result)
    assert loud[-2] == Progress(50, 50)


async def test_two_loops_of_one_run_add_up():
    def twice(model, batch, job):
        for _ in job.track(3):
            list(job.track(10))  # within a step; not counted
        list(job.track(2))
        return batch.inputs

    async with serving(Act(twice)) as worker:
        seen = await events(worker, calling("act", rows(0)))
    assert seen[-2] == Progress(5, 5)


async def test_previews_go_to_those_who_asked_and_hold_their_own_rows():
    walk = Walk()
    async with serving(walk) as worker:
        walk.go.clear()
        blocker = asyncio.create_task(result(worker, walking(1, tag="x")))
        await until(lambda: bool(walk.log))
        calls = [
            walking(2, 0.1),
            walking(2, 0.2, 0.3, previews=True),
            walking(2, 0.4, previews=True, half=True),
        ]
        tasks = [asyncio.create_task(events(worker, call)) for call in calls]
        await until(lambda: queued(worker) == 3)
        walk.go.set()
        await blocker
        silent, pair, half = await asyncio.gather(*tasks)
    assert walk.batches == [1, 4]
    assert not any(isinstance(item, Preview) for item in silent)
    first = next(item for item in pair if isinstance(item, Preview))
    assert (first.done, first.total) == (1, 2)
    assert tensor(first.tensors["images"])[:, 0].tolist() == pytest.approx([1.2, 1.3])
    assert first.pictures == {}
    assert next(i for i in half if isinstance(i, Preview)).tensors["images"].dtype == "float16"


async def test_previews_are_drawn_where_the_call_asked_for_pictures():
    async with serving(Walk()) as worker:
        seen = await events(worker, walking(1, 0.1, 0.2, previews=True, render=Rendering()))
    preview = next(item for item in seen if isinstance(item, Preview))
    assert [png[:4] for png in preview.pictures["images"]] == [b"\x89PNG"] * 2


async def test_previews_cost_nothing_where_nobody_asked(monkeypatch):
    async with serving(Walk()) as worker:
        monkeypatch.setattr("interpret_server.engine.job.to_array", None)
        item = await result(worker, walking(3))
    assert tensor(item.tensors["images"])[0, 0] == 3


async def test_a_slow_reader_neither_stalls_the_device_nor_loses_the_result():
    walk = Walk()
    async with serving(walk, Double()) as worker:
        stream = worker.run(walking(500, previews=True))
        first = await anext(stream)
        assert not isinstance(first, Result)
        await until(lambda: len(walk.ended) == 1)  # nobody reads meanwhile
        await result(worker, calling("double", rows(0)))
        rest = [event async for event in stream]
    assert len(rest) <= 3  # the latest progress, the latest preview, the result
    assert isinstance(rest[-1], Result)
    assert tensor(rest[-1].tensors["images"])[0, 0] == 500


async def test_a_mailbox_keeps_only_the_latest_and_the_order():
    mailbox: Mailbox[str] = Mailbox(asyncio.get_running_loop())
    for done in range(1000):
        mailbox.progress(Progress(done, 1000))
        mailbox.preview(Preview(done, 1000, {}))
    mailbox.settle("result")
    mailbox.settle("another")
    assert await mailbox.next() == Progress(999, 1000)
    assert (await mailbox.next()).done == 999
    assert await mailbox.next() == "result"


async def test_an_error_overtakes_progress_that_was_not_read():
    mailbox: Mailbox[str] = Mailbox(asyncio.get_running_loop())
    mailbox.progress(Progress(1, 2))
    mailbox.settle(InvalidRequest("no"))
    with pytest.raises(InvalidRequest):
        await mailbox.next()


async def test_a_mailbox_times_out_only_when_nothing_is_there():
    loop = asyncio.get_running_loop()
    mailbox: Mailbox[str] = Mailbox(loop)
    with pytest.raises(TimeoutError):
        await mailbox.next(loop.time() + 0.01)
    mailbox.settle("late")
    assert await mailbox.next(loop.time() - 1) == "late"


def test_a_mailbox_of_a_closed_loop_is_settled():
    loop = asyncio.new_event_loop()
    mailbox: Mailbox[str] = Mailbox(loop)
    loop.close()
    with ThreadPoolExecutor(1) as device:
        device.submit(mailbox.progress, Progress(1, 2)).result()
    assert mailbox.settled


async def test_large_requests_and_results_leave_the_event_loop_free(monkeypatch):
    monkeypatch.setattr("interpret_server.engine.local.INLINE_BYTES", 1000)
    async with serving(Double()) as worker:
        pieces = []
        monkeypatch.setattr(worker._helpers, "submit", watch(worker._helpers.submit, pieces))
        await result(worker, calling("double", rows(0)))
        assert pieces == []
        await result(worker, calling("double", array(torch.rand(100, 4))))
        assert len(pieces) == 2  # decoding and assembling


def watch(function, calls):
    def watched(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    return watched
