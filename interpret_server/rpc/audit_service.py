"""`AuditService`: creates audits, tells how they stand, and hands out their reports."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol, cast

from interpret_api.v1 import audit_service_pb2 as pb
from interpret_api.v1 import audit_service_pb2_grpc

from ..audits.ingest import DataChunk, StoredSet
from ..audits.records import Audit, State
from ..audits.spec import AuditSpec
from ..errors import DeadlineExceeded, FailedPrecondition, InvalidRequest, Overloaded, Unavailable
from . import audit_codec as codec
from .codec import required
from .names import Names
from .parts import CHUNK_BYTES

_UPLOADS = 16  # data sets that may arrive at once
_FINAL = (State.CANCELLED, State.FAILED, State.FINISHED)
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
    ".zip": "application/zip",
}

Messages = AsyncIterator[pb.CreateAuditRequest]


class Audits(Protocol):
    """Keeps audits and runs them; see `audits.manager`."""

    async def start(self) -> None: ...
    async def close(self, grace: float) -> None: ...
    async def create(
        self, spec: AuditSpec, data: AsyncIterator[DataChunk] | StoredSet
    ) -> Audit: ...
    def get(self, audit: str, /) -> Audit: ...
    def list(self) -> tuple[Audit, ...]: ...
    def watch(self, audit: str, /) -> AsyncIterator[Audit]: ...
    async def cancel(self, audit: str, /) -> Audit: ...
    async def resume(self, audit: str, /) -> Audit: ...
    async def delete(self, audit: str, /) -> None: ...
    async def report(self, audit: str, form: str, /) -> Path: ...


class AuditDesk:
    """Opens the audits when they are first needed: a server that has none makes no folder.

    Args:
        make: makes what keeps and runs them; None where the server has none.
    """

    def __init__(self, make: Callable[[], Audits] | None) -> None:
        self._make = make
        self._audits: Audits | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def audits(self) -> Audits:
        """The audits, which go on with what an earlier server left.

        Raises:
            InterpretError: there are none, or they cannot be opened.
        """
        if self._make is None:
            raise FailedPrecondition("the server keeps no audits; start it with --audit-root")
        async with self._opening:
            if self._closed:
                raise Unavailable("the server is shutting down")
            if self._audits is None:
                audits = await asyncio.to_thread(self._make)  # which imports the database's library
                await audits.start()
                self._audits = audits
        return self._audits

    async def close(self, grace: float) -> None:
        """Stop; the next server goes on."""
        async with self._opening:
            self._closed = True
        if self._audits is not None:
            await self._audits.close(grace)


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    """Hands requests to the audits, which go on whoever leaves.

    Args:
        desk: has them.
        names: of the models that may be audited.
        idle_timeout: seconds that an upload waits for its caller's next message, and a report for
            its caller to take one.
    """

    def __init__(self, desk: AuditDesk, names: Names, idle_timeout: float) -> None:
        self._desk, self._names, self._idle_timeout = desk, names, idle_timeout
        self._uploads = 0

    async def CreateAudit(self, requests: Messages, context: Any) -> pb.CreateAuditResponse:
        """Store and queue an audit; of one that is given up on the way nothing is left."""
        messages = aiter(requests)
        header = await self._header(messages)
        spec = codec.to_spec(header.spec)
        await self._names.arrive(spec.model)
        self._names.find(spec.model)
        spec = spec.model_copy(update={"model": self._names.own_name(spec.model)})
        if self._uploads >= _UPLOADS:
            raise Overloaded("too many data sets are arriving; try again later")
        self._uploads += 1
        try:
            audit = await self._create(spec, header.samples, messages)
        finally:
            self._uploads -= 1
        return pb.CreateAuditResponse(audit=codec.from_audit(audit))

    async def _header(self, messages: Messages) -> pb.AuditHeader:
        first = await self._next(messages)
        if first is None or first.WhichOneof("message") != "header":
            raise InvalidRequest.field("header", "the first message says what is asked for")
        return first.header

    async def _create(self, spec: AuditSpec, count: int, messages: Messages) -> Audit:
        audits = await self._desk.audits()
        if count < 0:
            raise InvalidRequest.field("header.samples", "give how many samples will be sent")
        if count:
            async with aclosing(self._chunks(count, messages)) as chunks:
                return await audits.create(spec, chunks)
        stored = await self._samples(messages)
        if not isinstance(stored, StoredSet):
            raise InvalidRequest.field(
                "header.samples", "give how many samples will be sent, or name a data set"
            )
        if await self._next(messages) is not None:
            raise InvalidRequest.field("samples", "nothing follows a data set on the server")
        return await audits.create(spec, stored)

    async def _chunks(self, count: int, messages: Messages) -> AsyncGenerator[DataChunk, None]:
        """The samples, each read from the connection when those before are stored."""
        came = 0
        while (chunk := await self._samples(messages)) is not None:
            if isinstance(chunk, StoredSet):
                raise InvalidRequest.field("inputs.dataset", "give header.samples as 0 with it")
            came += len(chunk.labels)
            if came > count:
                raise InvalidRequest.field("samples", f"{count} were announced, and more came")
            yield chunk
        if came < count:  # as where the client went away
            raise InvalidRequest.field("samples", f"the request ended after {came} of {count}")

    async def _samples(self, messages: Messages) -> DataChunk | StoredSet | None:
        message = await self._next(messages)
        if message is None:
            return None
        if message.WhichOneof("message") != "samples":
            raise InvalidRequest.field("samples", "after the first message come samples alone")
        return codec.to_samples(message.samples)

    async def _next(self, messages: Messages) -> pb.CreateAuditRequest | None:
        try:
            async with asyncio.timeout(self._idle_timeout):
                return await anext(messages, None)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the rest of the request did not come within {self._idle_timeout:g} s"
            ) from None

    async def GetAudit(self, request: pb.GetAuditRequest, context: Any) -> pb.GetAuditResponse:
        """One audit as it stands."""
        audit = (await self._desk.audits()).get(_id(request))
        return pb.GetAuditResponse(audit=codec.from_audit(audit))

    async def ListAudits(
        self, request: pb.ListAuditsRequest, context: Any
    ) -> pb.ListAuditsResponse:
        """Every audit, newest first."""
        audits = await self._desk.audits()
        return pb.ListAuditsResponse(audits=map(codec.from_audit, audits.list()))

    async def WatchAudit(
        self, request: pb.WatchAuditRequest, context: Any
    ) -> AsyncIterator[pb.WatchAuditResponse]:
        """An audit whenever it changes, until its state is final."""
        audits, state = await self._desk.audits(), None
        async with aclosing(cast(Any, audits.watch(_id(request)))) as events:
            async for audit in events:
                yield pb.WatchAuditResponse(audit=codec.from_audit(audit))
                state = audit.state
        if state not in _FINAL:
            audits.get(request.id)  # which is gone

    async def CancelAudit(
        self, request: pb.CancelAuditRequest, context: Any
    ) -> pb.CancelAuditResponse:
        """Stop an audit."""
        audit = await (await self._desk.audits()).cancel(_id(request))
        return pb.CancelAuditResponse(audit=codec.from_audit(audit))

    async def ResumeAudit(
        self, request: pb.ResumeAuditRequest, context: Any
    ) -> pb.ResumeAuditResponse:
        """Go on with an audit."""
        audit = await (await self._desk.audits()).resume(_id(request))
        return pb.ResumeAuditResponse(audit=codec.from_audit(audit))

    async def DeleteAudit(
        self, request: pb.DeleteAuditRequest, context: Any
    ) -> pb.DeleteAuditResponse:
        """Forget an audit."""
        await (await self._desk.audits()).delete(_id(request))
        return pb.DeleteAuditResponse()

    async def GetAuditReport(self, request: pb.GetAuditReportRequest, context: Any) -> None:
        """A file of a finished audit; it is sent whole, even if the audit is deleted meanwhile."""
        form = codec.to_form(request.form)
        path = await (await self._desk.audits()).report(_id(request), form)
        with await asyncio.to_thread(path.open, "rb") as file:
            header = await asyncio.to_thread(_header, file, path)
            await self._send(context, pb.GetAuditReportResponse(header=header))
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                await self._send(context, pb.GetAuditReportResponse(chunk=chunk))

    async def _send(self, context: Any, message: pb.GetAuditReportResponse) -> None:
        try:
            async with asyncio.timeout(self._idle_timeout):
                await context.write(message)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the report was not taken within {self._idle_timeout:g} s"
            ) from None


def _id(request: Any) -> str:
    return required(request.id, "id", "an audit; ListAudits lists them")


def _header(file: BufferedReader, path: Path) -> pb.ReportHeader:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = file.tell()
    file.seek(0)
    media_type = _MEDIA_TYPES.get(path.suffix, "application/octet-stream")
    return pb.ReportHeader(name=path.name, media_type=media_type, size=size, sha256=digest)
