"""What both clients need to talk to a server: options, credentials, method tables, retries."""

import inspect
import re
import time
from collections.abc import Callable, Mapping
from functools import update_wrapper
from os import PathLike
from pathlib import Path
from typing import Any

import grpc

from interpret_api.v1.audit_service_pb2_grpc import AuditServiceStub
from interpret_api.v1.chunked_service_pb2_grpc import ChunkedServiceStub
from interpret_api.v1.interpret_service_pb2_grpc import InterpretServiceStub
from interpret_api.v1.model_service_pb2_grpc import ModelServiceStub
from interpret_api.v1.plugin_service_pb2_grpc import PluginServiceStub

from ._requests import Call
from .errors import InterpretClientError, InvalidRequest, Overloaded, Unavailable

Tls = bool | bytes | str | PathLike[str] | grpc.ChannelCredentials | None

SEND_LIMIT_BYTES = 64 << 20
TRIES = 3
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", SEND_LIMIT_BYTES),
    # Messages of megabytes in few frames and without waiting for window updates.
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.http2.max_frame_size", (1 << 24) - 1),
    # A server that comes back is found within the time that watchers of audits wait for it.
    ("grpc.max_reconnect_backoff_ms", 5000),
)
_STUBS: Mapping[str, Any] = {
    "AuditService": AuditServiceStub,
    "ChunkedService": ChunkedServiceStub,
    "InterpretService": InterpretServiceStub,
    "ModelService": ModelServiceStub,
    "PluginService": PluginServiceStub,
}


def open_channel(
    address: str,
    tls: Tls,
    insecure: Callable[..., Any],
    secure: Callable[..., Any],
) -> Any:
    """A channel made by `insecure` or `secure`, the constructors of `grpc` or of `grpc.aio`."""
    if tls is None or tls is False:
        return insecure(address, options=_OPTIONS)
    if not isinstance(tls, grpc.ChannelCredentials):
        roots = None if tls is True else tls if isinstance(tls, bytes) else Path(tls).read_bytes()
        tls = grpc.ssl_channel_credentials(root_certificates=roots)
    return secure(address, tls, options=_OPTIONS)


def methods(channel: Any) -> dict[str, Callable[..., Any]]:
    """`Service.Method` -> what calls it on this channel."""
    return {
        f"{service}.{name}": method
        for service, stub in _STUBS.items()
        for name, method in vars(stub(channel)).items()
    }


def metadata(token: str | None, client_id: str | None = None) -> tuple[tuple[str, str], ...]:
    """The metadata of every call. Raises InvalidRequest where the client's id is not printable."""
    found = [("authorization", f"Bearer {token}")] if token else []
    if client_id is not None:
        if not re.fullmatch(r"[\x20-\x7e]{1,128}", client_id):
            raise InvalidRequest.field("client_id", "give 1 to 128 printable ASCII characters")
        found.append(("x-client-id", client_id))
    return tuple(found)


def check_timeout(timeout: float | None) -> float | None:
    """The timeout itself. Raises InvalidRequest where it is not positive."""
    if timeout is not None and not timeout > 0:
        raise InvalidRequest.field("timeout", f"give more than 0 seconds, not {timeout}")
    return timeout


class Attempts:
    """The tries of one call: how long each may take, and whether another one follows.

    A call that may be repeated is tried again where the server was overloaded or not reachable,
    after the wait that the server suggests (else 0.1 s, then 0.2 s, ...), while time is left.
    """

    def __init__(self, call: Call[Any], timeout: float | None, tries: int) -> None:
        limit = check_timeout(call.timeout) if call.timeout is not None else timeout
        self._deadline = None if limit is None else time.monotonic() + limit
        self._left = tries if call.retry else 1
        self._wait = 0.1

    def timeout(self) -> float | None:
        """Seconds left, or None for no limit."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def wait_after(self, error: InterpretClientError) -> float:
        """Seconds to wait before the next try. Raises `error` where none follows."""
        self._left -= 1
        wait = self._wait if error.retry_after is None else error.retry_after
        timeout = self.timeout()
        if (
            not self._left
            or not isinstance(error, Overloaded | Unavailable)
            or (timeout is not None and wait >= timeout)
        ):
            raise error
        self._wait *= 2
        return wait


def describe(method: Any, build: Callable[..., Any], returns: Any) -> None:
    """Give a client's method the docstring and signature of what builds its call."""
    update_wrapper(method, build, assigned=("__name__", "__qualname__", "__doc__"), updated=())
    signature = inspect.signature(build)
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(
        parameters=[self, *signature.parameters.values()], return_annotation=returns
    )


def answer_type(build: Callable[..., Any]) -> Any:
    """T of a builder that returns `Call[T]`."""
    return inspect.signature(build).return_annotation.__args__[0]
