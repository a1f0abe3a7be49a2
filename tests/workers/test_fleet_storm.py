"""Many callers while workers are killed and models reloaded: one outcome each, no leak."""

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fleets import MANIFEST, PATIENCE, alive, archive, fleet_of, plugin_folder, settled, until

import interpret_client.aio
from interpret_client import InterpretClientError
from interpret_server.engine.workers.fleet import Fleet
from interpret_server.engine.workers.keeper import Patience
from interpret_server.rpc.server import Server

CALLERS = 200
STEADY = Patience(**vars(PATIENCE) | {"deaths": 1000})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plugin_folder(tmp_path / "plugins")
    archive(tmp_path / "one.pt", 1.0)
    archive(tmp_path / "two.pt", 2.0)
    return tmp_path


async def outcome(
    client: interpret_client.aio.AsyncClient, number: int, chance: random.Random
) -> str:
    """What becomes of one caller."""
    model = ("net", "other")[number % 2]
    work = asyncio.create_task(_work(client, model, number))
    if number % 3 == 0:
        await asyncio.sleep(chance.uniform(0, 0.5))
        work.cancel()
    try:
        return await work
    except asyncio.CancelledError:
        return "cancelled"
    except InterpretClientError as error:
        return type(error).__name__


async def _work(client: interpret_client.aio.AsyncClient, model: str, number: int) -> str:
    inputs = np.full((1, 4), 1.0, np.float32)
    if number % 5 == 0:
        last = None
        params = {"steps": 5, "seconds": 0.002}
        async for event in client.stream("misbehave", model, inputs, params=params):
            assert last is None, "something followed the result"
            last = event.result
        assert last is not None
        np.testing.assert_array_equal(last.tensors["images"], inputs)
        return "answered"
    logits = (await client.predict(model, inputs)).logits
    assert logits[0, 0] == {"net": 4.5, "other": 8.5}[model]
    return "answered"


async def storm(fleet: Fleet, folder: Path, chance: random.Random) -> Counter[str]:
    server = Server(fleet)
    address = await server.start()
    await server.serve()
    async with interpret_client.aio.connect(address) as client:
        callers = [
            asyncio.create_task(outcome(client, number, chance)) for number in range(CALLERS)
        ]
        for _ in range(4):
            await asyncio.sleep(0.1)
            for process in fleet.process_ids()["net"]:
                os.kill(process, signal.SIGKILL)
            await fleet.load("other", folder / "two.pt", MANIFEST, replace=True)
        found = Counter(await asyncio.gather(*callers))
    await server._server.stop(0)
    return found


async def test_every_caller_gets_one_outcome_and_nothing_leaks(folder: Path):
    async with fleet_of(folder / "plugins", patience=STEADY) as fleet:
        await fleet.load("net", folder / "one.pt", MANIFEST)
        await fleet.load("other", folder / "two.pt", MANIFEST)
        counts = []
        for seed in range(3):
            async with asyncio.timeout(60):
                found = await storm(fleet, folder, random.Random(seed))
            assert sum(found.values()) == CALLERS
            assert set(found) <= {"answered", "cancelled", "Unavailable"}, found
            assert found["answered"] > CALLERS // 4
            for name in ("net", "other"):
                await settled(fleet, name)
                await until(lambda name=name: not fleet._keepers[name].users.count)
            await until(lambda: len(fleet._nursery._connections) == 2)
            counts.append(len(os.listdir("/proc/self/fd")))
        assert counts[2] <= counts[1]
        processes = [item for items in fleet.process_ids().values() for item in items]
        assert len(processes) == 2
        children = Path(f"/proc/{fleet._nursery._process.pid}/task/{fleet._nursery._process.pid}")
        assert sorted(map(int, (children / "children").read_text().split())) == sorted(processes)
    assert not any(map(alive, processes))
