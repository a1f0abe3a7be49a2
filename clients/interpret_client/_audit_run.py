"""An audit on a server, for the blocking client."""

import io
import time
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, overload

from . import _audit_calls as calls
from ._audit_files import Destination
from .audits import Audit
from .errors import Cancelled, DeadlineExceeded, FailedPrecondition, ServerError, Unavailable

if TYPE_CHECKING:
    from ._sync import Client


class AuditHandle:
    """What both clients' handles of an audit share.

    Attributes:
        audit: how it stood when the server was last asked.
    """

    def __init__(self, audit: Audit) -> None:
        self.audit = audit

    @property
    def id(self) -> str:
        """Unique on the server."""
        return self.audit.id

    def __repr__(self) -> str:
        kind, model = type(self).__name__, self.audit.spec["model"]
        return f"<{kind} {self.id} of {model}: {self.audit.state}>"

    def _heard(self, audit: Audit) -> Audit:
        self.audit = audit
        return audit


class AuditRun(AuditHandle):
    """An audit on a server, where it goes on whether anybody waits for it or not.

    Made by `Client.audit`, `audits` and `get_audit`.
    """

    def __init__(self, client: "Client", audit: Audit) -> None:
        super().__init__(audit)
        self._client = client

    def status(self) -> Audit:
        """How it stands now. Raises NotFound once it is deleted."""
        return self._heard(self._client._perform(calls.get_audit(self.id)))

    def watch(self, *, timeout: float | None = None) -> Iterator[Audit]:
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
                for audit in self._client._follow(calls.watch(self.id, patience.timeout())):
                    patience.hear()
                    if audit != last:
                        last = audit
                        yield self._heard(audit)
            except Unavailable as error:
                time.sleep(patience.pause_after(error))
                continue
            if last is None or not last.ended:
                raise ServerError("the server ended the stream before the audit's end")
            return

    def wait(
        self,
        progress: Callable[[Audit], object] | None = None,
        timeout: float | None = None,
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
            for audit in self.watch(timeout=timeout):
                if progress is not None:
                    progress(audit)
        except DeadlineExceeded:
            raise still_running(self.audit, timeout) from None
        return finished(self.audit)

    def cancel(self) -> Audit:
        """Stop it; what is finished of it stays."""
        return self._heard(self._client._perform(calls.cancel(self.id)))

    def resume(self) -> Audit:
        """Go on with it after it was cancelled or has failed. Raises FailedPrecondition."""
        return self._heard(self._client._perform(calls.resume(self.id)))

    def delete(self) -> None:
        """Have the server forget it with everything that is stored of it."""
        self._client._perform(calls.delete(self.id))

    @overload
    def report(self, form: str = ..., path: None = ...) -> bytes: ...
    @overload
    def report(self, form: str, path: str | PathLike[str], *, overwrite: bool = ...) -> Path: ...
    def report(
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
            self._fetch(form, sink)
            return sink.getvalue()
        destination = Destination(path, form, overwrite=overwrite)
        try:
            self._fetch(form, destination.file)
            return destination.finish()
        finally:
            destination.close()

    def _fetch(self, form: str, sink: BinaryIO) -> None:
        download = calls.Download(sink)
        for message in self._client._follow(calls.report(self.id, form)):
            download.add(message)
        download.finish()


def finished(audit: Audit) -> Audit:
    """The audit itself.

    Raises:
        FailedPrecondition, Cancelled: it ended before it was finished.
    """
    if audit.state == "failed":
        raise FailedPrecondition(f"the audit {audit.id} failed: {audit.error}")
    if audit.state != "finished":
        raise Cancelled(f"the audit {audit.id} was cancelled; it may be resumed")
    return audit


def still_running(audit: Audit, timeout: float | None) -> DeadlineExceeded:
    """The error for an audit that takes longer than somebody waits."""
    return DeadlineExceeded(f"the audit {audit.id} is still {audit.state} after {timeout:g} s")
