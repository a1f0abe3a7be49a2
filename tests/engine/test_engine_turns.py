"""Sharing the device at step boundaries."""

import asyncio
import threading

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
    until,
)

from interpret_server.errors import InterpretError, Overloaded
from interpret_server.models.relu_rules import ReluRule, relu_rule


def walking(tag, steps, **fields):
    return calling("walk", rows(0), params={"steps": steps, "tag": tag}, **fields)


async def held_in_first_step(worker, walk, call):
    walk.go.clear()
    task = asyncio.create_task(result(worker, call))
    await until(lambda: bool(walk.log))
    return task


async def test_a_short_call_waits_for_one_step_of_a_long_one():
    walk, seen = Walk(), []

    def look(model, batch, job):
        seen.append(len(walk.log))
        return batch.inputs

    async with serving(walk, Act(look)) as worker:
        long = await held_in_first_step(worker, walk, walking("long", 200))
        short = asyncio.create_task(result(worker, calling("act", rows(0))))
        await until(lambda: queued(worker) == 1)
        walk.go.set()
        await short
        await long
    assert seen == [1]
    assert len(walk.log) == 200


async def test_long_calls_alternate_step_by_step():
    walk = Walk()
    async with serving(walk) as worker:
        first = await held_in_first_step(worker, walk, walking("a", 4))
        second = asyncio.create_task(result(worker, walking("b", 4)))
        await until(lambda: queued(worker) == 1)
        walk.go.set()
        await asyncio.gather(first, second)
    assert [tag for tag, _ in walk.log] == list("abababab")


async def test_a_newcomer_gets_its_turn_before_a_group_gets_two():
    walk = Walk()
    async with serving(walk) as worker:
        tasks = [await held_in_first_step(worker, walk, walking("a", 3))]
        for index, tag in enumerate("bc", start=1):
            tasks.append(asyncio.create_task(result(worker, walking(tag, 3))))
            await until(lambda index=index: queued(worker) == index)
        walk.go.set()
        await asyncio.gather(*tasks)
    assert [tag for tag, _ in walk.log] == list("abcabcabc")


async def test_between_the_chunks_of_a_large_call_others_get_the_device():
    order = []

    def look(model, batch, job):
        order.append(len(batch))
        return batch.inputs

    walk = Walk()
    async with serving(walk, Act(look), Double(), max_batch=4) as worker:
        blocker = await held_in_first_step(worker, walk, walking("", 1))
        large = asyncio.create_task(result(worker, calling("act", rows(*[0.0] * 8))))
        await until(lambda: queued(worker) == 1)
        small = asyncio.create_task(result(worker, calling("act", rows(0))))
        await until(lambda: queued(worker) == 2)
        walk.go.set()
        await asyncio.gather(blocker, large, small)
    assert order == [4, 1, 4]


