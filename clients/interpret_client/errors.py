"""Every error that the client raises.

    InterpretClientError
    ├── InvalidRequest (also a ValueError)   an argument is wrong: see `violations`
    ├── NotFound                             no model, plugin or layer of that name
    ├── AlreadyExists                        the name is taken
    ├── FailedPrecondition                   the model or the server cannot do this as things are
    ├── Overloaded                           the queue is full: see `retry_after`
    ├── MessageTooLarge                      the request or the answer exceeds a size limit
    ├── Cancelled                            the call was cancelled
    ├── DeadlineExceeded                     no answer within the timeout
    ├── Unavailable                          no server answers, or it is shutting down
    ├── Unauthenticated                      the token is missing or wrong
    ├── PermissionDenied                     the token does not allow this call
    └── ServerError                          the server failed: see `request_id`

The message is the server's sentence. `reason` is the server's finer word for the same thing
(`MISSING_CAPABILITY`, `INVALID_MODEL`, ...), or empty where none was given.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class Violation:
    """One wrong field of a request, by its path in the request (`params.epsilon`, `inputs`)."""

    field: str
    description: str


class InterpretClientError(Exception):
    """Base of every error that the client raises.

    Attributes:
        message: one sentence.
        reason: the server's finer word for the error, or empty.
        violations: the fields that are wrong, where the server named them.
        request_id: the number under which the server's log tells more, or empty.
        retry_after: seconds after which the server suggests to try again, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        violations: Iterable[Violation] = (),
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.violations = tuple(violations)
        self.request_id = request_id
        self.retry_after = retry_after


class InvalidRequest(InterpretClientError, ValueError):
    """An argument is wrong; the same call can never succeed. `violations` names the fields."""

    @classmethod
    def field(cls, field: str, description: str) -> Self:
        """One wrong field, found before anything was sent."""
        violation = Violation(field, description)
        return cls(f"{field}: {description}", reason="INVALID_REQUEST", violations=(violation,))


class NotFound(InterpretClientError):
    """No model, plugin or layer of that name."""


class AlreadyExists(InterpretClientError):
    """The name is taken by something else."""


class FailedPrecondition(InterpretClientError):
    """The request is well formed, but the model or the server cannot do it as things are."""


class Overloaded(InterpretClientError):
    """The server's queue is full; `retry_after` is the suggested wait in seconds."""


class MessageTooLarge(InterpretClientError):
    """A message exceeds a size limit: send fewer rows, or ask for half precision."""


class Cancelled(InterpretClientError):
    """The call was cancelled."""


class DeadlineExceeded(InterpretClientError):
    """No answer came within the timeout."""


class Unavailable(InterpretClientError):
    """No server answers, it is shutting down, or it lost the model's worker."""


class Unauthenticated(InterpretClientError):
    """The token is missing or wrong."""


class PermissionDenied(InterpretClientError):
    """The token does not allow this call."""


class ServerError(InterpretClientError):
    """The server failed; its log tells more under `request_id`."""


class RpcFailure(Protocol):
    """What the failures of `grpc` and of `grpc.aio` share."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Any: ...


_CLASSES: dict[grpc.StatusCode, type[InterpretClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
}


def from_rpc(failure: RpcFailure, address: str) -> InterpretClientError:
    """The client's error for a failed call to the server at `address`."""
    code, sentence = failure.code(), failure.details() or ""
    attributes = _attributes(failure)
    cls = _CLASSES.get(code, ServerError)
    if cls is Overloaded and attributes.get("reason") == "REQUEST_TOO_LARGE":
        return MessageTooLarge(sentence, **attributes)
    if cls is Overloaded and "larger than max" in sentence:
        return MessageTooLarge(
            f"a message exceeds the size limit; send fewer rows in one call ({sentence})"
        )
    if cls is Overloaded:
        attributes.setdefault("retry_after", 0.25)
    if not attributes.get("reason"):
        sentence = _without_server(cls, sentence, address)
    return cls(sentence or f"the server answered {code.name} and no more", **attributes)


def _without_server(cls: type[InterpretClientError], sentence: str, address: str) -> str:
    """A sentence for what gRPC itself reports in its own terms."""
    if cls is Unavailable:
        return f"no server answers at {address} ({sentence})"
    if cls is DeadlineExceeded:
        return f"no answer from {address} within the timeout"
    if cls is Cancelled:
        return "the call was cancelled"
    return sentence


def _attributes(failure: RpcFailure) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for detail in _details(failure):
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            found["violations"] = tuple(
                Violation(item.field, item.description) for item in bad.field_violations
            )
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            found["retry_after"] = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            found["reason"] = info.reason
            if request_id := info.metadata.get("request_id"):
                found["request_id"] = request_id
        elif detail.Is(error_details_pb2.RequestInfo.DESCRIPTOR):
            request = error_details_pb2.RequestInfo()
            detail.Unpack(request)
            found["request_id"] = request.request_id
    return found


def _details(failure: RpcFailure) -> Iterable[Any]:
    for key, value in failure.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            return tuple(status.details)
    return ()
