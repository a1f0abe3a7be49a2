"""The memory of the front end and of a worker over many calls that run alone."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

FRONT_END = """
import asyncio, json, os, sys
from pathlib import Path
from interpret_server.engine.allocator import keep_freed_memory
from interpret_server.engine.api import Array, Call, Result
from interpret_server.engine.workers.fleet import Fleet
from interpret_server.engine.workers.nursery import Limits
from interpret_server.models.manifest import Manifest

ROWS, PIXELS = 50, 28 * 28
IMAGES = Array("float32", (ROWS, 1, 28, 28), bytes(4 * ROWS * PIXELS))

def resident(process):
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def use(fleet, calls):
    for number in range(calls):
        plugin, params = (("_original", "{}"), ("pgd", '{"steps": 2}'))[number % 2]
        call = Call("net", plugin, params, IMAGES, alone=True, priority=-1)
        found = [event async for event in fleet.run(call)][-1]
        assert isinstance(found, Result)
        assert found.provenance.batch_rows == ROWS
    (worker,) = fleet.process_ids()["net"]
    return [resident(os.getpid()), resident(worker)]

async def main():
    fleet = Fleet(devices=("cpu",), limits=Limits(threads=1))
    await fleet.start()
    manifest = Manifest.model_validate({"shape": [1, 28, 28], "bounds": [0, 1]})
    await fleet.load("net", Path(sys.argv[1]), manifest)
    warm, later = await use(fleet, 60), await use(fleet, 200)
    await fleet.close(0.0)
    print(json.dumps([warm, later, "torch" in sys.modules]))

keep_freed_memory()
asyncio.run(main())
"""
MIB = 1 << 20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_flat_over_two_hundred_calls_that_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(net, torch.zeros(2, 1, 28, 28)).save(str(path))
    done = subprocess.run(
        [sys.executable, "-c", FRONT_END, str(path)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    warm, later, torch_imported = json.loads(done.stdout.splitlines()[-1])
    growth = [after - before for before, after in zip(warm, later, strict=True)]
    assert max(growth) < 8 * MIB, (warm, later)
    assert not torch_imported
