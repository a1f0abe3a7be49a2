"""The asynchronous client: the same methods as `interpret_client.Client`, to be awaited.

async with interpret_client.aio.connect("localhost:50051") as client:
    result = await client.run("saliency", "net", inputs)
    async for event in client.stream("class_visualization", "net", target=3): ...
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc
from google.protobuf.message import Message

from . import _audit_calls as audit_calls
from . import _calls as calls
from ._audit_run_aio import AsyncAuditRun
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
from ._chunks import Answer, Assembly, only
from ._requests import Call
from .audits import Audit
from .errors import ServerError, from_rpc
from .results import Event

__all__ = ["AsyncAuditRun", "AsyncClient", "AsyncEventStream", "connect"]

P = ParamSpec("P")
T = TypeVar("T")


async def _read_ahead(messages: Iterator[Message]) -> AsyncIterator[Message]:
    while (message := await asyncio.to_thread(next, messages, None)) is not None:
        yield message


async def _in_turn(messages: Iterator[Message]) -> AsyncIterator[Message]:
    for message in messages:
        yield message


async def _assembled(running: Any, kind: str | None) -> AsyncIterator[Answer]:
    assembly = None if kind is None else Assembly(kind)
    while (message := await running.read()) is not grpc.aio.EOF:
        answer = (message, ()) if assembly is None else assembly.add(message)
        if answer is not None:
            yield answer


async def _read(call: Call[T], running: Any) -> T:
    if call.chunked is None:
        return call.parse(await running)
    try:
        answers = [answer async for answer in _assembled(running, call.chunked)]
        return call.parse(*only(answers))
    except BaseException:
        running.cancel()
        raise


class AsyncEventStream(AsyncIterator[Event]):
    """The events of a running plugin: progress and previews, then exactly one result.

    The call starts with the first event that is asked for. Closing the stream, leaving its
    `async with` block, dropping it or cancelling the reading task cancels the call.
    """

    def __init__(
        self, start: Callable[[], Coroutine[Any, Any, tuple[Any, Call[Event]]]], address: str
    ) -> None:
        self._start = start
        self._running: Any = None
        self._call: Call[Event] | None = None
        self._answers: AsyncIterator[Answer] | None = None
        self._address = address
        self._answered = False
        self._closed = False

    async def __anext__(self) -> Event:
        if self._closed:
            raise StopAsyncIteration
        if self._call is None or self._answers is None:
            self._running, self._call = await self._start()
            self._answers = _assembled(self._running, self._call.chunked)
        try:
            answer = await anext(self._answers, None)
            if answer is None:
                if not self._answered:
                    raise ServerError("the server ended the stream without a result")
                raise StopAsyncIteration
            event = self._call.parse(*answer)
        except grpc.aio.AioRpcError as failure:
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
        if self._running is not None:
            self._running.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _awaitable(
    build: Callable[P, Call[T]],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        # Files are read and large arrays copied here, which would hold up the event loop.
        return await self._perform(await asyncio.to_thread(build, *args, **kwargs))

    describe(method, build, answer_type(build))
    return method


def _streaming(
    build: Callable[P, Call[Event]],
) -> Callable[Concatenate["AsyncClient", P], AsyncEventStream]:
    def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> AsyncEventStream:
        async def start() -> tuple[Any, Call[Event]]:
            return self._start(await asyncio.to_thread(build, *args, **kwargs))

        return AsyncEventStream(start, self.address)

    describe(method, build, AsyncEventStream)
    return method


def _auditing(
    build: Callable[P, Call[Audit]],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, AsyncAuditRun]]:
    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> AsyncAuditRun:
        call = await asyncio.to_thread(build, *args, **kwargs)
        return AsyncAuditRun(self, await self._perform(call))

    describe(method, build, AsyncAuditRun)
    return method


class AsyncClient:
    """A connection to a server, for one event loop. Made by `connect`."""

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
        self._channel = open_channel(
            address, tls, grpc.aio.insecure_channel, grpc.aio.secure_channel
        )
        self._methods = methods(self._channel)

    load_model = _awaitable(calls.load_model)
    unload_model = _awaitable(calls.unload_model)
    models = _awaitable(calls.models)
    model = _awaitable(calls.model)
    plugins = _awaitable(calls.plugins)
    plugin = _awaitable(calls.plugin)
    predict = _awaitable(calls.predict)
    gradient = _awaitable(calls.gradient)
    activations = _awaitable(calls.activations)
    run = _awaitable(calls.run)
    stream = _streaming(calls.stream)
    audit = _auditing(audit_calls.audit)
    get_audit = _auditing(audit_calls.get_audit)

    async def audits(self) -> tuple[AsyncAuditRun, ...]:
        """Every audit on the server, newest first."""
        found = await self._perform(audit_calls.audits())
        return tuple(AsyncAuditRun(self, audit) for audit in found)

    async def close(self) -> None:
        """Close the connection; calls that are running are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _perform(self, call: Call[T]) -> T:
        attempts = Attempts(call, self._timeout, self._tries)
        while True:
            try:
                return await _read(call, self._send(call, attempts))
            except grpc.aio.AioRpcError as failure:
                error = from_rpc(failure, self.address)
                error.__cause__ = failure
                await asyncio.sleep(attempts.wait_after(error))

    async def _follow(self, call: Call[T]) -> AsyncGenerator[T, None]:
        """The messages of a server's stream, without the client's own timeout."""
        running = self._send(call, Attempts(call, None, 1))
        try:
            async for message in running:
                yield call.parse(message)
        except grpc.aio.AioRpcError as failure:
            raise from_rpc(failure, self.address) from failure
        finally:
            running.cancel()

    def _start(self, call: Call[Event]) -> tuple[Any, Call[Event]]:
        attempts = Attempts(call, self._timeout, self._tries)
        return self._send(call, attempts), call

    def _send(self, call: Call[Any], attempts: Attempts) -> Any:
        request: Any = call.request
        if callable(request):
            request = _in_turn(request()) if call.chunked else _read_ahead(request())
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
) -> AsyncClient:
    """An asynchronous client; close it, or use it in an `async with` block.

    Call it inside a coroutine. The arguments are those of `interpret_client.connect`.
    """
    return AsyncClient(
        address, token=token, tls=tls, timeout=timeout, tries=tries, client_id=client_id
    )
