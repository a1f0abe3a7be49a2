"""Plugins that fail: who is told what, and that serving goes on."""

import asyncio
import logging
import re

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

from interpret_server.errors import InterpretError, InvalidRequest


async def merged(worker, walk, calls):
    """Outcomes, results or exceptions, of calls that ran as one batch at first."""
    walk.go.clear()
    blocker = asyncio.create_task(result(worker, calling("walk", rows(0), params={"steps": 1})))
    await until(lambda: bool(walk.log))
    tasks = [asyncio.create_task(result(worker, call)) for call in calls]
    await until(lambda: queued(worker) == len(calls))
    walk.go.set()
    await blocker
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_unexpected_error_leaks_nothing_and_is_logged_under_its_id(caplog):
    def fail(model, batch, job):
        raise ValueError("secret /srv/models/net.pt")

    async with serving(Act(fail), Double()) as worker:
        with pytest.raises(InterpretError) as caught:
            await result(worker, calling("act", rows(0)))
        await result(worker, calling("double", rows(0)))
    assert "secret" not in caught.value.message
    assert caught.value.reason == "INTERNAL"
    identity = re.search("[0-9a-f]{16}", caught.value.message)[0]
    (record,) = [item for item in caplog.records if item.levelno == logging.ERROR]
    assert identity in record.getMessage()
    assert "secret" in caplog.text


async def test_an_error_for_callers_reaches_them_as_it_is():
    def refuse(model, batch, job):
        raise InvalidRequest.field("params.steps", "too few")

    async with serving(Act(refuse)) as worker:
        with pytest.raises(InvalidRequest, match=r"params\.steps: too few"):
            await result(worker, calling("act", rows(0)))


@pytest.mark.parametrize("error", [InvalidRequest.field("inputs", "bad"), ValueError("bad")])
async def test_one_bad_row_does_not_harm_the_calls_merged_with_it(error, caplog):
    sizes = []

    def picky(model, batch, job):
        sizes.append(len(batch))
        if (batch.inputs[:, 0] == 0.5).any():
            raise error
        return batch.inputs * 2

    walk = Walk()
    async with serving(Act(picky), walk) as worker:
        calls = [calling("act", rows(first)) for first in (0.25, 0.5, 0.75)]
        good, bad, fine = await merged(worker, walk, calls)
    assert sizes == [3, 1, 1, 1]
    assert isinstance(bad, InterpretError)
    assert tensor(good.tensors["images"])[0, 0] == 0.5
    assert tensor(fine.tensors["images"])[0, 0] == 1.5


async def test_a_plugin_that_tries_to_leave_the_process_is_an_internal_error(caplog):
    def leave(model, batch, job):
        raise SystemExit(3)

    async with serving(Act(leave), Double()) as worker:
        with pytest.raises(InterpretError, match="internal error"):
            await result(worker, calling("act", rows(0)))
        await result(worker, calling("double", rows(0)))


@pytest.mark.parametrize(
    ("action", "told"),
    [
        (lambda model, batch, job: batch.inputs[:1], "returned images of shape [1, 4] for 2 rows"),
        (lambda model, batch, job: torch.tensor(1.0), "returned images of shape [] for 2 rows"),
        (lambda model, batch, job: job.warn(torch.ones(3), "?"), "a mask of 3 rows for 2 rows"),
    ],
)
async def test_results_of_the_wrong_shape_are_the_plugins_fault(action, told, caplog):
    async with serving(Act(action)) as worker:
        with pytest.raises(InterpretError, match="internal error"):
            await result(worker, calling("act", rows(0, 0)))
    assert told in caplog.text


async def test_a_result_of_another_type_is_the_plugins_fault(caplog):
    class Confused(Double):
        """Returns something else."""

        name = "confused"

        def run(self, model, batch, params, job):
            return "nonsense"

    async with serving(Confused()) as worker:
        with pytest.raises(InterpretError, match="internal error"):
            await result(worker, calling("confused", rows(0)))
    assert "confused returned str, not DoubleResult" in caplog.text


async def test_a_failing_check_is_refused_or_internal():
    class Checked(Double):
        """Refuses the model."""

        name = "checked"

        def check(self, model, params):
            raise InvalidRequest.field("params", "not for this model")

    class Broken(Double):
        """Breaks."""

        name = "broken"

        def check(self, model, params):
            raise KeyError("secret")

    async with serving(Checked(), Broken()) as worker:
        with pytest.raises(InvalidRequest, match="not for this model"):
            await result(worker, calling("checked", rows(0)))
        with pytest.raises(InterpretError, match="internal error"):
            await result(worker, calling("broken", rows(0)))
