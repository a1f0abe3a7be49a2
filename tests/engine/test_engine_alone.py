"""Calls that run as exactly their own batch."""

import asyncio
from dataclasses import replace

import pytest
import torch
from engine_fakes import (
    Act,
    Double,
    Walk,
    calling,
    events,
    forwards,
    linear,
    queued,
    result,
    rows,
    serving,
    until,
)

from interpret_server.engine.api import Progress
from interpret_server.engine.isolation import repeatable_kernels
from interpret_server.errors import Overloaded


async def test_calls_that_run_alone_share_no_batch():
    model, walk = linear(), Walk()
    async with serving(Double(), walk, model=model) as worker:
        sizes = forwards(model)
        walk.go.clear()
        blocker = asyncio.create_task(result(worker, calling("walk", rows(0), params={"steps": 1})))
        await until(lambda: bool(walk.log))
        alone = [calling("double", rows(i / 4, 0.5), alone=True) for i in range(3)]
        merged = [calling("double", rows(i / 4)) for i in range(3)]
        tasks = [asyncio.create_task(result(worker, call)) for call in (*alone, *merged)]
        await until(lambda: queued(worker) == len(tasks))
        walk.go.set()
        await blocker
        results = await asyncio.gather(*tasks)
    assert sorted(sizes) == [2, 2, 2, 3]
    assert [item.provenance.batch_rows for item in results] == [2, 2, 2, 3, 3, 3]


async def test_only_max_batch_cuts_a_call_that_runs_alone():
    seen = []

    def note(model, batch, job):
        seen.append((len(batch), job.max_rows))
        return batch.inputs

    async with serving(Act(note), max_step=1e-9, max_batch=4) as worker:
        values = [number / 8 for number in range(6)]
        for alone in (False, False, True, True):
            await result(worker, calling("act", rows(*values), alone=alone))
        assert seen[-4:] == [(4, 4), (2, 4)] * 2
        assert (1, 1) in seen  # others have learned to take single rows


async def test_memory_that_others_lacked_is_no_limit_for_a_call_that_runs_alone():
    seen = []

    def run_out(model, batch, job):
        seen.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return batch.inputs

    async with serving(Act(run_out)) as worker:
        await result(worker, calling("act", rows(0.1, 0.2, 0.3, 0.4)))
        seen.clear()
        for _ in range(2):
            await result(worker, calling("act", rows(0.1, 0.2, 0.3, 0.4), alone=True))
        assert seen == [4, 2, 2, 4, 2, 2]


async def test_no_memory_for_a_single_row_refuses_a_call_that_runs_alone():
    def run_out(model, batch, job):
        raise torch.OutOfMemoryError("out of memory")

    async with serving(Act(run_out)) as worker:
        with pytest.raises(Overloaded, match="ran out of memory"):
            await result(worker, calling("act", rows(0.1, 0.2), alone=True))


async def test_repeatable_kernels_are_on_for_the_call_alone_and_off_while_others_run():
    modes: dict[str, list[int]] = {"alone": [], "other": []}

    def look(model, batch, job):
        name = "alone" if float(batch.inputs[0, 0]) == 1.0 else "other"
        for _ in job.track(4):
            modes[name].append(torch.get_deterministic_debug_mode())
        return batch.inputs

    async with serving(Act(look)) as worker:
        calls = [calling("act", rows(1.0), alone=True), calling("act", rows(0.5))]
        await asyncio.gather(*(result(worker, call) for call in calls))
    assert modes == {"alone": [1] * 4, "other": [0] * 4}
    assert torch.get_deterministic_debug_mode() == 0


def test_repeatable_kernels_leave_every_setting_as_it_was():
    cudnn, filled = torch.backends.cudnn, torch.utils.deterministic

    def settings():
        mode = torch.get_deterministic_debug_mode()
        return mode, cudnn.deterministic, cudnn.benchmark, filled.fill_uninitialized_memory

    before = settings()
    with repeatable_kernels():
        assert settings() == (1, True, False, False)
    assert settings() == before


async def test_chunks_of_a_call_that_runs_alone_are_seen_as_progress():
    def steps(model, batch, job):
        for _ in job.track(2):
            pass
        return batch.inputs

    async with serving(Act(steps), max_batch=1) as worker:
        found = await events(worker, calling("act", rows(0.1, 0.2, 0.3), alone=True))
    progress = [item for item in found if isinstance(item, Progress)]
    assert progress[-1] == Progress(6, 6)
    assert [item.done for item in progress] == sorted({item.done for item in progress})
    assert {item.total for item in progress} == {6}


async def test_a_call_that_runs_alone_stops_within_a_step_of_its_cancellation():
    walk = Walk()
    walk.go.clear()
    async with serving(walk) as worker:
        call = calling("walk", rows(0.1), params={"steps": 1000}, alone=True)
        task = asyncio.create_task(result(worker, call))
        await until(lambda: bool(walk.log))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        walk.go.set()
        await until(lambda: bool(walk.ended))
    assert len(walk.log) == 1


async def test_warnings_and_metrics_of_a_call_that_runs_alone_arrive_by_row():
    def warn(model, batch, job):
        job.warn(batch.inputs[:, 0] > 0.25, "high")
        return batch.inputs

    async with serving(Act(warn), Double(), max_batch=2) as worker:
        values = (0.1, 0.3, 0.2, 0.5)
        warned = await result(worker, calling("act", rows(*values), alone=True))
        doubled = await result(worker, calling("double", rows(*values), alone=True))
    assert [(item.message, item.rows) for item in warned.warnings] == [("high", (1, 3))]
    assert doubled.metrics["total"] == pytest.approx([value + 0.75 for value in values])


async def test_short_calls_run_between_the_steps_of_a_call_that_runs_alone():
    walk, steps = Walk(), []

    def look(model, batch, job):
        steps.append(len(walk.log))
        return batch.inputs

    walk.go.clear()
    async with serving(walk, Act(look)) as worker:
        call = calling("walk", rows(0.1), params={"steps": 50}, alone=True)
        task = asyncio.create_task(result(worker, call))
        await until(lambda: bool(walk.log))
        short = [asyncio.create_task(result(worker, calling("act", rows(0.2)))) for _ in range(2)]
        await until(lambda: queued(worker) > 0)
        walk.go.set()
        await asyncio.gather(task, *short)
    assert steps[0] < 50


async def test_networks_that_draw_numbers_draw_the_same_in_every_call_that_runs_alone():
    def draw(model, batch, job):
        drawn = [torch.rand_like(batch.inputs) for _ in job.track(2)]
        return torch.stack(drawn).sum(0)

    async with serving(Act(draw)) as worker:
        call = calling("act", rows(0.25, 0.5), seeds=(7,), alone=True)
        before = torch.get_rng_state()
        first, second = [await result(worker, call) for _ in range(2)]
        other = await result(worker, replace(call, seeds=(8,)))
        assert torch.equal(torch.get_rng_state(), before)
    drawn = [bytes(item.tensors["images"].data) for item in (first, second, other)]
    assert drawn[0] == drawn[1] != drawn[2]
