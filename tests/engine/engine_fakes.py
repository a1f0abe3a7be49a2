"""Tiny models and plugins for the engine's tests."""

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from interpret_server.engine.api import Array, Call, Event, ModelInfo, Result, Target
from interpret_server.engine.arrays import to_array, to_tensor
from interpret_server.engine.describe import describe_classifier
from interpret_server.engine.local import LocalWorker
from interpret_server.models.classifier import Classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import TargetKind
from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Inputs,
    Job,
    Kind,
    Params,
    Plugin,
    Rows,
    logits_before,
    metric,
    output,
)
from interpret_server.registry import Registry
from interpret_server.testing import classifier


class NoParams(Params):
    pass


@dataclass(frozen=True)
class DoubleResult:
    doubled: Tensor = output("twice the input")
    total: Tensor = metric("sum of the row")
    before: Tensor = logits_before()


class Double(Plugin[NoParams, DoubleResult]):
    """Doubles its inputs."""

    name = "double"
    kind = Kind.METRIC
    target_kinds = frozenset()

    def run(self, model: Classifier, batch: Batch, params: NoParams, job: Job) -> DoubleResult:
        return DoubleResult(
            batch.inputs * 2, batch.inputs.flatten(1).sum(1), model(batch.inputs).detach()
        )


class WalkParams(Params):
    steps: int = 5
    tag: str = ""


@dataclass(frozen=True)
class WalkResult:
    images: Tensor = output("the inputs plus the number of steps")


class Walk(Plugin[WalkParams, WalkResult]):
    """Adds one at each step; every step can be held up by the test."""

    name = "walk"
    kind = Kind.SYNTHESIS
    target_kinds = frozenset(TargetKind)  # none at all, too

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.batches: list[int] = []
        self.ended: list[str] = []
        self.go = threading.Event()
        self.go.set()
        self.gates: dict[str, threading.Event] = {}  # by tag, instead of `go`

    def run(self, model: Classifier, batch: Batch, params: WalkParams, job: Job) -> WalkResult:
        self.batches.append(len(batch))
        images = batch.inputs.clone()
        try:
            for step in job.track(params.steps):
                self.log.append((params.tag, step))
                assert self.gates.get(params.tag, self.go).wait(20)
                images += 1
                job.preview(images=images)
        finally:
            self.ended.append(params.tag)
        return WalkResult(images)


class Shuffle(Walk):
    """Rows of one call belong together."""

    name = "shuffle"
    rows = Rows.GROUP


@dataclass(frozen=True)
class SynthesisResult:
    images: Tensor = output("noise of each row's seed, plus its target")


class Synthesis(Plugin[NoParams, SynthesisResult]):
    """Makes something from targets and seeds alone."""

    name = "synthesis"
    kind = Kind.SYNTHESIS
    inputs = Inputs.OPTIONAL
    tensors: ClassVar = {
        "mask": AuxTensor("where", like_input=True),
        "code": AuxTensor("what", like_input=False),
    }

    def run(self, model: Classifier, batch: Batch, params: NoParams, job: Job) -> SynthesisResult:
        return SynthesisResult(batch.normal() + batch.targets.index.reshape(-1, 1))


@dataclass(frozen=True)
class ValueResult:
    value: Tensor = output("the target's value")


class Value(Plugin[NoParams, ValueResult]):
    """The value of the target."""

    name = "value"
    kind = Kind.METRIC
    target_kinds = frozenset({TargetKind.CLASS, TargetKind.NEURON, TargetKind.DIRECTION})

    @torch.no_grad()
    def run(self, model: Classifier, batch: Batch, params: NoParams, job: Job) -> ValueResult:
        return ValueResult(model.objective(batch.inputs, batch.targets)[0])


class Act(Plugin[NoParams, WalkResult]):
    """Does what a test tells it to."""

    name = "act"
    kind = Kind.METRIC
    target_kinds = frozenset()

    def __init__(self, action: Callable[[Classifier, Batch, Job], Tensor]) -> None:
        self.action = action

    def run(self, model: Classifier, batch: Batch, params: NoParams, job: Job) -> WalkResult:
        return WalkResult(self.action(model, batch, job))


def linear(scale: float = 1.0, name: str = "net") -> Classifier:
    """Inputs `(N, 4)` in [0, 1], logits `(N, 3)`: the first three inputs, scaled."""
    module = nn.Sequential(nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.eye(3, 4) * scale)
    return classifier(module, (4,), name=name)


@dataclass(frozen=True)
class Loaded:
    classifier: Classifier
    info: ModelInfo


class Loader:
    """Gives the classifiers that a test names by file."""

    def __init__(self, models: dict[str, Callable[[], Classifier]]) -> None:
        self.models = models
        self.go = threading.Event()
        self.go.set()

    def __call__(
        self,
        name: str,
        path: Path,
        manifest: Manifest,
        *,
        device: torch.device,
        default_max_batch: int,
    ) -> Loaded:
        assert self.go.wait(20)
        model = self.models[path.name]()
        limit = manifest.max_batch or default_max_batch
        info = describe_classifier(name, model, limit)
        return Loaded(model, replace(info, sha256=path.name, labels=("a", "b", "c")))


@asynccontextmanager
async def serving(
    *plugins: Plugin[Any, Any], model: Classifier | None = None, **options: Any
) -> AsyncIterator[LocalWorker]:
    """A worker with some plugins and the model `net`."""
    registry = Registry()
    for plugin in plugins:
        registry.add(plugin, "tests")
    options = {"max_step": math.inf, **options}  # a test that stalls must not change batches
    worker = LocalWorker(registry, device="cpu", **options)
    worker.add("net", model or linear())
    try:
        yield worker
    finally:
        await worker.close(grace=5.0)


def array(values: Any, dtype: torch.dtype = torch.float32) -> Array:
    return to_array(torch.as_tensor(values, dtype=dtype))


def tensor(item: Array) -> Tensor:
    return to_tensor(item, "result").clone()


def rows(*firsts: float) -> Array:
    """One row of four numbers per argument, of which the first is the argument."""
    return array([[first, 0.5, 0.25, 0.0] for first in firsts])


def to_class(index: int) -> tuple[Target, ...]:
    return (Target("class", (index,)),)


def calling(plugin: str, inputs: Any = None, *, model: str = "net", **fields: Any) -> Call:
    params = fields.pop("params", {})
    text = params if isinstance(params, str) else json.dumps(params)
    return Call(model, plugin, params=text, inputs=inputs, **fields)


async def events(worker: LocalWorker, call: Call) -> list[Event]:
    return [event async for event in worker.run(call)]


async def result(worker: LocalWorker, call: Call) -> Result:
    last = (await events(worker, call))[-1]
    assert isinstance(last, Result)
    return last


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread brings about."""
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, "the condition never came true"
        await asyncio.sleep(0.001)


def queued(worker: LocalWorker) -> int:
    """How many calls wait for the device."""
    return sum(group.waiting() for group in worker._scheduler._ready)


def forwards(model: Classifier) -> list[int]:
    """Grows by the batch size of every forward pass of the model."""
    sizes: list[int] = []
    model.module.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes
