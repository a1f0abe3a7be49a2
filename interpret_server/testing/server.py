"""A real server in a background thread, for tests."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from interpret_server.engine.api import Worker
from interpret_server.models.manifest import Manifest
from interpret_server.rpc.server import Server

if TYPE_CHECKING:
    from interpret_server.models.classifier import Classifier
    from interpret_server.registry import Registry

    Model: TypeAlias = Path | tuple[Path, Mapping[str, Any]] | Classifier

T = TypeVar("T")


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self.run(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def serve(
    registry: "Registry | None" = None,
    models: "Mapping[str, Model] | None" = None,
    *,
    worker: Worker | None = None,
    grace: float = 5.0,
    **options: Any,
) -> Iterator[str]:
    """Serve on a free loopback port; yields the address, such as `127.0.0.1:43211`.

    Args:
        registry: the plugins; None for every installed one.
        models: by name: a file, a file with its manifest, or a `Classifier`.
        worker: serve this one instead of a new `LocalWorker` on the CPU; `registry` is not used.
        grace: seconds that running calls may go on at the end.
        options: of `interpret_server.rpc.server.Server`.

    Raises:
        InterpretError: a model cannot be loaded.
    """
    worker = _local_worker(registry) if worker is None else worker
    loop, server = _Loop(), Server(worker, **options)
    try:
        address = loop.run(server.start())
        try:
            for name, model in (models or {}).items():
                _load(loop, worker, name, model)
            loop.run(server.load_repository())
            loop.run(server.serve())
            yield address
        finally:
            loop.run(server.stop(grace))
    finally:
        loop.close()


def _local_worker(registry: "Registry | None") -> Any:
    from interpret_server.engine.local import LocalWorker
    from interpret_server.registry import Registry

    return LocalWorker(Registry.installed() if registry is None else registry, device="cpu")


def _load(loop: _Loop, worker: Any, name: str, model: Any) -> None:
    if isinstance(model, Path):
        loop.run(worker.load(name, model, Manifest()))
    elif isinstance(model, tuple):
        path, manifest = model
        loop.run(worker.load(name, path, Manifest.model_validate(manifest)))
    else:
        worker.add(name, model)
