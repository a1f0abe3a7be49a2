"""A repository of text files, served by a real worker that reads them as scales."""

import asyncio
import logging
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import Agreement
from torch import Tensor, nn

from interpret_server.engine.api import Array, Call, Result
from interpret_server.engine.describe import describe_classifier
from interpret_server.engine.local import LocalWorker
from interpret_server.errors import InvalidModel
from interpret_server.models.classifier import Classifier
from interpret_server.models.manifest import Manifest
from interpret_server.plugin import Batch, Job, Kind, Params, Plugin, output
from interpret_server.registry import Registry
from interpret_server.rpc.names import Names
from interpret_server.rpc.reload import Reloader
from interpret_server.testing.classifiers import classifier

WAIT = 20  # seconds that nothing should take


class NoParams(Params):
    """None."""


@dataclass(frozen=True)
class Seen:
    images: Tensor = output("The inputs.")


class Hold(Plugin[NoParams, Seen]):
    """Keeps the device until it is told to go on, and notes the scale before and after."""

    name = "hold"
    kind = Kind.SYNTHESIS
    target_kinds = frozenset()

    def __init__(self) -> None:
        self.begun, self.go, self.seen = threading.Event(), threading.Event(), list[float]()

    def run(self, model: Classifier, batch: Batch, params: NoParams, job: Job) -> Seen:
        for _ in job.track(2):
            self.seen.append(model(batch.inputs)[0, 0].item())
            self.begun.set()
            assert self.go.wait(WAIT)
        return Seen(batch.inputs)


class Loader:
    """A file's text is the scale of its classifier; `corrupt` is no model.

    Making a classifier traces a module, which no other thread may run at that time: what is
    loaded while calls run must have been made before, in `ready`.
    """

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.ready: dict[str, Classifier] = {}
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(
        self, name: str, path: Path, manifest: Manifest, *, device: Any, default_max_batch: int
    ) -> Any:
        text = path.read_text(encoding="utf-8")
        self.loads.append(f"{name} {text}")
        self.begun.set()
        assert self.go.wait(WAIT)
        if text == "corrupt":
            raise InvalidModel("the file is corrupt")
        if text == "broken":
            raise KeyError("secret")
        model = self.ready.pop(text, None) or scaling(float(text))
        info = describe_classifier(name, model, default_max_batch)
        return _Loaded(model, replace(info, version=manifest.version, labels=manifest.labels or ()))


def scaling(scale: float) -> Classifier:
    """From two numbers to both of them times the scale."""
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.eye(2) * scale)
    return classifier(module, (2,))


@dataclass(frozen=True)
class _Loaded:
    classifier: Classifier
    info: Any


class Stage:
    """A repository, what serves it, and what a test does to both."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.root, self.loader, self.hold = root, Loader(), Hold()
        registry = Registry()
        registry.add(self.hold, "tests")
        registry.add(Agreement(), "tests")
        self.worker = LocalWorker(registry, device="cpu", loader=self.loader)
        self.names = Names(self.worker)
        self.reloader = Reloader(root, self.names)

    def write(self, path: str, text: str) -> None:
        """Put a file in its place by renaming, as operators should."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(file)

    def remove(self, path: str) -> None:
        shutil.rmtree(self.root / path)

    def listed(self) -> dict[str, str]:
        return {info.name: info.version for info in self.names.models()}

    async def call(self, model: str, plugin: str = "_predict") -> Result:
        inputs = Array("float32", (1, 2), torch.tensor([1.0, 0.0]).numpy().tobytes())
        async with aclosing(self.names.run(Call(model, plugin, inputs=inputs))) as events:
            async for event in events:
                if isinstance(event, Result):
                    return event
        raise AssertionError("no result")

    async def scale(self, model: str = "net") -> float:
        """The scale of the model that answers to a name."""
        return (await self.call(model)).before[0].logits[0]


@asynccontextmanager
async def staged(root: Path) -> AsyncIterator[Stage]:
    stage = Stage(root)
    try:
        yield stage
    finally:
        stage.hold.go.set()
        stage.loader.go.set()
        await stage.names.close(WAIT)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread or task brings about."""
    limit = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < limit, "the condition never came true"
        await asyncio.sleep(0.001)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The errors that were logged since the last call."""
    found = [item.getMessage() for item in caplog.records if item.levelno >= logging.ERROR]
    caplog.clear()
    return found
