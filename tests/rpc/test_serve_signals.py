"""Signals that come while the server still loads its repository."""

import asyncio
import os
import signal
from pathlib import Path

from fake_worker import FakeWorker

from interpret_server.cli import _serve
from interpret_server.config import Settings
from interpret_server.engine.api import ModelInfo
from interpret_server.models.manifest import Manifest


class Stuck(FakeWorker):
    """Never ends loading; asks for the signal as soon as it has begun."""

    async def load(
        self,
        name: str,
        path: Path,
        manifest: Manifest,
        *,
        replace: bool = False,
        samples: Path | None = None,
    ) -> ModelInfo:
        self.started.set()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_signal_while_models_load_ends_the_server(tmp_path: Path) -> None:
    (tmp_path / "net" / "1").mkdir(parents=True)
    (tmp_path / "net" / "1" / "model.pt").touch()
    settings = Settings(address="127.0.0.1:0", model_repository=tmp_path, grace=0)
    worker, announced = Stuck(), list[str]()
    await asyncio.wait_for(_serve(settings, worker, announced.append), 30)
    assert worker.started.is_set()
    assert worker.closed_with == 0
    assert announced == []
