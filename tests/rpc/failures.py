"""Reads the `google.rpc` details of a failed call."""

from collections.abc import Callable
from dataclasses import dataclass

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass(frozen=True)
class Failure:
    code: grpc.StatusCode
    message: str
    reason: str
    domain: str
    fields: dict[str, str]
    retry_after: float | None
    request_id: str


def failure_of(call: Callable[[], object]) -> Failure:
    """What a call fails with; it must fail, with details of the server's."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    status = rpc_status.from_call(error)
    assert status is not None, (error.code(), error.details())
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    found = [detail.Unpack(kind) for detail in status.details for kind in (info, bad, retry)]
    assert sum(found) == len(status.details)
    metadata = dict(error.trailing_metadata())
    return Failure(
        code=error.code(),
        message=error.details(),
        reason=info.reason,
        domain=info.domain,
        fields={item.field: item.description for item in bad.field_violations},
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9 or None,
        request_id=metadata["x-request-id"],
    )
