"""Calls that name several models: a process for each set, its end, its restarts, its limits."""

import asyncio
import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import agreement
import pytest
import pytest_asyncio
import torch
from fleets import (
    MANIFEST,
    PATIENCE,
    alive,
    archive,
    calling,
    events,
    fleet_of,
    kill,
    result,
    rows,
    until,
)

from interpret_server.engine.api import Result
from interpret_server.engine.local import LocalWorker
from interpret_server.engine.workers import sets
from interpret_server.engine.workers.fleet import Fleet
from interpret_server.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)
from interpret_server.models.manifest import Manifest
from interpret_server.registry import Registry

pytestmark = pytest.mark.asyncio(loop_scope="module")
LONG = {"steps": 10**6, "seconds": 0.001}
SET = "judge + net"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    (folder / "plugins").mkdir()
    shutil.copy(agreement.__file__, folder / "plugins")
    for name, scale in {"one": 1.0, "two": 2.0, "three": 3.0}.items():
        archive(folder / f"{name}.pt", scale)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(folder: Path):
    async with fleet_of(folder / "plugins") as fleet:
        yield fleet


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(served: Fleet, folder: Path):
    """With the models `net` and `judge`, of which no call has made a set yet."""
    await served.load("net", folder / "one.pt", MANIFEST)
    await served.load("judge", folder / "two.pt", MANIFEST)
    yield served
    for info in served.models():
        await served.unload(info.name)


def judged(model: str = "net", judge: str = "judge", inputs=None, timeout=None, **params):
    return calling(
        model,
        "agreement",
        inputs,
        models={"judge": judge},
        params=json.dumps(params),
        timeout=timeout,
    )


def theirs(answer: Result) -> float:
    return float(torch.frombuffer(bytearray(answer.tensors["theirs"].data), dtype=torch.float32)[0])


async def test_the_set_has_a_process_of_its_own(fleet: Fleet):
    before = fleet.process_ids()
    assert set(before) == {"net", "judge"}
    answer = await result(fleet, judged())
    assert theirs(answer) == 8.5
    ids = fleet.process_ids()
    assert {name: ids[name] for name in before} == before
    (mine,) = ids[SET]
    assert answer.metrics["process"] == (mine,)
    assert mine not in {*ids["net"], *ids["judge"]}
    turned = await result(fleet, judged("judge", "net"))
    assert (theirs(turned), turned.metrics["process"]) == (4.5, (mine,))
    infos = {info.name: info for info in fleet.models()}
    assert [(m.role, m.model, m.model_sha256) for m in answer.provenance.models] == [
        ("judge", "judge", infos["judge"].sha256)
    ]
    assert set(infos) == {"net", "judge"}


async def test_answers_are_those_of_a_worker_in_this_process(fleet: Fleet, folder: Path):
    registry = Registry()
    registry.add_folder(folder / "plugins")
    local = LocalWorker(registry, device="cpu")
    for name, file in {"net": "one.pt", "judge": "two.pt"}.items():
        await local.load(name, folder / file, MANIFEST)
    call = judged(inputs=rows(0.3, -0.7))
    ours = [event async for event in local.run(call)][-1]
    assert isinstance(ours, Result)
    answer = await result(fleet, call)
    assert answer.tensors == ours.tensors
    assert answer.metrics["agrees"] == ours.metrics["agrees"]
    assert answer.provenance.models == ours.provenance.models
    await local.close(0)


async def test_a_model_that_judges_itself_stays_in_its_own_process(fleet: Fleet):
    answer = await result(fleet, judged("net", "net"))
    assert answer.metrics["process"] == (fleet.process_ids()["net"][0],)
    assert set(fleet.process_ids()) == {"net", "judge"}


async def test_what_is_refused_makes_no_set(fleet: Fleet, folder: Path):
    await fleet.load("signed", folder / "one.pt", Manifest.model_validate({"shape": [4]}))
    for call, error, sentence in (
        (judged(judge="nobody"), NotFound, "models.judge: there is no model"),
        (judged(judge="signed"), InvalidRequest, "signed has no bounds, not bounds"),
        (calling("net", "agreement"), InvalidRequest, "models.judge: agreement needs a second"),
        (calling("net", "saliency", models={"judge": "judge"}), InvalidRequest, "no such role"),
        (calling("net", "_predict", models={"judge": "judge"}), InvalidRequest, "no such role"),
        (calling("net", "nothing", models={"judge": "judge"}), NotFound, "no plugin"),
    ):
        with pytest.raises(error, match=sentence):
            await result(fleet, call)
    assert set(fleet.process_ids()) == {"net", "judge", "signed"}


class Squares(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * x).sum(1)


