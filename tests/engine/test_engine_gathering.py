"""Calls that wait for the end of a running batch of their like, and share the next one."""

import asyncio

import pytest
import torch
from engine_fakes import Act, Walk, calling, queued, result, rows, serving, tensor, until


def walking(tag, steps, count=1, **fields):
    return calling("walk", rows(*[0.0] * count), params={"steps": steps, "tag": tag}, **fields)


async def run_behind(first, *calls, **options):
    """The walk's records, where the calls came within the first call's first step."""
    walk = Walk()
    async with serving(walk, **options) as worker:
        walk.go.clear()
        tasks = [asyncio.create_task(result(worker, first))]
        await until(lambda: bool(walk.log))
        for index, call in enumerate(calls, start=1):
            tasks.append(asyncio.create_task(result(worker, call)))
            await until(lambda index=index: queued(worker) == index)
        walk.go.set()
        items = await asyncio.gather(*tasks)
        assert not worker._scheduler._leaders
    return walk, items


async def test_alike_calls_gather_until_the_running_batch_has_ended():
    walk, items = await run_behind(*(walking("x", 3) for _ in range(5)))
    assert walk.batches == [1, 4]
    assert [step for _, step in walk.log] == [0, 1, 2, 0, 1, 2]
    assert [item.provenance.batch_rows for item in items] == [1, 4, 4, 4, 4]


async def test_others_take_turns_with_the_running_batch_meanwhile():
    walk, _ = await run_behind(walking("x", 3), walking("x", 3), walking("y", 3))
    order = "".join(tag for tag, _ in walk.log)
    assert order[:4] == "xyxy"
    assert walk.log.index(("x", 2)) < len(order) - 3
    assert walk.batches == [1, 1, 1]


async def test_an_alike_call_of_higher_priority_does_not_wait():
    walk, _ = await run_behind(walking("x", 4), walking("x", 2, priority=1))
    assert [step for _, step in walk.log[:2]] == [0, 0]
    walk, _ = await run_behind(walking("x", 4), walking("x", 4, priority=1))
    assert [step for _, step in walk.log] == [0, 0, 1, 2, 3, 1, 2, 3]


async def test_a_small_call_does_not_wait_for_all_chunks_of_an_alike_large_one():
    walk, items = await run_behind(walking("x", 2, count=8), walking("x", 2), max_batch=4)
    assert walk.batches == [4, 1, 4]
    assert items[1].provenance.batch_rows == 1


async def test_those_that_wait_go_on_when_the_running_batch_fails():
    walk, failures = Walk(), []

    def fail_once(model, batch, job):
        for _ in job.track(3):
            assert walk.go.wait(20)
            if not failures:
                failures.append(len(batch))
                raise ValueError("the first run fails")
        return batch.inputs + 1

    async with serving(Act(fail_once)) as worker:
        walk.go.clear()
        tasks = [asyncio.create_task(result(worker, calling("act", rows(0)))) for _ in range(3)]
        await until(lambda: queued(worker) == 2)
        walk.go.set()
        broken, *fine = await asyncio.gather(*tasks, return_exceptions=True)
    assert "internal error" in str(broken)
    for item in fine:
        assert torch.equal(tensor(item.tensors["images"]), tensor(rows(0)) + 1)


@pytest.mark.parametrize("count", [1, 3])
async def test_those_that_wait_go_on_when_the_callers_of_the_running_batch_leave(count):
    walk = Walk()
    async with serving(walk) as worker:
        walk.go.clear()
        leader = asyncio.create_task(result(worker, walking("x", 1000)))
        await until(lambda: bool(walk.log))
        tasks = [
            asyncio.create_task(result(worker, walking("x", 1000, timeout=60)))
            for _ in range(count)
        ]
        await until(lambda: queued(worker) == count)
        leader.cancel()
        await asyncio.gather(leader, return_exceptions=True)
        walk.go.set()
        await asyncio.gather(*tasks)
    assert walk.batches == [1, count]
    assert len(walk.log) == 1001
