"""A fleet for tests: small files, a plugin that misbehaves on request, short patience."""

import asyncio
import contextlib
import os
import signal
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch

from interpret_server.engine.api import Array, Call, Event, Result
from interpret_server.engine.workers.fleet import Fleet
from interpret_server.engine.workers.keeper import Patience
from interpret_server.engine.workers.nursery import Limits
from interpret_server.errors import Unavailable
from interpret_server.models.manifest import Manifest

MANIFEST = Manifest.model_validate({"shape": [4], "bounds": [-10, 10]})
PATIENCE = Patience(abandoned=0.3, step=2.0, ping=0.05, backoff=0.01, deaths=4, ready=20.0)
LIMITS = Limits(threads=1, memory_bytes=16 << 30)

PLUGIN = '''
import os
import time
from dataclasses import dataclass

import torch

from interpret_server.plugin import *

class Deed(Params):
    deed: str = "nothing"
    steps: int = 1
    seconds: float = 0.0
    path: str = ""

@dataclass(frozen=True)
class Done:
    images: object = output("The inputs.")
    numbers: object = output("What the deed gave.")

class Misbehave(Plugin[Deed, Done]):
    """Does what a model might do."""
    name = "misbehave"
    kind = Kind.SYNTHESIS
    target_kinds = frozenset()

    def run(self, model, batch, params, job):
        number = 0.0
        for step in job.track(params.steps):
            job.preview(images=batch.inputs + step)
            time.sleep(params.seconds)
            if params.deed == "read":
                try:
                    number = float(len(open(params.path).read()))
                except OSError as error:
                    number = -float(error.errno)
            elif params.deed == "die":
                os.abort()
            elif params.deed == "leave":
                os._exit(3)
            elif params.deed == "print":
                for _ in range(2000):
                    print("x" * 1000)
            elif params.deed == "hoard":
                torch.zeros(10**13)
            elif params.deed == "name":
                number = float(os.getpid())
            elif params.deed == "environment":
                number = float(params.path in os.environ)
        return Done(batch.inputs, torch.full((len(batch),), number))
'''


class Linear(torch.nn.Module):
    """Three classes of four numbers."""

    def __init__(self, scale: float, size: int = 4) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(size, 3)
        torch.nn.init.constant_(self.layer.weight, scale)
        torch.nn.init.constant_(self.layer.bias, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def archive(path: Path, scale: float = 1.0, size: int = 4) -> Path:
    """A TorchScript file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Linear(scale, size)).save(str(path))
    return path


def plugin_folder(folder: Path) -> Path:
    """A folder with the plugin `misbehave`."""
    folder.mkdir(exist_ok=True)
    (folder / "misbehave.py").write_text(PLUGIN)
    return folder


@contextlib.asynccontextmanager
async def fleet_of(plugins: Path | None = None, **options: Any) -> AsyncIterator[Fleet]:
    """A fleet on the CPU that is closed at the end."""
    settings: dict[str, Any] = {"devices": ("cpu",), "limits": LIMITS, "patience": PATIENCE}
    fleet = Fleet(**settings | options, plugin_dirs=[] if plugins is None else [plugins])
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.close(0.0)


def rows(*values: float, size: int = 4) -> Array:
    """One row for each value, which fills it."""
    tensor = torch.tensor(values).reshape(-1, 1).expand(-1, size).contiguous()
    return Array("float32", tuple(tensor.shape), tensor.numpy().tobytes())


def calling(model: str, plugin: str = "_predict", inputs: Array | None = None, **more: Any) -> Call:
    """A call; `params` is JSON text."""
    return Call(model=model, plugin=plugin, inputs=rows(1.0) if inputs is None else inputs, **more)


async def events(fleet: Fleet, call: Call) -> list[Event]:
    """All events of a call."""
    async with contextlib.aclosing(fleet.run(call)) as stream:
        return [event async for event in stream]


async def result(fleet: Fleet, call: Call) -> Result:
    """The result of a call."""
    last = (await events(fleet, call))[-1]
    assert isinstance(last, Result)
    return last


async def number(fleet: Fleet, model: str, params: str) -> float:
    """What a deed gives."""
    found = (await result(fleet, calling(model, "misbehave", params=params))).tensors["numbers"]
    return float(torch.frombuffer(bytearray(found.data), dtype=torch.float32)[0])


def kill(fleet: Fleet, model: str) -> None:
    """SIGKILL to every worker of a model."""
    for process in fleet.process_ids()[model]:
        os.kill(process, signal.SIGKILL)


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def settled(fleet: Fleet, model: str) -> float:
    """The first logit of a model whose worker may be starting."""
    async with asyncio.timeout(20):
        while True:
            try:
                return (await result(fleet, calling(model))).before[0].logits[0]
            except Unavailable:
                await asyncio.sleep(0.01)


async def until(condition: Any, seconds: float = 20.0) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # other processes set no event
            await asyncio.sleep(0.01)
