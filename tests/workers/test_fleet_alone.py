"""Calls that run alone give the same bits on a quiet worker and on a busy one."""

import asyncio
import contextlib
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from fleets import LIMITS, fleet_of, kill, result, until

from interpret_server.engine.api import Array, Call, Result, Target
from interpret_server.engine.workers.fleet import Fleet
from interpret_server.models.manifest import Manifest

ROWS, MAX_BATCH = 11, 8
MANIFEST = Manifest.model_validate({"shape": [1, 6, 6], "bounds": [0, 1], "max_batch": MAX_BATCH})


class Digits(torch.nn.Module):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Conv2d(1, 8, 3)
        self.head = torch.nn.Linear(128, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.features(x)).flatten(1))


def network(path: Path) -> Path:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Digits()).save(str(path))
    return path


def attack(plugin: str, params: dict[str, Any], seed: int = 0, **more: Any) -> Call:
    images = torch.rand(ROWS, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return Call(
        model="net",
        plugin=plugin,
        params=json.dumps(params),
        inputs=Array("float32", tuple(images.shape), images.numpy().tobytes()),
        targets=(Target("class", (1,)),),
        seeds=(7,),
        progress=False,
        **more,
    )


def contents(found: Result) -> tuple[Any, ...]:
    tensors = {name: (item.shape, bytes(item.data)) for name, item in found.tensors.items()}
    return tensors, found.metrics, found.before, found.after, found.warnings


async def keep_busy(fleet: Fleet, call: Call) -> None:
    while True:
        await result(fleet, call)


@contextlib.asynccontextmanager
async def hammered(fleet: Fleet, *calls: Call) -> Any:
    tasks = [asyncio.create_task(keep_busy(fleet, call)) for call in calls for _ in range(2)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(item, asyncio.CancelledError) for item in ended)


async def test_neither_other_calls_nor_a_new_worker_change_a_bit_of_a_call_that_runs_alone(
    tmp_path: Path,
) -> None:
    limits = dataclasses.replace(LIMITS, max_step=1e-6)
    async with fleet_of(limits=limits) as fleet:
        await fleet.load("net", network(tmp_path / "net.pt"), MANIFEST)
        for plugin, own in (("pgd", {"steps": 12}), ("square", {"queries": 60})):
            params = {"epsilon": 0.05, **own}
            alone = attack(plugin, params, alone=True)
            quiet = await result(fleet, alone)
            assert all(len(values) == ROWS for values in quiet.metrics.values())
            assert "queries" in quiet.metrics
            others = [attack(plugin, params), attack(plugin, params, seed=1), attack("fgsm", {})]
            async with hammered(fleet, *others):
                for _ in range(3):
                    learned = await result(fleet, others[0])
                    busy = await result(fleet, alone)
                    assert contents(busy) == contents(quiet)
                    assert busy.provenance.batch_rows == MAX_BATCH
            assert learned.provenance.batch_rows < MAX_BATCH
            assert quiet.provenance.batch_rows == MAX_BATCH
            gone = fleet.process_ids()["net"]
            kill(fleet, "net")
            await until(lambda gone=gone: fleet.process_ids()["net"] not in ([], gone))
            assert contents(await result(fleet, alone)) == contents(quiet)


async def test_a_sandboxed_worker_opens_the_file_again(tmp_path: Path) -> None:
    path = network(tmp_path / "net.pt")
    ask = attack("_original", {}, alone=True)
    ask = dataclasses.replace(ask, targets=())
    async with fleet_of() as fleet:
        await fleet.load("net", path, MANIFEST)
        found = (await result(fleet, ask)).tensors
        assert isinstance(ask.inputs, Array)
        assert bytes(found["inputs"].data) == bytes(ask.inputs.data)
    images = torch.frombuffer(bytearray(ask.inputs.data), dtype=torch.float32)
    with torch.no_grad():
        archive = torch.jit.load(str(path))
        parts = images.reshape(ROWS, 1, 6, 6).split(MAX_BATCH)
        expected = torch.cat([archive(part) for part in parts])
    assert bytes(found["scores"].data) == expected.numpy().tobytes()
