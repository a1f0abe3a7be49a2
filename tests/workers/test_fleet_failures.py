"""What a worker's death costs: its own calls, and nobody else anything."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
import pytest_asyncio
from fleets import (
    LIMITS,
    MANIFEST,
    PATIENCE,
    alive,
    archive,
    calling,
    events,
    fleet_of,
    kill,
    number,
    plugin_folder,
    result,
    settled,
    until,
)

from interpret_server.engine import sandbox
from interpret_server.engine.workers.fleet import Fleet
from interpret_server.errors import (
    FailedPrecondition,
    InterpretError,
    Overloaded,
    Unavailable,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
LONG = '{"steps": 1000000, "seconds": 0.001}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failures")
    plugin_folder(folder / "plugins")
    archive(folder / "one.pt", 1.0)
    archive(folder / "two.pt", 2.0)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(folder: Path):
    async with fleet_of(folder / "plugins") as fleet:
        await fleet.load("other", folder / "two.pt", MANIFEST)
        yield fleet


@pytest_asyncio.fixture(loop_scope="module")
async def net(fleet: Fleet, folder: Path):
    """A model `net` of its own for each test."""
    await fleet.load("net", folder / "one.pt", MANIFEST, replace=True)
    yield "net"
    await fleet.unload("net")


async def test_a_death_fails_the_calls_in_flight_alone(fleet: Fleet, net: str):
    mine = [
        asyncio.create_task(events(fleet, calling(net, "misbehave", params=LONG))) for _ in range(3)
    ]
    other = asyncio.create_task(
        result(fleet, calling("other", "misbehave", params='{"steps": 100, "seconds": 0.005}'))
    )
    await until(lambda: fleet._keepers[net].users.count == 3)
    kill(fleet, net)
    for task in mine:
        with pytest.raises(Unavailable, match="worker of net died of SIGKILL; try again"):
            await task
    assert await settled(fleet, net) == 4.5
    assert (await other).provenance.model == "other"


@pytest.mark.parametrize(
    ("deed", "sentence"), [("die", "died of SIGABRT"), ("leave", "ended with status 3")]
)
async def test_a_crash_is_told(fleet: Fleet, net: str, deed: str, sentence: str):
    with pytest.raises(Unavailable, match=sentence):
        await result(fleet, calling(net, "misbehave", params=f'{{"deed": "{deed}"}}'))
    assert await settled(fleet, net) == 4.5


async def test_a_model_that_keeps_dying_is_quarantined(fleet: Fleet, folder: Path, net: str):
    for _ in range(PATIENCE.deaths):
        await settled(fleet, net)
        with pytest.raises(Unavailable):
            await result(fleet, calling(net, "misbehave", params='{"deed": "die"}'))
    await until(lambda: fleet._keepers[net]._quarantine)
    with pytest.raises(FailedPrecondition, match="quarantined: its worker died 4 times"):
        await result(fleet, calling(net))
    (info,) = [info for info in fleet.models() if info.name == net]
    assert "quarantined" in info.notes[-1]
    assert (await result(fleet, calling("other"))).before[0].logits[0] == 8.5
    await fleet.load(net, folder / "one.pt", MANIFEST, replace=True)
    assert (await result(fleet, calling(net))).before[0].logits[0] == 4.5


async def test_a_step_that_nobody_waits_for_is_stopped(fleet: Fleet, net: str):
    (process,) = fleet.process_ids()[net]
    stuck = calling(net, "misbehave", params='{"seconds": 100}')
    task = asyncio.create_task(events(fleet, stuck))
    await until(lambda: fleet._keepers[net].users.count)
    await asyncio.sleep(0.1)
    task.cancel()
    await until(lambda: not alive(process))
    assert await settled(fleet, net) == 4.5


async def test_a_step_without_end_is_stopped(fleet: Fleet, net: str):
    with pytest.raises(Unavailable, match="stopped in a step of more than 2 s"):
        await result(fleet, calling(net, "misbehave", params='{"seconds": 100}'))
    assert await settled(fleet, net) == 4.5


async def test_a_flood_of_prints_costs_nothing(fleet: Fleet, net: str):
    await result(fleet, calling(net, "misbehave", params='{"deed": "print"}'))
    connection = await fleet._keepers[net].worker(None)
    await until(lambda: connection.output.total >= 2000 * 1001)
    assert len(connection.output.tail()) < 40_000


async def test_too_much_memory_is_an_error(fleet: Fleet, net: str):
    with pytest.raises(Overloaded, match="ran out of memory"):
        await result(fleet, calling(net, "misbehave", params='{"deed": "hoard"}'))
    assert (await result(fleet, calling(net))).before[0].logits[0] == 4.5


@pytest.mark.skipif(bool(sandbox.missing()), reason="the kernel lacks a part of the sandbox")
async def test_a_worker_reads_nothing_outside(fleet: Fleet, tmp_path: Path, net: str):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (secret, Path("/etc/passwd"), Path("/proc/self/environ")):
        assert await number(fleet, net, f'{{"deed": "read", "path": "{path}"}}') == -13.0


async def test_a_worker_sees_no_secret_of_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    async with fleet_of(folder / "plugins") as fleet:
        await fleet.load("net", folder / "one.pt", MANIFEST)
        assert await number(fleet, "net", '{"deed": "environment", "path": "SECRET_TOKEN"}') == 0.0


async def test_an_upload_is_loaded_again_after_its_file_is_gone(fleet: Fleet, tmp_path: Path):
    file = archive(tmp_path / "model", 3.0)
    await fleet.load("upload", file, MANIFEST)
    file.unlink()
    kill(fleet, "upload")
    assert await settled(fleet, "upload") == 12.5
    await fleet.unload("upload")


async def test_a_file_that_changed_is_not_served_instead(fleet: Fleet, tmp_path: Path):
    file = archive(tmp_path / "model.pt", 3.0)
    (tmp_path / "model.toml").write_text("")  # a repository's folder is used in place
    await fleet.load("changing", file, MANIFEST)
    archive(file, 4.0)
    kill(fleet, "changing")
    with pytest.raises(FailedPrecondition, match="has changed since it was loaded"):
        await settled(fleet, "changing")
    await fleet.unload("changing")


async def test_a_death_while_loading_refuses_the_file(fleet: Fleet, folder: Path):
    slow = asyncio.create_task(fleet.load("slow", folder / "one.pt", MANIFEST))
    connections = fleet._nursery._connections
    before = set(connections)
    await until(lambda: any(c.process_id for n, c in connections.items() if n not in before))
    for number_, connection in list(connections.items()):
        if number_ not in before:
            os.kill(connection.process_id, signal.SIGKILL)
    with pytest.raises(InterpretError, match="slow ended its process while it was being loaded"):
        await slow
    assert "slow" not in {info.name for info in fleet.models()}


async def test_the_nursery_dies_and_everything_comes_back(folder: Path):
    async with fleet_of(folder / "plugins") as fleet:
        await fleet.load("net", folder / "one.pt", MANIFEST)
        (process,) = fleet.process_ids()["net"]
        fleet._nursery._process.kill()
        await until(lambda: not alive(process))
        assert await settled(fleet, "net") == 4.5


async def test_nothing_leaks(folder: Path):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async with fleet_of(folder / "plugins", limits=LIMITS) as fleet:
        counts = []
        for _ in range(3):
            await fleet.load("net", folder / "one.pt", MANIFEST)
            for _ in range(5):
                await result(fleet, calling("net", "misbehave"))
            kill(fleet, "net")
            await settled(fleet, "net")
            await fleet.unload("net")
            counts.append(descriptors())
        assert counts[1] == counts[2]
        children = Path(f"/proc/{fleet._nursery._process.pid}/task/{fleet._nursery._process.pid}")
        assert not (children / "children").read_text().split()
