"""What a caller sees of an error: the gRPC status, one sentence, and `google.rpc` details."""

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import Status
from grpc_status import rpc_status

from ..errors import InterpretError, Overloaded, Violation

DOMAIN = "interpret-server"
_MESSAGE_LENGTH = 1000  # characters
_DETAILS_SIZE = 2500  # bytes; clients accept 8 KiB of metadata, and details travel as base64


def _clip(text: str, length: int = _MESSAGE_LENGTH) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _bad_request(violations: tuple[Violation, ...], room: int) -> error_details_pb2.BadRequest:
    detail = error_details_pb2.BadRequest()
    for violation in violations:
        detail.field_violations.add(
            field=_clip(violation.field, 200), description=_clip(violation.description, 400)
        )
        if detail.ByteSize() > room:
            del detail.field_violations[-1]
            break
    return detail


def to_status(error: InterpretError, request_id: str) -> Status:
    """The status of an error, with ErrorInfo, and BadRequest or RetryInfo where they apply.

    Sentences and lists of violations are cut where they would outgrow a client's metadata limit.
    """
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason, domain=DOMAIN, metadata={"request_id": request_id}
        )
    ]
    if error.violations:
        details.append(_bad_request(error.violations, _DETAILS_SIZE))
    if isinstance(error, Overloaded):
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=error.code.value[0], message=_clip(error.message))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return rpc_status.to_status(status)
