"""The calls about audits as descriptions, for both clients."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

from interpret_api.v1 import audit_service_pb2 as pb

from ._audit_codec import Attack, Data, Epsilon, decode_audit, encode_form, encode_spec
from ._parse import nothing
from ._requests import Call
from .audits import Audit
from .errors import InterpretClientError, InvalidRequest, ServerError
from .results import DataSet

_PATIENCE = 60.0  # seconds that a watcher waits for a server that has gone
_PAUSES = (0.1, 5.0)  # seconds between two tries, at first and at most


def audit(
    model: str,
    inputs: Any = None,
    labels: Any = None,
    *,
    dataset: DataSet | str | None = None,
    suite: str = "standard",
    norm: str = "linf",
    epsilon: Epsilon | None = None,
    threats: Mapping[str, Epsilon] | None = None,
    attacks: Sequence[Attack] | None = None,
    minimal: bool = True,
    seed: int = 0,
    batch_size: int | None = None,
    seconds: float | None = None,
    queries: int | None = None,
    title: str = "",
    confirm_small_epsilon: bool = False,
    timeout: float | None = None,
) -> Call[Audit]:
    """Find out how robust a model is: a job that goes on whoever leaves, server restarts included.

    The answer comes when the samples are stored and the audit is queued; `wait` for its end.

    Args:
        model: a loaded model of one input; the audit keeps a copy of its file.
        inputs: `(N, *input_shape)` in the model's bounds, paths or bytes of encoded images (JPEG,
            PNG), one per sample, or a `DataSet` on the server.
        labels: the true class of every sample, `(N,)`.
        dataset: a data set on the server that has labels, in place of both.
        suite: `quick` (few steps of gradient attacks), `standard` (the attacks of AutoAttack and
            smallest changes), `black_box` (attacks that need answers alone) or `corruption`
            (everyday faults of images, without epsilon).
        norm: `linf`, `l2` or `l1`.
        epsilon: radius in the units of the model's bounds, or several; each gets the whole suite.
        threats: norm -> epsilon or several, in place of `norm` and `epsilon`.
        attacks: plugins in turn, in place of those of a suite: names, or `{"plugin": "pgd",
            "name": "long", "params": {"steps": 500}}`.
        minimal: seek the smallest change of every sample, too; not in the suite quick.
        seed: sample i draws from seed + i.
        batch_size: samples of a batch; None for as many as the model takes, at most 128.
        seconds: of computing, after which no further batch begins.
        queries: that each black-box attack may spend on a sample.
        title: shown at the head of the report.
        confirm_small_epsilon: accept an epsilon under a thousandth of the width of the bounds.
        timeout: seconds that storing the samples may take; None for the client's own.

    Raises:
        InvalidRequest: `violations` names the fields that are wrong.
        NotFound: no such model, plugin or data set.
        FailedPrecondition: the model lacks what an attack requires, or states no bounds.
        MessageTooLarge: there are more samples than the server keeps.
    """
    if threats is not None and epsilon is not None:
        raise InvalidRequest.field("threats", "give threats, or norm and epsilon")
    if threats is None:
        threats = {} if epsilon is None else {norm: epsilon}
    spec = encode_spec(
        threats,
        attacks or (),
        suite,
        model=model,
        title=title,
        minimal=minimal,
        seed=seed,
        batch_size=batch_size,
        budget=pb.AuditBudget(seconds=seconds, queries=queries),
        confirm_small_epsilon=confirm_small_epsilon,
    )
    data = Data(inputs, labels, dataset)
    return Call("AuditService.CreateAudit", partial(data.messages, spec), answered, timeout=timeout)


def audits() -> Call[tuple[Audit, ...]]:
    """Every audit on the server, newest first."""
    return Call("AuditService.ListAudits", pb.ListAuditsRequest(), _listed, retry=True)


def get_audit(id: str) -> Call[Audit]:  # noqa: A002
    """One audit by its id. Raises NotFound."""
    return Call("AuditService.GetAudit", pb.GetAuditRequest(id=id), answered, retry=True)


def watch(number: str, timeout: float | None) -> Call[Audit]:
    """An audit whenever it changes."""
    request = pb.WatchAuditRequest(id=number)
    return Call("AuditService.WatchAudit", request, answered, timeout=timeout)


def cancel(number: str) -> Call[Audit]:
    """Stop an audit."""
    return Call("AuditService.CancelAudit", pb.CancelAuditRequest(id=number), answered)


def resume(number: str) -> Call[Audit]:
    """Go on with an audit."""
    return Call("AuditService.ResumeAudit", pb.ResumeAuditRequest(id=number), answered)


def delete(number: str) -> Call[None]:
    """Forget an audit."""
    return Call("AuditService.DeleteAudit", pb.DeleteAuditRequest(id=number), nothing)


def report(number: str, form: str) -> Call[pb.GetAuditReportResponse]:
    """A file of a finished audit, message by message."""
    request = pb.GetAuditReportRequest(id=number, form=encode_form(form))
    return Call("AuditService.GetAuditReport", request, lambda message: message)


def answered(answer: Any) -> Audit:
    """The answer's one audit."""
    return decode_audit(answer.audit)


def _listed(answer: pb.ListAuditsResponse) -> tuple[Audit, ...]:
    return tuple(decode_audit(message) for message in answer.audits)


class Download:
    """Puts a report together from its messages.

    Args:
        sink: where its bytes go.
    """

    def __init__(self, sink: BinaryIO) -> None:
        self._sink, self._digest, self._size = sink, hashlib.sha256(), 0
        self._header: pb.ReportHeader | None = None

    def add(self, message: pb.GetAuditReportResponse) -> None:
        """Take a message.

        Raises:
            ServerError: it is not the one that is due.
        """
        is_header = message.WhichOneof("message") == "header"
        if is_header != (self._header is None):
            raise ServerError("the server sent a report whose parts are out of order")
        if is_header:
            self._header = message.header
            return
        self._digest.update(message.chunk)
        self._size += len(message.chunk)
        self._sink.write(message.chunk)

    def finish(self) -> None:
        """Check that all of it came.

        Raises:
            ServerError: the size or the digest is not what was announced.
        """
        header = self._header or pb.ReportHeader()
        if (self._size, self._digest.hexdigest()) != (header.size, header.sha256):
            raise ServerError("the report did not come whole; ask for it again")


class Patience:
    """How long a watcher goes on.

    A server that has answered once and is then gone is waited for, since its audits go on when it
    is back.

    Args:
        timeout: seconds in all; None for no limit.
    """

    def __init__(self, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._heard: float | None = None
        self._pause = _PAUSES[0]

    def timeout(self) -> float | None:
        """Seconds left, or None for no limit."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 1e-3)

    def hear(self) -> None:
        """The server has answered."""
        self._heard, self._pause = time.monotonic(), _PAUSES[0]

    def pause_after(self, error: InterpretClientError) -> float:
        """Seconds until the next try. Raises `error` where none follows."""
        pause, left = self._pause, self.timeout()
        if (
            self._heard is None
            or time.monotonic() - self._heard > _PATIENCE
            or (left is not None and left <= pause)
        ):
            raise error
        self._pause = min(2 * pause, _PAUSES[1])
        return pause
