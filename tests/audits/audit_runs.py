"""Whole audits without a store: small files, a worker in this process, unit by unit."""

import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interpret_server.audits.plan import Plan, Unit, make_plan
from interpret_server.audits.records import (
    Audit,
    Findings,
    Origin,
    State,
    UnitRecord,
    UnitResult,
    Warned,
)
from interpret_server.audits.runner import BatchState, UnitRunner
from interpret_server.audits.spec import AuditAttack, AuditSpec
from interpret_server.data.arrays import as_array
from interpret_server.engine.api import ModelInfo, Worker
from interpret_server.engine.local import LocalWorker
from interpret_server.models.manifest import Manifest
from interpret_server.registry import AnyPlugin, Registry

SHAPE = (1, 6, 6)
MANIFEST = {"shape": SHAPE, "bounds": (0, 1), "layout": "CHW"}


class Net(nn.Module):
    """A small ordinary network of four classes, with something before and after it."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Tensor] = lambda z: z,
        seed: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Conv2d(1, 6, 3), nn.Linear(96, 4)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(self.before(x)))
        return self.after(self.second(hidden.flatten(1)))


def samples(module: nn.Module, count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Random images, and the classes that a network gives them."""
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return images.numpy(), module(images).argmax(1).numpy()


def save(module: nn.Module, path: Path) -> Path:
    """A TorchScript archive, made by tracing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module.eval(), torch.rand(3, *SHAPE), check_trace=False).save(str(path))
    return path


@asynccontextmanager
async def working(
    path: Path, *plugins: type[AnyPlugin], **manifest: Any
) -> AsyncIterator[tuple[LocalWorker, ModelInfo]]:
    """A worker with a file loaded as `net`, and some plugins beside those that are installed."""
    registry = Registry.installed()
    for plugin in plugins:
        registry.add(plugin, "tests")
    worker = LocalWorker(registry, device="cpu")
    try:
        found = Manifest.model_validate({**MANIFEST, **manifest})
        yield worker, await worker.load("net", path, found)
    finally:
        await worker.close(0.0)


@dataclass
class Run:
    """An audit in memory.

    Attributes:
        results: of finished units, in order.
    """

    worker: Worker
    model: ModelInfo
    spec: AuditSpec
    images: np.ndarray
    labels: np.ndarray
    plan: Plan = field(init=False)
    results: list[UnitResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.labels)
        self.plan = make_plan(self.spec, self.model, self.worker.plugins(), count)
        self.runner = UnitRunner(self.worker, self.model, self.spec, self.plan)

    def state(self, batch: int) -> BatchState:
        """A batch as finished units have left it."""
        rows = self.plan.rows(batch)
        state = BatchState(
            rows=rows,
            labels=self.labels[rows.start : rows.stop],
            given=as_array(self.images[rows.start : rows.stop]),
        )
        for done in self.results:
            if done.batch == batch and done.samples:
                state = replace(state, inputs=done.examples, samples=done.samples)
            elif done.batch == batch:
                state = replace(state, outcomes=(*state.outcomes, *done.outcomes))
        return state

    async def step(self, unit: Unit, told: Callable[[int, int], None] | None = None) -> UnitResult:
        """Do a unit, without keeping its result."""
        return await self.runner.run(unit, self.state(unit.batch), told or (lambda *_: None))

    async def go(self) -> "Run":
        """Do every unit."""
        for unit in self.plan.units():
            self.results.append(await self.step(unit))
        return self

    def of(self, key: str) -> list[UnitResult]:
        """The results of a stage."""
        return [done for done in self.results if done.stage == key]

    def findings(self) -> Findings:
        """What a store would give."""
        origin = Origin(
            model=self.model.name,
            model_version=self.model.version,
            model_sha256=self.model.sha256,
            model_format=self.model.format,
            manifest=self.model.manifest.model_dump_json(),
            input_shape=self.model.input_shape,
            bounds=self.model.bounds or (0.0, 1.0),
            classes=self.model.classes,
            labels=self.model.labels,
            data="random",
            data_sha256="",
            versions={},
            device=self.model.device,
            precision=self.model.precision,
        )
        return Findings(
            audit=Audit("id", self.spec, self.plan, origin, State.FINISHED),
            samples=[sample for done in self.results for sample in done.samples],
            outcomes=[outcome for done in self.results for outcome in done.outcomes],
            units=[
                UnitRecord(done.batch, done.stage, done.warnings, done.seconds)
                for done in self.results
            ],
        )


def asking(*attacks: str | AuditAttack, **fields: Any) -> AuditSpec:
    """A specification for the model `net`."""
    chosen = [AuditAttack(plugin=item) if isinstance(item, str) else item for item in attacks]
    return AuditSpec(model="net", attacks=tuple(chosen), **fields)


def warned(results: Sequence[UnitResult]) -> list[Warned]:
    """All warnings."""
    return [item for done in results for item in done.warnings]
