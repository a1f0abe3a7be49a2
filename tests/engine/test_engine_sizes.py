"""Batch sizes that steps and memory have shown, and how calls are cut by them."""

import asyncio
import threading

import pytest
import torch
from engine_fakes import (
    Act,
    Double,
    Shuffle,
    Walk,
    calling,
    queued,
    result,
    rows,
    serving,
    tensor,
    until,
)

from interpret_server.engine.sizes import GOOD_BATCHES, BatchSizes

KIND = ("pgd", (3, 8, 8))


def test_nothing_known_allows_the_largest_batch():
    assert BatchSizes(64).rows(KIND) == 64


def test_a_step_that_took_too_long_bounds_the_rows_of_its_kind_alone():
    sizes = BatchSizes(64, max_step=0.25)
    sizes.ran(KIND, 64, 1.0)
    assert sizes.rows(KIND) == 12
    assert sizes.rows(("saliency", (3, 8, 8))) == 64
    assert sizes.rows(("pgd", (3, 16, 16))) == 64


def test_steps_come_to_last_at_most_the_longest_time():
    sizes = BatchSizes(64, max_step=0.25)
    for _ in range(20):
        count = sizes.rows(KIND)
        seconds = 0.05 + 0.02 * count
        sizes.ran(KIND, count, seconds)
    assert 0.15 < seconds <= 0.25
    assert 5 <= sizes.rows(KIND) <= 10


def test_small_batches_do_not_shrink_the_bound():
    sizes = BatchSizes(64, max_step=0.25)
    sizes.ran(KIND, 64, 1.0)
    sizes.ran(KIND, 1, 0.2)
    assert sizes.rows(KIND) == 12


def test_one_late_step_where_the_one_before_was_on_time_is_chance():
    sizes = BatchSizes(64, max_step=0.25)
    sizes.ran(KIND, 64, 1.0)
    sizes.ran(KIND, 12, 0.2)
    for _ in range(3):
        sizes.ran(KIND, 12, 1.0)
        assert sizes.rows(KIND) == 12
        sizes.ran(KIND, 12, 0.2)
    sizes.ran(KIND, 12, 1.0)
    sizes.ran(KIND, 12, 0.6)
    assert sizes.rows(KIND) == 4


def test_a_late_step_of_many_more_rows_than_the_one_before_is_no_chance():
    sizes = BatchSizes(64, max_step=0.25)
    sizes.ran(KIND, 1, 0.02)
    sizes.ran(KIND, 64, 1.0)
    assert sizes.rows(KIND) == 12


def test_one_slow_step_is_made_good_by_the_next():
    sizes = BatchSizes(64, max_step=0.25)
    sizes.ran(KIND, 64, 2.5)
    assert sizes.rows(KIND) == 5
    sizes.ran(KIND, 5, 0.01)
    assert sizes.rows(KIND) == 64


def test_there_is_always_room_for_one_row():
    sizes = BatchSizes(64, max_step=0.25)
    sizes.ran(KIND, 1, 100.0)
    assert sizes.rows(KIND) == 1
    sizes.ran_out(KIND, 1)
    assert sizes.rows(KIND) == 1


def test_memory_that_ran_out_halves_the_size_and_good_batches_double_it():
    sizes = BatchSizes(64)
    sizes.ran_out(KIND, 64)
    sizes.ran_out(KIND, 32)
    assert sizes.rows(KIND) == 16
    for size in (16, 32):
        assert sizes.rows(KIND) == size
        for _ in range(GOOD_BATCHES):
            assert sizes.rows(KIND) == size
            sizes.ran(KIND, size, 0.01)
    assert sizes.rows(KIND) == 64


def test_batches_smaller_than_the_size_prove_nothing_about_it():
    sizes = BatchSizes(64)
    sizes.ran_out(KIND, 64)
    for _ in range(2 * GOOD_BATCHES):
        sizes.ran(KIND, 31, 0.01)
    assert sizes.rows(KIND) == 32


def test_only_the_latest_kinds_are_remembered():
    sizes = BatchSizes(64)
    for size in range(1000):
        sizes.ran_out(("pgd", (size,)), 2)
    assert len(sizes._kinds) == 256
    assert sizes.rows(("pgd", (999,))) == 1
    assert sizes.rows(("pgd", (0,))) == 64


def serve_slow_rows(action):
    """Every row takes longer than a step may."""
    return serving(Act(action), Double(), max_step=1e-9)


async def test_rows_beyond_a_steps_time_run_as_further_chunks():
    seen = []

    def note(model, batch, job):
        seen.append(len(batch))
        job.warn(batch.inputs[:, 0] > 0.35, "high")
        return batch.inputs + 1

    async with serve_slow_rows(note) as worker:
        call = calling("act", rows(0.1, 0.2, 0.3, 0.4))
        first, second = await result(worker, call), await result(worker, call)
    assert seen == [4, 1, 1, 1, 1]
    assert torch.equal(tensor(first.tensors["images"]), tensor(second.tensors["images"]))
    assert first.warnings == second.warnings
    assert (first.provenance.batch_rows, second.provenance.batch_rows) == (4, 1)


