"""Priorities, clients and bounded waiting, through a worker."""

import asyncio
import threading

import pytest
from engine_fakes import Act, Double, Walk, calling, queued, result, rows, serving, until

from interpret_server.engine.schedule import MAX_STARTED
from interpret_server.errors import DeadlineExceeded, Overloaded


def walking(tag, steps=1, **fields):
    return calling("walk", rows(0), params={"steps": steps, "tag": tag}, **fields)


async def queue_up(worker, walk, *calls):
    """Tasks of calls of which the first is held in its first step and the others wait."""
    walk.go.clear()
    tasks = []
    for index, call in enumerate(calls):
        tasks.append(asyncio.create_task(result(worker, call)))
        if not index:
            await until(lambda: bool(walk.log))
        await until(lambda index=index: queued(worker) == index)
    return tasks


async def order_of(*calls, **options):
    """Tags of the steps that run after the first call's first one."""
    walk = Walk()
    async with serving(walk, **options) as worker:
        tasks = await queue_up(worker, walk, *calls)
        walk.go.set()
        await asyncio.gather(*tasks)
    return [tag for tag, _ in walk.log[1:]]


async def test_calls_that_wait_go_by_priority_then_in_order():
    calls = [walking(tag, priority=p) for tag, p in (("a", -1), ("b", 0), ("c", 1), ("d", 1))]
    assert await order_of(walking("first"), *calls) == list("cdba")


async def test_an_urgent_call_goes_before_the_next_step_of_what_runs():
    order = await order_of(walking("run", 3, priority=0), walking("urgent", 2, priority=1))
    assert order == ["urgent", "urgent", "run", "run"]


async def test_work_of_low_priority_advances_beside_urgent_work():
    order = await order_of(walking("high", 30, priority=1), walking("low", 30, priority=-1))
    assert order.index("low") <= 8
    assert order[:24].count("low") == 3


async def test_alike_calls_of_several_clients_and_priorities_share_a_batch():
    walk = Walk()
    async with serving(walk) as worker:
        calls = [walking("x", client=str(n), priority=p) for n, p in enumerate((-1, 0, 1))]
        tasks = await queue_up(worker, walk, walking("first"), walking("other"), *calls)
        walk.go.set()
        items = await asyncio.gather(*tasks)
    assert [item.provenance.batch_rows for item in items] == [1, 1, 3, 3, 3]
    assert [tag for tag, _ in walk.log] == ["first", "x", "other"]


async def test_a_client_with_many_calls_delays_anothers_call_by_one_step():
    flood = [walking(f"a{index}", client="a") for index in range(100)]
    order = await order_of(*flood, walking("b", client="b"))
    assert order[0] == "b"


async def test_a_call_of_one_step_is_served_beside_more_runs_than_may_be_started():
    walk, seen = Walk(), []

    def look(model, batch, job):
        seen.append(len(walk.log))
        return batch.inputs

    async with serving(walk, Act(look)) as worker:
        scheduler = worker._scheduler
        runs = [walking(str(index), 4) for index in range(MAX_STARTED + 8)]
        tasks = await queue_up(worker, walk, *runs, walking("hold", 2))
        walk.gates["hold"] = threading.Event()
        walk.go.set()
        await until(lambda: ("hold", 0) in walk.log)
        assert scheduler._started == MAX_STARTED
        before = len(walk.log)
        tasks.append(asyncio.create_task(result(worker, calling("act", rows(0)))))
        await until(lambda: any(m.request.plugin.name == "act" for m in scheduler._queued))
        walk.gates["hold"].set()
        await asyncio.gather(*tasks)
    assert seen == [before]


async def test_a_client_cannot_take_the_last_places_of_the_queue():
    walk = Walk()
    async with serving(walk, max_queue=16) as worker:
        calls = [walking(str(index), client="a") for index in range(15)]
        tasks = await queue_up(worker, walk, *calls)
        with pytest.raises(Overloaded, match="14 calls of this client are waiting"):
            await result(worker, walking("more", client="a"))
        tasks.append(asyncio.create_task(result(worker, walking("b", client="b"))))
        await until(lambda: queued(worker) == 15)
        walk.go.set()
        await asyncio.gather(*tasks)
        await result(worker, walking("more", client="a"))


async def test_bytes_that_wait_are_bounded_and_given_back():
    walk, size = Walk(), 16  # bytes of a row
    async with serving(walk, max_queue_bytes=4 * size) as worker:
        calls = [walking(str(index), client=str(index)) for index in range(5)]
        tasks = await queue_up(worker, walk, *calls)
        with pytest.raises(Overloaded, match="inputs of 0 MiB are waiting"):
            await result(worker, walking("more"))
        tasks[-1].cancel()
        await until(lambda: queued(worker) == 3)
        tasks[-1] = asyncio.create_task(result(worker, walking("more")))
        await until(lambda: queued(worker) == 4)
        walk.go.set()
        await asyncio.gather(*tasks)
        admission = worker._scheduler._admission
        assert (admission.calls, admission.bytes) == (0, 0)


async def test_queued_calls_that_leave_free_their_places_and_shares():
    walk = Walk()
    async with serving(walk, Double()) as worker:
        alike = [walking("x", client=name) for name in "abc"]
        tasks = await queue_up(worker, walk, walking("first"), *alike, walking("y", client="d"))
        for task in tasks[1:]:
            task.cancel()
        await until(lambda: queued(worker) == 0)
        scheduler = worker._scheduler
        assert scheduler._admission.calls == 0
        assert set(scheduler._ready.shares._calls) == {""}
        walk.go.set()
        await tasks[0]
        await until(lambda: not scheduler._alive)
        assert not scheduler._queued
        assert not scheduler._ready.shares._calls
    assert walk.log == [("first", 0)]


async def test_a_call_is_not_dropped_before_its_deadline_however_long_the_queue():
    walk = Walk()
    async with serving(walk) as worker:
        calls = [walking(str(index)) for index in range(20)]
        tasks = await queue_up(worker, walk, *calls)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        with pytest.raises(DeadlineExceeded):
            await result(worker, walking("late", timeout=0.3, priority=-1))
        assert loop.time() - begun > 0.29
        walk.go.set()
        await asyncio.gather(*tasks)
    assert ("late", 0) not in walk.log


async def test_a_refused_call_is_told_when_to_come_back():
    walk = Walk()
    async with serving(walk, max_queue=1) as worker:
        tasks = await queue_up(worker, walk, walking("0"), walking("1"))
        with pytest.raises(Overloaded) as caught:
            await result(worker, walking("2"))
        assert 0.05 <= caught.value.retry_after <= 10
        walk.go.set()
        await asyncio.gather(*tasks)