async def test_networks_that_are_no_classifiers_join_a_set(fleet: Fleet, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Squares()).save(str(tmp_path / "squares.pt"))
    values = {"shape": [4], "bounds": [0, 2], "output": {"kind": "values"}}
    await fleet.load("squares", tmp_path / "squares.pt", Manifest.model_validate(values))
    call = judged()
    call = dataclasses.replace(call, models={**call.models, "stranger": "squares"})
    assert (await result(fleet, call)).metrics["size"] == (4.0,)  # at the middle of its bounds
    assert set(fleet.process_ids()) == {"net", "judge", "squares", "judge + net + squares"}
    with pytest.raises(InvalidRequest, match="squares gives values, and no scores of classes"):
        await result(fleet, judged(judge="squares"))


class Endless(torch.nn.Module):
    """Three classes, and on one input no answer at all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while bool((x[0, 0] == 0.125).item()):
            x = x + 0
        return x[:, :3] + 0.5


async def test_an_endless_second_model_stops_nothing_but_its_set(fleet: Fleet, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Endless()).save(str(tmp_path / "endless.pt"))
    await fleet.load("endless", tmp_path / "endless.pt", MANIFEST)
    before = fleet.process_ids()
    assert theirs(await result(fleet, judged(judge="endless"))) == 1.5
    stuck = asyncio.create_task(events(fleet, judged(judge="endless", inputs=rows(0.125))))
    await until(lambda: fleet._keepers["endless"].users.count)
    assert (await result(fleet, calling("net"))).before[0].logits[0] == 4.5
    with pytest.raises(Unavailable, match=r"endless \+ net was stopped in a step of more than 2 s"):
        await stuck
    assert {name: fleet.process_ids()[name] for name in before} == before
    assert theirs(await persistent(fleet, judged(judge="endless"))) == 1.5


async def test_a_death_fails_the_calls_of_the_set_alone(fleet: Fleet):
    await result(fleet, judged())
    own = asyncio.create_task(result(fleet, judged("net", "net", steps=100, seconds=0.005)))
    mine = asyncio.create_task(events(fleet, judged(**LONG)))
    await until(lambda: fleet._keepers["judge"].users.count)
    await until(lambda: fleet._keepers["net"].users.count == 2)
    kill(fleet, SET)
    with pytest.raises(Unavailable, match=r"worker of judge \+ net died of SIGKILL; try again"):
        await mine
    assert (await own).metrics["agrees"] == (1.0,)
    await until(lambda: not fleet.process_ids()[SET] or alive(fleet.process_ids()[SET][0]))
    assert theirs(await persistent(fleet, judged())) == 8.5


async def persistent(fleet: Fleet, call) -> Result:
    async with asyncio.timeout(20):
        while True:
            try:
                return await result(fleet, call)
            except Unavailable:
                await asyncio.sleep(0.01)


async def test_a_set_that_keeps_dying_is_quarantined_until_one_of_it_is_loaded_anew(
    fleet: Fleet, folder: Path
):
    for _ in range(PATIENCE.deaths):
        with pytest.raises(Unavailable):
            await result(fleet, judged(deed="die"))
    with pytest.raises(FailedPrecondition, match=r"judge \+ net is quarantined"):
        await result(fleet, judged())
    assert theirs(await result(fleet, judged("net", "net"))) == 4.5
    assert not any("quarantine" in note for info in fleet.models() for note in info.notes)
    await fleet.load("judge", folder / "three.pt", MANIFEST, replace=True)
    assert theirs(await result(fleet, judged())) == 12.5


@pytest.mark.parametrize("name", ["net", "judge"])
async def test_a_set_ends_when_one_of_it_is_unloaded(fleet: Fleet, name: str):
    await result(fleet, judged())
    (process,) = fleet.process_ids()[SET]
    running = asyncio.create_task(result(fleet, judged(steps=50, seconds=0.01)))
    await until(lambda: fleet._keepers["judge"].users.count)
    await fleet.unload(name)
    assert running.done()
    assert theirs(await running) == 8.5
    assert not alive(process)
    assert SET not in fleet.process_ids()
    with pytest.raises(NotFound):
        await result(fleet, judged())


async def test_a_call_keeps_the_second_model_that_it_began_with(fleet: Fleet, folder: Path):
    await result(fleet, judged())
    (old,) = fleet.process_ids()[SET]
    running = asyncio.create_task(result(fleet, judged(steps=50, seconds=0.01)))
    await until(lambda: fleet._keepers["judge"].users.count)
    await fleet.load("judge", folder / "three.pt", MANIFEST, replace=True)
    assert theirs(await result(fleet, judged())) == 12.5
    before, after = await running, await result(fleet, judged())
    assert theirs(before) == 8.5
    assert before.provenance.models[0].model_sha256 != after.provenance.models[0].model_sha256
    await until(lambda: not alive(old))


async def test_a_first_call_waits_no_longer_than_its_deadline(fleet: Fleet):
    with pytest.raises(DeadlineExceeded):
        await result(fleet, judged(timeout=0.005))
    assert theirs(await result(fleet, judged(timeout=60.0))) == 8.5


async def test_many_first_calls_at_once_make_one_process(fleet: Fleet):
    answers = await asyncio.gather(*(result(fleet, judged()) for _ in range(8)))
    assert len({answer.metrics["process"] for answer in answers}) == 1


async def test_loads_and_sets_do_not_wait_for_each_other(fleet: Fleet, folder: Path):
    names = [f"extra{number}" for number in range(4)]
    await asyncio.gather(*(fleet.load(name, folder / "one.pt", MANIFEST) for name in names))
    async with asyncio.timeout(60):
        calls = [result(fleet, judged(name, other)) for name in names for other in names]
        loads = [fleet.load(f"more{n}", folder / "two.pt", MANIFEST) for n in range(4)]
        answers = await asyncio.gather(*calls, *loads)
    assert len({answer.metrics["process"] for answer in answers[:16]}) == 4 + 6


async def test_a_file_that_changed_is_not_served_instead(fleet: Fleet, tmp_path: Path):
    file = archive(tmp_path / "model.pt", 3.0)
    (tmp_path / "model.toml").write_text("")  # a repository's folder is used in place
    await fleet.load("changing", file, MANIFEST)
    archive(file, 4.0)
    with pytest.raises(FailedPrecondition, match="changing has changed since it was loaded"):
        await result(fleet, judged("net", "changing"))
    await fleet.unload("changing")


async def test_the_set_used_longest_ago_makes_room(
    fleet: Fleet, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sets, "MOST", 2)
    await fleet.load("third", folder / "three.pt", MANIFEST)
    await result(fleet, judged())
    (first,) = fleet.process_ids()[SET]
    await result(fleet, judged("net", "third"))
    await result(fleet, judged())
    await result(fleet, judged("judge", "third"))
    assert set(fleet.process_ids()) == {"net", "judge", "third", SET, "judge + third"}
    assert fleet.process_ids()[SET] == [first]
    busy = [
        asyncio.create_task(events(fleet, judged(model, judge, **LONG)))
        for model, judge in (("net", "judge"), ("judge", "third"))
    ]
    await until(lambda: all(keeper.users.count for keeper in fleet._sets.all()))
    with pytest.raises(Overloaded, match="2 sets of several models"):
        await result(fleet, judged("net", "third"))
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)
    assert theirs(await result(fleet, judged("net", "third"))) == 12.5


async def test_sets_sleep_over_the_memory_budget(folder: Path):
    async with fleet_of(folder / "plugins", memory_bytes=1) as fleet:
        await fleet.load("net", folder / "one.pt", MANIFEST)
        await fleet.load("judge", folder / "two.pt", MANIFEST)
        assert theirs(await result(fleet, judged())) == 8.5
        await until(lambda: not fleet.process_ids()["judge"])
        await result(fleet, calling("judge"))
        await until(lambda: not fleet.process_ids()[SET])
        assert theirs(await result(fleet, judged())) == 8.5


async def test_models_that_are_over_the_budget_sleep_once_nobody_uses_them(folder: Path):
    async with fleet_of(folder / "plugins", memory_bytes=1) as fleet:
        await fleet.load("net", folder / "one.pt", MANIFEST)
        await fleet.load("judge", folder / "two.pt", MANIFEST)
        asked = asyncio.create_task(result(fleet, judged(steps=40, seconds=0.05)))
        await until(lambda: fleet.process_ids().get(SET))
        await asyncio.sleep(0.5)  # the look at the memory finds both in use
        assert fleet.process_ids()["judge"]
        assert theirs(await asked) == 8.5
        await until(lambda: not fleet.process_ids()["judge"])
        assert fleet.process_ids()[SET]


async def test_sets_are_served_on_several_devices(folder: Path):
    async with fleet_of(folder / "plugins", devices=("cpu", "cpu")) as fleet:
        await fleet.load("net", folder / "one.pt", MANIFEST)
        await fleet.load("judge", folder / "two.pt", MANIFEST)
        await result(fleet, judged())
        await until(lambda: len(fleet.process_ids()[SET]) == 2)
        calls = [result(fleet, judged(steps=20, seconds=0.01)) for _ in range(4)]
        answers = await asyncio.gather(*calls)
        assert {pid for a in answers for pid in a.metrics["process"]} == set(
            fleet.process_ids()[SET]
        )
