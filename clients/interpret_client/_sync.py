"""The blocking client."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from . import _audit_calls as audit_calls
from . import _calls as calls
from ._audit_run import AuditRun
from ._channel import (
    TRIES,
    Attempts,
    Tls,
    answer_type,
    check_timeout,
    describe,
    metadata,
    methods,
    open_channel,
)
from ._chunks import assembled, only
from ._requests import Call
from .audits import Audit
from .errors import ServerError, from_rpc
from .results import Event

P = ParamSpec("P")
T = TypeVar("T")


class EventStream(Iterator[Event]):
    """The events of a running plugin: progress and previews, then exactly one result.

    Closing it, leaving its `with` block, dropping it or Ctrl-C cancels the call.
    """

    def __init__(self, running: Any, call: Call[Event], address: str) -> None:
        self._running = running
        self._answers = assembled(running, call.chunked)
        self._call = call
        self._address = address
        self._answered = False
        self._closed = False

    def __next__(self) -> Event:
        if self._closed:
            raise StopIteration
        try:
            event = self._call.parse(*next(self._answers))
        except StopIteration:
            if not self._answered:
                raise ServerError("the server ended the stream without a result") from None
            raise
        except grpc.RpcError as failure:
            self.close()
            raise from_rpc(failure, self._address) from failure
        except BaseException:
            self.close()
            raise
        self._answered = self._answered or event.result is not None
        return event

    def close(self) -> None:
        """Cancel the call, if it is still running."""
        self._closed = True
        self._running.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _read(call: Call[T], running: Any) -> T:
    if call.chunked is None:
        return call.parse(running)
    try:
        return call.parse(*only(assembled(running, call.chunked)))
    except BaseException:
        running.cancel()
        raise


def _blocking(build: Callable[P, Call[T]]) -> Callable[Concatenate["Client", P], T]:
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._perform(build(*args, **kwargs))

    describe(method, build, answer_type(build))
    return method


def _streaming(
    build: Callable[P, Call[Event]],
) -> Callable[Concatenate["Client", P], EventStream]:
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> EventStream:
        return self._start(build(*args, **kwargs))

    describe(method, build, EventStream)
    return method


def _auditing(build: Callable[P, Call[Audit]]) -> Callable[Concatenate["Client", P], AuditRun]:
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> AuditRun:
        return AuditRun(self, self._perform(build(*args, **kwargs)))

    describe(method, build, AuditRun)
    return method


class Client:
    """A connection to a server; may be shared between threads. Made by `connect`."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: Tls = None,
        timeout: float | None = None,
        tries: int = TRIES,
        client_id: str | None = None,
    ) -> None:
        self.address = address
        self._timeout = check_timeout(timeout)
        self._tries = max(tries, 1)
        self._metadata = metadata(token, client_id)
        self._channel = open_channel(address, tls, grpc.insecure_channel, grpc.secure_channel)
        self._methods = methods(self._channel)

    load_model = _blocking(calls.load_model)
    unload_model = _blocking(calls.unload_model)
    models = _blocking(calls.models)
    model = _blocking(calls.model)
    plugins = _blocking(calls.plugins)
    plugin = _blocking(calls.plugin)
    predict = _blocking(calls.predict)
    gradient = _blocking(calls.gradient)
    activations = _blocking(calls.activations)
    run = _blocking(calls.run)
    stream = _streaming(calls.stream)
    audit = _auditing(audit_calls.audit)
    get_audit = _auditing(audit_calls.get_audit)

    def audits(self) -> tuple[AuditRun, ...]:
        """Every audit on the server, newest first."""
        return tuple(AuditRun(self, audit) for audit in self._perform(audit_calls.audits()))

    def close(self) -> None:
        """Close the connection; calls that are running are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _perform(self, call: Call[T]) -> T:
        attempts = Attempts(call, self._timeout, self._tries)
        while True:
            try:
                return _read(call, self._send(call, attempts))
            except grpc.RpcError as failure:
                error = from_rpc(failure, self.address)
                error.__cause__ = failure
                time.sleep(attempts.wait_after(error))

    def _follow(self, call: Call[T]) -> Iterator[T]:
        """The messages of a server's stream, without the client's own timeout."""
        running = self._send(call, Attempts(call, None, 1))
        try:
            for message in running:
                yield call.parse(message)
        except grpc.RpcError as failure:
            raise from_rpc(failure, self.address) from failure
        finally:
            running.cancel()

    def _start(self, call: Call[Event]) -> EventStream:
        attempts = Attempts(call, self._timeout, self._tries)
        return EventStream(self._send(call, attempts), call, self.address)

    def _send(self, call: Call[Any], attempts: Attempts) -> Any:
        request = call.request() if callable(call.request) else call.request
        return self._methods[call.method](
            request, timeout=attempts.timeout(), metadata=self._metadata
        )


def connect(
    address: str,
    *,
    token: str | None = None,
    tls: Tls = None,
    timeout: float | None = None,
    tries: int = TRIES,
    client_id: str | None = None,
) -> Client:
    """A client of the server at `address`; close it, or use it in a `with` block.

    Nothing is sent yet: a server that is not there shows with the first call.

    Args:
        address: `host:port`.
        token: sent as a bearer token with every call; use it with `tls` only, outside one's own
            machine.
        tls: None for an unencrypted connection; True to trust the system's authorities; the
            path or bytes of a PEM file with the authorities to trust; or credentials made by
            `grpc.ssl_channel_credentials`.
        timeout: seconds that each call may take, unless it says otherwise; None for no limit.
        tries: how often to try a call that changes nothing, where the server is overloaded or
            not reachable.
        client_id: who calls, 1 to 128 printable ASCII characters: the server shares its devices
            fairly between clients; None to be told apart by address.
    """
    return Client(address, token=token, tls=tls, timeout=timeout, tries=tries, client_id=client_id)
