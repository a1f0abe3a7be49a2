"""Around every call: a request id, request parsing, and errors turned into statuses."""

import asyncio
import inspect
import logging
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from ..errors import InterpretError, InvalidRequest
from .status import to_status

REQUEST_ID = "x-request-id"
_VALID_ID = re.compile(r"[\x21-\x7e]{1,128}")
_logger = logging.getLogger(__name__)

Behaviour = Callable[[Any, Any], Any]
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any]"]]


def _request_id(metadata: Sequence[tuple[str, str | bytes]] | None) -> str:
    for key, value in metadata or ():
        if key == REQUEST_ID and isinstance(value, str) and _VALID_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex


def _parse(deserialize: Callable[[bytes], Any] | None, data: Any) -> Any:
    try:
        return data if deserialize is None else deserialize(data)
    except DecodeError:
        raise InvalidRequest(
            "the request cannot be parsed; compare the client's .proto files with the server's"
        ) from None


async def _parse_each(
    deserialize: Callable[[bytes], Any] | None, stream: Any
) -> AsyncIterator[Any]:
    async for data in stream:
        yield _parse(deserialize, data)


def _for_caller(failure: Exception, method: str, request_id: str) -> InterpretError:
    if isinstance(failure, InterpretError) and failure.code is not grpc.StatusCode.INTERNAL:
        return failure
    _logger.error("request %s: %s failed", request_id, method, exc_info=failure)
    return InterpretError(f"internal error; request id {request_id}")


class CallInterceptor(aio.ServerInterceptor):
    """Gives every call its request id and every failure its status.

    The id is the client's `x-request-id` where it sent one of 1 to 128 printable characters, else
    a new one; it comes back in the trailing metadata. An `InterpretError` becomes its own status.
    Any other exception becomes INTERNAL; what is INTERNAL is logged with the id, and names it.
    """

    async def intercept_service(  # type: ignore[override]
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        request_id = _request_id(handler_call_details.invocation_metadata)
        streams = (handler.request_streaming, handler.response_streaming)
        behaviour, make = {
            (False, False): (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
            (False, True): (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
            (True, False): (handler.stream_unary, grpc.stream_unary_rpc_method_handler),
            (True, True): (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
        }[streams]
        parse = _parse_each if handler.request_streaming else _parse

        async def guarded(data: Any, context: Any) -> Any:
            context.set_trailing_metadata(((REQUEST_ID, request_id),))
            try:
                request = parse(handler.request_deserializer, data)
                if inspect.isasyncgenfunction(behaviour):
                    # Written here, so that a cancelled call closes the generator at once.
                    async with aclosing(behaviour(request, context)) as responses:
                        async for response in responses:
                            await context.write(response)
                    return None
                return await behaviour(request, context)
            except (asyncio.CancelledError, aio.AbortError):
                raise
            except aio.InternalError:  # a message cannot be sent: the caller has gone
                raise asyncio.CancelledError from None
            except Exception as error:
                failure = error
            status: Any = to_status(_for_caller(failure, method, request_id), request_id)
            del failure  # its traceback holds this frame, and those that hold the model
            return await context.abort(
                status.code,
                status.details,
                (*status.trailing_metadata, (REQUEST_ID, request_id)),
            )

        made: grpc.RpcMethodHandler[Any, Any] = make(guarded, None, handler.response_serializer)
        return made
