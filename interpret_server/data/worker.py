"""Reads the rows of data sets before a worker sees the call that names them."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from ..engine.api import Call, Event, ModelInfo, PluginInfo, StoredModel, Worker
from ..errors import FailedPrecondition, InvalidRequest, Overloaded, RequestTooLarge
from ..models.manifest import Manifest
from .calls import FIELD, StoredCall
from .columns import Shape
from .root import DataRoot
from .sets import DataSet, Inputs

_CALLS = 4  # of the largest size, whose rows are held at once; of smaller ones more


class DataWorker(Worker):
    """A worker that takes calls on stored data sets, too, and passes them on with their rows.

    Args:
        worker: runs the calls.
        root: where the data sets lie; None where there are none.
        max_bytes: most bytes of the rows of one call.
    """

    def __init__(self, worker: Worker, root: DataRoot | None, max_bytes: int) -> None:
        self._worker, self._root, self._max_bytes = worker, root, max_bytes
        self._held = 0  # bytes of rows of calls that run

    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin, by name."""
        return self._worker.plugins()

    def models(self) -> tuple[ModelInfo, ...]:
        """Every loaded model, by name."""
        return self._worker.models()

    async def load(
        self,
        name: str,
        path: Path,
        manifest: Manifest,
        *,
        replace: bool = False,
        samples: Path | None = None,
    ) -> ModelInfo:
        """As the worker's."""
        return await self._worker.load(name, path, manifest, replace=replace, samples=samples)

    async def keep(self, name: str, folder: Path) -> StoredModel:
        """As the worker's."""
        return await self._worker.keep(name, folder)

    async def unload(self, name: str) -> None:
        """As the worker's."""
        await self._worker.unload(name)

    def run(self, call: Call) -> AsyncIterator[Event]:
        """As the worker's.

        Raises:
            NotFound, InvalidRequest: there is no such data set or row, or it cannot be read.
            FailedPrecondition: the server has no data root.
            RequestTooLarge, Overloaded: the rows, or those of all calls, have too many bytes.
        """
        return self._run(call) if isinstance(call, StoredCall) else self._worker.run(call)

    async def close(self, grace: float = 5.0) -> None:
        """Close the worker."""
        await self._worker.close(grace)

    async def _run(self, call: StoredCall) -> AsyncGenerator[Event, None]:
        began = time.monotonic()
        plain = {item.name: getattr(call, item.name) for item in fields(Call)}
        with ExitStack() as held:
            if any(info.name == call.model for info in self.models()):  # else the worker refuses it
                data, rows, size = await asyncio.to_thread(self._open, call)
                held.enter_context(self._room(size))
                plain["inputs"] = await asyncio.to_thread(_read, data, rows)
            if call.timeout is not None:
                plain["timeout"] = max(0.0, call.timeout - (time.monotonic() - began))
            async with aclosing(cast(Any, self._worker.run(Call(**plain)))) as events:
                async for event in events:
                    yield event

    def _open(self, call: StoredCall) -> tuple[DataSet, Sequence[int], int]:
        """A call's data set, its rows and how many bytes they have."""
        if self._root is None:
            raise FailedPrecondition(
                f"{FIELD}: the server has no data sets; start it with --data-root"
            )
        (info,) = (info for info in self.models() if info.name == call.model)
        names = [item.name for item in info.inputs]
        data = self._root.open(call.dataset.name, names, shape_of(info))
        rows = call.dataset.of(len(data))
        size = data.nbytes(rows)
        if size > self._max_bytes:
            raise RequestTooLarge(
                f"{FIELD}: the {len(rows)} rows have {size} bytes, and this server takes at most "
                f"{self._max_bytes} in one call; ask for fewer"
            )
        return data, rows, size

    @contextmanager
    def _room(self, size: int) -> Iterator[None]:
        if self._held + size > _CALLS * self._max_bytes:
            raise Overloaded("too many calls on stored rows are running; try again later")
        self._held += size
        try:
            yield
        finally:
            self._held -= size


def shape_of(info: ModelInfo) -> Shape:
    """What tables need to know of a model."""
    return Shape(info.input_shape, info.inputs[0].features if len(info.inputs) == 1 else ())


def _read(data: DataSet, rows: Sequence[int]) -> Inputs:
    try:
        return data.inputs(rows)
    except OSError:  # removed meanwhile
        raise InvalidRequest.field(FIELD, f"{data.name} cannot be read") from None
