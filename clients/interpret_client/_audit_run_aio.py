"""An audit on a server, for the asynchronous client."""

import asyncio
import io
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, overload

from . import _audit_calls as calls
from ._audit_files import Destination
from ._audit_run import AuditHandle, AuditRun, finished, still_running
from .audits import Audit
from .errors import DeadlineExceeded, ServerError, Unavailable

if TYPE_CHECKING:
    from .aio import AsyncClient


class AsyncAuditRun(AuditHandle):
    """As `AuditRun`, for `AsyncClient`: the same methods, to be awaited."""

    def __init__(self, client: "AsyncClient", audit: Audit) -> None:
        super().__init__(audit)
        self._client = client

    async def status(self) -> Audit:
        return self._heard(await self._client._perform(calls.get_audit(self.id)))

    async def watch(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncGenerator[Audit, None]:
        patience, last = calls.Patience(timeout), None
        while True:
            try:
                call = calls.watch(self.id, patience.timeout())
                async with aclosing(self._client._follow(call)) as audits:
                    async for audit in audits:
                        patience.hear()
                        if audit != last:
                            last = audit
                            yield self._heard(audit)
            except Unavailable as error:
                await asyncio.sleep(patience.pause_after(error))
                continue
            if last is None or not last.ended:
                raise ServerError("the server ended the stream before the audit's end")
            return

    async def wait(
        self,
        progress: Callable[[Audit], object] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Audit:
        try:
            async with aclosing(self.watch(timeout=timeout)) as audits:
                async for audit in audits:
                    if progress is not None:
                        progress(audit)
        except DeadlineExceeded:
            raise still_running(self.audit, timeout) from None
        return finished(self.audit)

    async def cancel(self) -> Audit:
        return self._heard(await self._client._perform(calls.cancel(self.id)))

    async def resume(self) -> Audit:
        return self._heard(await self._client._perform(calls.resume(self.id)))

    async def delete(self) -> None:
        await self._client._perform(calls.delete(self.id))

    @overload
    async def report(self, form: str = ..., path: None = ...) -> bytes: ...
    @overload
    async def report(
        self, form: str, path: str | PathLike[str], *, overwrite: bool = ...
    ) -> Path: ...
    async def report(
        self,
        form: str = "html",
        path: str | PathLike[str] | None = None,
        *,
        overwrite: bool = False,
    ) -> bytes | Path:
        if path is None:
            sink = io.BytesIO()
            await self._fetch(form, sink)
            return sink.getvalue()
        destination = Destination(path, form, overwrite=overwrite)
        try:
            await self._fetch(form, destination.file)
            return await asyncio.to_thread(destination.finish)
        finally:
            destination.close()

    async def _fetch(self, form: str, sink: BinaryIO) -> None:
        download = calls.Download(sink)
        call = calls.report(self.id, form)
        async with aclosing(self._client._follow(call)) as messages:
            async for message in messages:
                await asyncio.to_thread(download.add, message)
        download.finish()


for _name in ("status", "watch", "wait", "cancel", "resume", "delete", "report"):
    getattr(AsyncAuditRun, _name).__doc__ = getattr(AuditRun, _name).__doc__