async def test_random_state_default_dtype_and_grad_mode_stay_with_their_call():
    walk, draws = Walk(), []

    def disturb(model, batch, job):
        torch.manual_seed(7)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        for _ in job.track(3):
            assert torch.get_default_dtype() is torch.float64
            assert not torch.is_grad_enabled()
            draws.append(torch.rand(1).item())
        return batch.inputs

    modes = []

    class Witness(Double):
        """Sees what others leave behind."""

        name = "witness"

        def run(self, model, batch, params, job):
            for _ in job.track(3):
                modes.append((torch.get_default_dtype(), torch.is_grad_enabled()))
                torch.rand(3)
            return super().run(model, batch, params, job)

    before = torch.get_rng_state()
    async with serving(walk, Act(disturb), Witness()) as worker:
        blocker = await held_in_first_step(worker, walk, walking("", 1))
        tasks = [
            asyncio.create_task(result(worker, calling(name, rows(0))))
            for name in ("act", "witness")
        ]
        await until(lambda: queued(worker) == 2)
        walk.go.set()
        await asyncio.gather(blocker, *tasks)
        await result(worker, calling("witness", rows(0)))
    assert set(modes) == {(torch.float32, True)}
    torch.manual_seed(7)
    torch.set_default_dtype(torch.float64)
    try:
        expected = [torch.rand(1).item() for _ in range(3)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert draws == expected
    assert before.shape == torch.get_rng_state().shape


async def test_a_group_leaves_the_random_state_of_the_process_alone():
    def draw(model, batch, job):
        torch.rand(5)
        return batch.inputs

    async with serving(Act(draw)) as worker:
        before = torch.get_rng_state()
        await result(worker, calling("act", rows(0)))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("across", ["around the loop", "from one step to the next"])
async def test_a_relu_rule_across_a_step_is_refused(across, caplog):
    def around(model, batch, job):
        with relu_rule(ReluRule.GUIDED):
            for _ in job.track(2):
                pass
        return batch.inputs

    def onward(model, batch, job):
        rule = relu_rule(ReluRule.GUIDED)
        try:
            for step in job.track(2):
                if step == 0:
                    rule.__enter__()
        finally:
            rule.__exit__(None, None, None)
        return batch.inputs

    action = around if across == "around the loop" else onward
    async with serving(Act(action), Double()) as worker:
        with pytest.raises(InterpretError, match="internal error"):
            await result(worker, calling("act", rows(0)))
        await result(worker, calling("double", rows(0)))
    assert "inside _RuleMode" in caplog.text


async def test_a_full_queue_refuses_with_a_time_to_retry_and_recovers():
    walk = Walk()
    async with serving(walk, max_queue=2) as worker:
        running = await held_in_first_step(worker, walk, walking("0", 1))
        waiting = [asyncio.create_task(result(worker, walking(str(i), 1))) for i in (1, 2)]
        await until(lambda: queued(worker) == 2)
        with pytest.raises(Overloaded, match="2 calls are waiting") as caught:
            await result(worker, walking("3", 1))
        assert 0 < caught.value.retry_after <= 10
        walk.go.set()
        await asyncio.gather(running, *waiting)
        await result(worker, walking("4", 1))
    assert {tag for tag, _ in walk.log} == {"0", "1", "2", "4"}


async def test_more_groups_than_may_be_started_all_finish():
    walk = Walk()
    async with serving(walk) as worker:
        first = await held_in_first_step(worker, walk, walking("first", 2))
        tasks = [asyncio.create_task(result(worker, walking(str(i), 2))) for i in range(50)]
        await until(lambda: queued(worker) == 50)
        walk.go.set()
        await asyncio.gather(first, *tasks)
        assert len(worker._scheduler._pool) < 40  # a few end while their successors begin
    assert len(walk.log) == 102


async def test_a_plugin_of_several_loops_offers_the_device_between_them():
    order = []

    def look(model, batch, job):
        for _ in range(2):
            for _ in job.track(1):
                steps = [tag for tag, _ in walk.log]
                order.append([*steps, "loops"])
        return batch.inputs

    walk = Walk()
    async with serving(walk, Act(look)) as worker:
        blocker = await held_in_first_step(worker, walk, walking("", 1))
        loops = asyncio.create_task(result(worker, calling("act", rows(0))))
        await until(lambda: queued(worker) == 1)
        other = asyncio.create_task(result(worker, walking("other", 1)))
        await until(lambda: queued(worker) == 2)
        walk.go.set()
        await asyncio.gather(blocker, loops, other)
    assert order == [["", "loops"], ["", "other", "loops"]]


async def test_a_plugin_of_one_step_is_not_held_up_at_its_end():
    walk = Walk()
    async with serving(walk) as worker:
        short = await held_in_first_step(worker, walk, walking("short", 1))
        walk.gates["long"] = threading.Event()
        long = asyncio.create_task(result(worker, walking("long", 3)))
        await until(lambda: queued(worker) == 1)
        walk.go.set()
        await short
        walk.gates["long"].set()
        await long


async def test_a_system_without_threads_refuses_the_call_and_recovers(monkeypatch):
    async with serving(Walk()) as worker:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(Overloaded, match="no thread left"):
                await result(worker, walking("a", 1))
        await result(worker, walking("b", 1))


def no_thread(thread):
    raise RuntimeError("can't start new thread")