async def test_calls_do_not_merge_beyond_a_steps_time():
    walk = Walk()
    async with serving(walk, max_step=1e-9) as worker:
        call = calling("walk", rows(0), params={"steps": 1})
        await result(worker, call)
        walk.go.clear()
        tasks = [asyncio.create_task(result(worker, call)) for _ in range(4)]
        await until(lambda: queued(worker) == 3)
        walk.go.set()
        await asyncio.gather(*tasks)
    assert walk.batches == [1] * 5


async def test_a_group_that_waits_takes_as_many_rows_as_are_known_to_fit_when_they_come():
    walk = Walk()
    async with serving(walk, max_step=1e-9) as worker:
        call = calling("walk", rows(0), params={"steps": 1})
        await result(worker, call)
        walk.go.clear()
        tasks = [asyncio.create_task(result(worker, call)) for _ in range(2)]
        await until(lambda: queued(worker) == 1)
        for group in worker._scheduler._ready:
            group._request.sizes.ran(group._request.kind, 64, 1e-12)
        tasks += [asyncio.create_task(result(worker, call)) for _ in range(3)]
        await until(lambda: queued(worker) == 4)
        walk.go.set()
        await asyncio.gather(*tasks)
    assert walk.batches == [1, 1, 4]


async def test_rows_that_belong_together_are_never_split():
    shuffle = Shuffle()
    async with serving(shuffle, max_step=1e-9) as worker:
        for _ in range(3):
            item = await result(worker, calling("shuffle", rows(0, 0.1, 0.2)))
            assert item.provenance.batch_rows == 3
    assert shuffle.batches == [3, 3, 3]


async def test_memory_that_ran_out_is_remembered_by_the_next_call():
    seen = []

    def hungry(model, batch, job):
        seen.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch.inputs

    async with serving(Act(hungry)) as worker:
        call = calling("act", rows(*[0.0] * 8))
        await result(worker, call)
        assert seen == [8, 4, 2, 2, 2, 2]
        seen.clear()
        item = await result(worker, call)
    assert seen == [2, 2, 2, 2]
    assert item.provenance.batch_rows == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
    ids=lambda error: str(error)[:12] or "MemoryError",
)
async def test_small_callers_do_not_fail_for_the_size_they_were_merged_to(error):
    seen, hold = [], threading.Event()

    def hungry(model, batch, job):
        assert hold.wait(20)
        seen.append(len(batch))
        if len(batch) > 1:
            raise error
        return batch.inputs + 1

    async with serving(Act(hungry)) as worker:
        tasks = [
            asyncio.create_task(result(worker, calling("act", rows(i / 10)))) for i in range(5)
        ]
        await until(lambda: queued(worker) == 4)
        hold.set()
        items = await asyncio.gather(*tasks)
    assert seen == [1, 4, 2, 1, 1, 1, 1]
    firsts = [tensor(item.tensors["images"])[0, 0].item() for item in items]
    assert firsts == pytest.approx([1, 1.1, 1.2, 1.3, 1.4])


async def test_each_caller_is_told_the_batch_in_which_its_own_rows_ran():
    hold = threading.Event()

    def hungry(model, batch, job):
        assert hold.wait(20)
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch.inputs

    async with serving(Act(hungry)) as worker:
        blocker = asyncio.create_task(result(worker, calling("act", rows(0))))
        await until(lambda: worker._scheduler._holder is not None)
        tasks = []
        for count in (4, 1):
            call = calling("act", rows(*[0.0] * count))
            tasks.append(asyncio.create_task(result(worker, call)))
            await until(lambda: queued(worker) == len(tasks))
        hold.set()
        items = await asyncio.gather(blocker, *tasks)
    assert [item.provenance.batch_rows for item in items] == [1, 2, 1]


async def test_a_failing_group_lets_others_have_the_device_between_its_calls():
    order, hold = [], threading.Event()

    def fragile(model, batch, job):
        assert hold.wait(20)
        order.append(len(batch))
        if len(batch) > 1:
            raise ValueError("one row at a time")
        return batch.inputs

    class Witness(Double):
        """Says when it ran."""

        name = "witness"

        def run(self, model, batch, params, job):
            order.append("witness")
            return super().run(model, batch, params, job)

    async with serving(Act(fragile), Witness()) as worker:
        blocker = asyncio.create_task(result(worker, calling("act", rows(0))))
        await until(lambda: worker._scheduler._holder is not None)
        tasks = [asyncio.create_task(result(worker, calling("act", rows(0)))) for _ in range(3)]
        await until(lambda: queued(worker) == 3)
        tasks.append(asyncio.create_task(result(worker, calling("witness", rows(0)))))
        await until(lambda: queued(worker) == 4)
        hold.set()
        await asyncio.gather(blocker, *tasks)
    assert order == [1, 3, "witness", 1, 1, 1]
