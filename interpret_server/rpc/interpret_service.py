"""`InterpretService`: runs plugins."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from interpret_api.v1 import interpret_service_pb2 as pb
from interpret_api.v1 import interpret_service_pb2_grpc

from ..engine.api import Call, Worker
from . import codec
from .calls import result_of
from .plugin_service import unknown_plugin


class InterpretServicer(interpret_service_pb2_grpc.InterpretServiceServicer):
    """Hands calls to the worker; a caller that goes away takes its call along."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def Run(self, request: pb.RunRequest, context: Any) -> pb.RunResponse:
        """The result alone."""
        result = await result_of(self._worker, _call(request, context))
        response = pb.RunResponse()
        codec.from_result(result, response.result)
        return response

    async def RunStream(
        self, request: pb.RunStreamRequest, context: Any
    ) -> AsyncIterator[pb.RunStreamResponse]:
        """Progress and previews in order, then exactly one result or one error."""
        call = _call(request.request, context, previews=request.previews)
        async with aclosing(cast(Any, self._worker.run(call))) as events:
            async for event in events:
                yield codec.from_event(event)


def _call(request: pb.RunRequest, context: Any, *, previews: bool = False) -> Call:
    timeout = codec.to_timeout(context.time_remaining())
    call = codec.to_call(request, previews=previews, timeout=timeout)
    if call.plugin.startswith("_"):
        raise unknown_plugin(call.plugin)
    return call
