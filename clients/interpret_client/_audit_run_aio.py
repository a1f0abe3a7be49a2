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
from ._audit_run import finished, still_running
from .audits import Audit
from .errors import DeadlineExceeded, ServerError, Unavailable

if TYPE_CHECKING:
    from .aio import AsyncClient


class AsyncAuditRun:
    """An audit on a server, where it goes on whether anybody waits for it or not.

    Made by `AsyncClient.audit`, `audits` and `get_audit`.

    Attributes:
        audit: how it stood when the server was last asked.
    """

    def __init__(self, client: "AsyncClient", audit: Audit) -> None:
        self._client = client
        self.audit = audit

    @property
    def id(self) -> str:
        """Unique on the server."""
        return self.audit.id

    def __repr__(self) -> str:
        return f"<AsyncAuditRun {self.id} of {self.audit.spec['model']}: {self.audit.state}>"

    async def status(self) -> Audit:
        """How it stands now. Raises NotFound once it is deleted."""
        return self._heard(await self._client._perform(calls.get_audit(self.id)))

    async def watch(
        self,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncGenerator[Audit, None]:
        """How it stands, then again at every change, until nothing more happens.

        A server that goes away meanwhile is waited for, a minute at most.

        Args:
            timeout: seconds in all; None for no limit, whatever the client's own is.

        Raises:
            NotFound: it was deleted.
            DeadlineExceeded: the time is up; the audit goes on.
            Unavailable: the server did not come back.
        """
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
        """Wait until it is finished.

        Args:
            progress: is told how it stands whenever that changes.
            timeout: seconds; None for no limit.

        Raises:
            FailedPrecondition: it failed; the message says why.
            Cancelled: somebody cancelled it.
            DeadlineExceeded: the time is up; the audit goes on.
            NotFound, Unavailable: as `watch`.
        """
        try:
            async with aclosing(self.watch(timeout=timeout)) as audits:
                async for audit in audits:
                    if progress is not None:
                        progress(audit)
        except DeadlineExceeded:
            raise still_running(self.audit, timeout) from None
        return finished(self.audit)

    async def cancel(self) -> Audit:
        """Stop it; what is finished of it stays."""
        return self._heard(await self._client._perform(calls.cancel(self.id)))

    async def resume(self) -> Audit:
        """Go on with it after it was cancelled or has failed. Raises FailedPrecondition."""
        return self._heard(await self._client._perform(calls.resume(self.id)))

    async def delete(self) -> None:
        """Have the server forget it with everything that is stored of it."""
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
        """What it found.

        Args:
            form: `html` (one self-contained page), `json`, `csv` or `parquet` (a line for every
                sample), or `bundle` (all of it with samples, adversarial examples and the model).
            path: of the file to write. A bundle is unpacked into a folder of that name, unless it
                ends in `.zip`.
            overwrite: replace files that are there.

        Returns:
            The path, or the file's bytes where there is none.

        Raises:
            FailedPrecondition: it is not finished.
            FileExistsError: there are files, which may not be replaced.
        """
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

    def _heard(self, audit: Audit) -> Audit:
        self.audit = audit
        return audit
