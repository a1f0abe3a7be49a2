"""Every error that may be shown to a caller, each with the gRPC status that it becomes.

    InterpretError                 INTERNAL
    ├── InvalidRequest             INVALID_ARGUMENT      a field of the request is wrong
    │   └── InvalidModel           INVALID_ARGUMENT      the file is corrupt or of another format
    ├── NotFound                   NOT_FOUND
    ├── AlreadyExists              ALREADY_EXISTS
    ├── FailedPrecondition         FAILED_PRECONDITION
    │   ├── MissingCapability      FAILED_PRECONDITION   the model lacks what the plugin requires
    │   └── ModelRejected          FAILED_PRECONDITION   a sound file that cannot be served
    ├── Overloaded                 RESOURCE_EXHAUSTED    carries when to retry
    ├── RequestTooLarge            RESOURCE_EXHAUSTED    no retry helps
    ├── Cancelled                  CANCELLED
    ├── DeadlineExceeded           DEADLINE_EXCEEDED
    └── Unavailable                UNAVAILABLE           shutting down, or a worker died

The message of an InterpretError is one sentence for the caller: it names the field and what to
do, and never holds a path or a traceback. Any other exception reaches a caller only as INTERNAL
with a request id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from grpc import StatusCode


@dataclass(frozen=True)
class Violation:
    """One wrong field of a request, by its path in the request (`params.epsilon`, `inputs`)."""

    field: str
    description: str


class InterpretError(Exception):
    """Base of the errors whose message is safe and useful to a caller."""

    code: ClassVar[StatusCode] = StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, violations: Sequence[Violation] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)


class InvalidRequest(InterpretError):
    """A field of the request is wrong; the same request can never succeed."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    @classmethod
    def field(cls, field: str, description: str) -> "InvalidRequest":
        """One wrong field: the message is `field: description`."""
        return cls(f"{field}: {description}", violations=(Violation(field, description),))

    def within(self, field: str) -> "InvalidRequest":
        """The same of parameters that stand in `field`: `params.x` becomes `<field>.params.x`."""
        violations = [
            Violation(f"{field}.{item.field}", item.description)
            if item.field.partition(".")[0] == "params"
            else item
            for item in self.violations
        ]
        told = "; ".join(f"{item.field}: {item.description}" for item in violations)
        return type(self)(told or self.message, violations=violations)


class InvalidModel(InvalidRequest):
    """The model file is corrupt, truncated, or not of the format that was named."""

    reason = "INVALID_MODEL"


class NotFound(InterpretError):
    """No model, plugin or layer of that name."""

    code = StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(InterpretError):
    """The name is taken by something else."""

    code = StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class FailedPrecondition(InterpretError):
    """The request is well formed, but the server or the model cannot do it as things are."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class MissingCapability(FailedPrecondition):
    """The plugin requires a capability that the model lacks; the message says why it lacks it."""

    reason = "MISSING_CAPABILITY"


class ModelRejected(FailedPrecondition):
    """The file is sound, but what it computes cannot be represented or verified."""

    reason = "MODEL_REJECTED"


class Overloaded(InterpretError):
    """The queue is full; `retry_after` is the suggested wait in seconds."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"

    def __init__(self, message: str, *, retry_after: float = 0.25) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RequestTooLarge(InterpretError):
    """The request has more bytes than the server takes; the same request can never succeed."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "REQUEST_TOO_LARGE"


class Cancelled(InterpretError):
    """Nobody waits for the answer any more; raised inside a plugin by `Job.track`."""

    code = StatusCode.CANCELLED
    reason = "CANCELLED"


class DeadlineExceeded(InterpretError):
    """The caller's deadline passed before the answer was ready."""

    code = StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Unavailable(InterpretError):
    """The server is shutting down or lost the model's worker; the request may be retried."""

    code = StatusCode.UNAVAILABLE
    reason = "UNAVAILABLE"
