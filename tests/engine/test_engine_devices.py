"""The engine takes rows to the model's device and results back; on a stand-in for a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from engine_fakes import (
    Act,
    Double,
    Synthesis,
    Value,
    Walk,
    array,
    calling,
    events,
    linear,
    result,
    rows,
    serving,
    tensor,
    to_class,
)

from interpret_server.engine import job, local, transfers
from interpret_server.engine.api import Preview, Target
from interpret_server.engine.execution import execute
from interpret_server.engine.group import Group, Settlement
from interpret_server.models.classifier import Classifier
from interpret_server.plugin import Batch, Targets
from tests.stand_in_device import DEVICE, Distant, stand_in_device


def distant() -> Classifier:
    with stand_in_device():
        return linear(2.0).to(DEVICE)


@pytest.fixture(autouse=True)
def device_thread_knows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def there(group: Group) -> Iterator[Settlement]:
        with stand_in_device():
            return iter(list(execute(group)))

    monkeypatch.setattr(local, "execute", there)
    monkeypatch.setattr(job.EngineJob, "_refuse_modes", staticmethod(lambda: None))


async def test_targets_that_are_predicted_on_the_device() -> None:
    asked = calling("value", rows(0.1, 0.9))
    async with serving(Value(), model=linear(2.0)) as worker:
        here = await result(worker, asked)
    async with serving(Value(), model=distant()) as worker:
        there = await result(worker, asked)
    assert torch.equal(tensor(there.tensors["value"]), tensor(here.tensors["value"]))
    assert there.provenance.targets == here.provenance.targets


async def test_inputs_targets_and_tensors_arrive_and_results_come_back() -> None:
    async with serving(Double(), Synthesis(), Value(), model=distant()) as worker:
        doubled = await result(worker, calling("double", rows(0.25, 0.5)))
        mask = {"mask": array(torch.ones(1, 4)), "code": array(torch.ones(1, 2))}
        made = await result(
            worker, calling("synthesis", rows(0.5), targets=to_class(1), tensors=mask, seeds=(3,))
        )
        along = Target("direction", direction=array([1.0, 2.0, 0.0]))
        value = await result(worker, calling("value", rows(0.5), targets=(along,)))
    assert tensor(doubled.tensors["doubled"])[:, 0].tolist() == [0.5, 1.0]
    assert doubled.metrics["total"] == (1.0, 1.25)
    assert doubled.before[0].classes[0] == 1
    assert tuple(tensor(made.tensors["images"]).shape) == (1, 4)
    assert tensor(value.tensors["value"]).tolist() == [3.0]


async def test_previews_and_warnings_come_back() -> None:
    def warn(model, batch, job):
        assert isinstance(batch.inputs, Distant)
        job.warn(batch.inputs[:, 0] > 0.35, "high")
        return batch.inputs + 1

    async with serving(Walk(), Act(warn), model=distant()) as worker:
        seen = await events(worker, calling("walk", rows(0), previews=True, params={"steps": 3}))
        warned = await result(worker, calling("act", rows(0.1, 0.4)))
    previews = [event for event in seen if isinstance(event, Preview)]
    assert tensor(previews[0].tensors["images"])[0, 0].item() == previews[0].done
    assert [warning.rows for warning in warned.warnings] == [(1,)]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done for a device that copies by itself, as which the stand-in passes here."""
    log: list[str] = []

    def noted(name: str, value: torch.Tensor) -> torch.Tensor:
        log.append(name)
        return value.clone() if name == "pin" else torch.full(value.shape, 7, dtype=value.dtype)

    @contextmanager
    def aside(device: torch.device) -> Iterator[None]:
        log.append("aside")
        yield
        log.append("back again")

    monkeypatch.setattr(transfers, "_ASIDE", DEVICE.type)
    monkeypatch.setattr(transfers, "_pin", partial(noted, "pin"))
    monkeypatch.setattr(transfers, "_pinned_like", partial(noted, "down"))
    monkeypatch.setattr(transfers, "_wait", lambda device: log.append("wait"))
    monkeypatch.setattr(transfers, "_aside", aside)
    monkeypatch.setattr(transfers, "_join", lambda device, batch: log.append("join"))
    return log


async def test_a_device_that_copies_aside_gets_pinned_memory_and_is_waited_for_once(
    done: list[str],
) -> None:
    async def ask(model: Classifier) -> torch.Tensor:
        mask = {"mask": array(torch.ones(1, 4)), "code": array(torch.ones(1, 2))}
        call = calling("synthesis", rows(0.5), targets=to_class(1), tensors=mask, seeds=(3,))
        async with serving(Synthesis(), model=model) as worker:
            return tensor((await result(worker, call)).tensors["images"])

    here = await ask(linear(2.0))
    assert not done
    assert torch.equal(await ask(distant()), here)
    assert done[:3] == ["pin"] * 3  # rows, mask and code
    assert set(done[3:-1]) == {"down"}
    assert done[-1] == "wait"


async def test_the_next_rows_go_up_while_others_are_computed(done: list[str]) -> None:
    async with serving(Double(), model=distant(), max_batch=2) as worker:
        found = await result(worker, calling("double", rows(0.1, 0.2, 0.3, 0.4, 0.5)))
    doubled = tensor(found.tensors["doubled"])[:, 0]
    torch.testing.assert_close(doubled, torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]))
    results, ahead = ["down"] * 3, ["aside", "pin", "back again"]
    assert done == [
        *["pin", *results, *ahead, "wait"],
        *["join", *results, *ahead, "wait"],
        *["join", *results, "wait"],
    ]


def test_rows_that_were_not_wanted_next_are_given_up(done: list[str]) -> None:
    taken: list[range] = []

    def take(wanted: range) -> Batch:
        taken.append(wanted)
        if len(wanted) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        count = len(wanted)
        return Batch(torch.zeros(count, 4), Targets.none(count), seeds=(0,) * count)

    upload = transfers.Upload(take, DEVICE)
    for ahead, wanted in (
        (range(2), range(1)),
        (range(1, 4), range(1, 3)),
        (range(3, 3), range(2)),
    ):
        upload.begin(ahead)
        assert len(upload.rows(wanted).inputs) == len(wanted)
    assert taken == [range(2), range(1), range(1, 4), range(1, 3), range(2)]
    assert "join" not in done
    upload.begin(range(2))
    assert len(upload.rows(range(2)).inputs) == 2
    assert done[-1] == "join"
    here = transfers.Upload(take, torch.device("cpu"))
    here.begin(range(2))
    assert len(taken) == 6


def test_large_and_empty_tensors_are_copied_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "_ASIDE", "cpu")
    monkeypatch.setattr(transfers, "_MOST_BYTES", 16)
    for size in (0, 5):  # where no memory can be pinned, trying to would fail
        value = torch.rand(size)
        assert torch.equal(transfers.upload(value, value.device), value)
        assert torch.equal(transfers.download({"it": value})["it"], value)
