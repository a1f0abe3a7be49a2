"""Only the thread that computes for callers has a team of OpenMP threads."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_fakes import Walk, WalkParams, WalkResult, calling, queued, result, rows, serving, until

from interpret_server.engine.openmp import _library, leave_team, one_thread
from interpret_server.models.classifier import Classifier
from interpret_server.plugin import Batch, Job

pytestmark = pytest.mark.skipif(_library() is None, reason="torch does not use GNU OpenMP here")


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_the_block_computes_alone_and_no_other_thread_does(two_threads: None) -> None:
    elsewhere: list[int] = []
    with one_thread():
        assert torch.get_num_threads() == 1
        other = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert elsewhere == [2]
    assert torch.get_num_threads() == 2


def test_the_setting_comes_back_after_a_failure(two_threads: None) -> None:
    with pytest.raises(ValueError), one_thread():
        raise ValueError
    assert torch.get_num_threads() == 2


def members(at_most: int = 0) -> int:
    """How many of the process's threads Python did not start, once those that end have ended.

    Args:
        at_most: that many are there is not doubted.
    """
    limit = time.monotonic() + 0.5
    while True:
        count = len(list(Path("/proc/self/task").iterdir())) - threading.active_count()
        if count <= at_most or time.monotonic() > limit:
            return count
        time.sleep(0.001)


def compute() -> None:
    torch.ones(1 << 20).exp()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no list of the threads")
def test_a_team_that_is_left_ends_and_comes_back(two_threads: None) -> None:
    found: list[int] = []

    def work() -> None:
        for act in (compute, leave_team, leave_team, compute):
            act()
            found.append(members(before + (act is compute)))
        leave_team()

    before = members()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [count - before for count in found] == [1, 0, 0, 1]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no list of the threads")
async def test_groups_that_take_turns_have_one_team_at_a_time(two_threads: None) -> None:
    found: list[tuple[int, int]] = []

    class Busy(Walk):
        """Computes with a team at every step."""

        name = "busy"

        def run(self, model: Classifier, batch: Batch, params: WalkParams, job: Job) -> WalkResult:
            for _ in job.track(params.steps):
                compute()
                found.append((threading.get_ident(), members(before + 1)))
                assert self.go.wait(20)
            return WalkResult(batch.inputs)

    busy = Busy()
    busy.go.clear()
    leave_team()
    before = members()
    async with serving(busy) as worker:
        calls = [calling("busy", rows(0), params={"tag": tag}) for tag in "ab"]
        first = asyncio.create_task(result(worker, calls[0]))
        await until(lambda: len(found) == 1)
        second = asyncio.create_task(result(worker, calls[1]))
        await until(lambda: queued(worker) == 1)
        busy.go.set()
        await asyncio.gather(first, second)
    threads = [thread for thread, _ in found]
    assert len(set(threads)) == 2
    assert threads != sorted(threads, key=threads.index)  # they took turns
    assert max(count for _, count in found) - before == 1
