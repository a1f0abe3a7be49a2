"""`InterpretService`: runs plugins."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from interpret_api.v1 import interpret_service_pb2 as pb
from interpret_api.v1 import interpret_service_pb2_grpc

from ..engine.api import Worker
from .calls import result_of
from .methods import METHODS


class InterpretServicer(interpret_service_pb2_grpc.InterpretServiceServicer):
    """Hands calls to the worker; a caller that goes away takes its call along."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def Run(self, request: pb.RunRequest, context: Any) -> pb.RunResponse:
        """The result alone."""
        method = METHODS["run"]
        result = await result_of(self._worker, method.to_call(request, context, None))
        return cast(pb.RunResponse, method.to_answer(request, result, None))

    async def RunStream(
        self, request: pb.RunStreamRequest, context: Any
    ) -> AsyncIterator[pb.RunStreamResponse]:
        """Progress and previews in order, then exactly one result or one error."""
        method = METHODS["run_stream"]
        call = method.to_call(request, context, None)
        async with aclosing(cast(Any, self._worker.run(call))) as events:
            async for event in events:
                yield method.to_answer(request, event, None)
