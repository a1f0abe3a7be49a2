"""`ChunkedService`: calls whose tensors travel in chunks."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from interpret_api.v1 import chunked_service_pb2 as pb
from interpret_api.v1 import chunked_service_pb2_grpc

from ..engine import api
from ..errors import DeadlineExceeded, InvalidRequest, Overloaded
from . import codec
from .calls import result_of
from .methods import METHODS, Method
from .parts import Incoming, Outgoing

_REQUESTS = 4  # of the largest size, which may arrive at once; of smaller ones more

Messages = AsyncIterator[pb.CallRequest]


class ChunkedServicer(chunked_service_pb2_grpc.ChunkedServiceServicer):
    """Puts requests together from their chunks, hands them to the worker, and cuts the answers.

    Args:
        worker: holds the models.
        max_request_bytes: most bytes that a request may announce.
        idle_timeout: seconds that a call waits for its caller to send or to take a message.
    """

    def __init__(self, worker: api.Worker, max_request_bytes: int, idle_timeout: float) -> None:
        self._worker = worker
        self._max_request_bytes, self._idle_timeout = max_request_bytes, idle_timeout
        self._arriving = 0  # bytes of requests that are not complete

    async def Call(self, requests: Messages, context: Any) -> None:
        """One call; its fields are checked before its parts are read."""
        messages = aiter(requests)
        header = await self._header(messages)
        kind = header.WhichOneof("request")
        if kind is None:
            raise InvalidRequest.field("header.request", "give the request of one call")
        method, request = METHODS[kind], getattr(header, kind)
        parts = Incoming(header.part_sizes, self._max_request_bytes)
        call = method.to_call(request, context, parts)
        parts.check_taken()
        await self._receive(messages, parts)
        async with aclosing(self._events(method, _arrived(call, context))) as events:
            async for event in events:
                outgoing = Outgoing()
                answer = {kind: method.to_answer(request, event, outgoing)}
                response = pb.ResponseHeader(**cast(Any, answer), part_sizes=outgoing.sizes)
                await self._send(context, pb.CallResponse(header=response))
                for message in outgoing.messages():
                    await self._send(context, message)

    async def _events(self, method: Method, call: api.Call) -> AsyncGenerator[api.Event, None]:
        if not method.streams:
            yield await result_of(self._worker, call, method.fields)
            return
        async with aclosing(cast(Any, self._worker.run(call))) as events:
            async for event in events:
                yield event

    async def _header(self, messages: Messages) -> pb.RequestHeader:
        first = await self._next(messages)
        if first is None or first.WhichOneof("message") != "header":
            raise InvalidRequest.field("header", "the first message of a call carries the header")
        return first.header

    async def _receive(self, messages: Messages, parts: Incoming) -> None:
        """Read the chunks, and that nothing follows them."""
        arrived = 0
        try:
            while (message := await self._next(messages)) is not None:
                if message.WhichOneof("message") != "chunk":
                    raise InvalidRequest.field("chunk", "only the first message has a header")
                size = parts.fill(message.chunk)
                arrived += size
                self._arriving += size
                if self._arriving > _REQUESTS * self._max_request_bytes:
                    raise Overloaded("too many large requests are arriving; try again later")
        finally:
            self._arriving -= arrived
        parts.check_complete()

    async def _next(self, messages: Messages) -> pb.CallRequest | None:
        try:
            async with asyncio.timeout(self._idle_timeout):
                return await anext(messages, None)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the rest of the request did not come within {self._idle_timeout:g} s"
            ) from None

    async def _send(self, context: Any, message: pb.CallResponse) -> None:
        try:
            async with asyncio.timeout(self._idle_timeout):
                await context.write(message)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the answer was not taken within {self._idle_timeout:g} s"
            ) from None


def _arrived(call: api.Call, context: Any) -> api.Call:
    """The call with its images and the time that is left, once its parts have come."""
    inputs = tuple(map(bytes, call.inputs)) if isinstance(call.inputs, tuple) else call.inputs
    return replace(call, inputs=inputs, timeout=codec.to_timeout(context.time_remaining()))
