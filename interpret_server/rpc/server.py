"""The server: every service on one port, over one worker."""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import DESCRIPTOR as REFLECTION

from interpret_api.open_inference import grpc_predict_v2_pb2, grpc_predict_v2_pb2_grpc
from interpret_api.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    chunked_service_pb2,
    chunked_service_pb2_grpc,
    interpret_service_pb2,
    interpret_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    plugin_service_pb2,
    plugin_service_pb2_grpc,
)

from ..data import DataRoot, DataWorker
from ..engine.api import Worker
from .audit_service import AuditDesk, Audits, AuditServicer
from .chunked_service import ChunkedServicer
from .interceptor import CallInterceptor
from .interpret_service import InterpretServicer
from .model_service import ModelServicer
from .names import Names
from .open_inference import OpenInferenceServicer
from .plugin_service import PluginServicer
from .reload import Reloader

SERVICES = tuple(
    service.full_name
    for file in (
        model_service_pb2.DESCRIPTOR,
        plugin_service_pb2.DESCRIPTOR,
        interpret_service_pb2.DESCRIPTOR,
        chunked_service_pb2.DESCRIPTOR,
        audit_service_pb2.DESCRIPTOR,
        grpc_predict_v2_pb2.DESCRIPTOR,
        health_pb2.DESCRIPTOR,
        REFLECTION,
    )
    for service in file.services_by_name.values()
)
_FLUSH = 0.5  # seconds for the last answers to leave; health watches never end by themselves
_STATUS = health_pb2.HealthCheckResponse


class AddressError(Exception):
    """The address cannot be listened on; the message is one sentence."""


class Server:
    """Serves a worker over gRPC, in the event loop that calls `start`.

    Args:
        worker: holds models and plugins; `stop` closes it.
        address: `host:port`; port 0 picks a free one.
        repository: folder whose models are served, and that `LoadModel` loads from, or None.
        repository_poll: seconds between two looks for changes in it; 0 looks on `reload` alone.
        data_root: folder of the data sets that calls may name, or None.
        max_message_bytes: largest message; a larger one gets RESOURCE_EXHAUSTED.
        max_request_bytes: most bytes of tensors and images of a chunked call, and of the rows of
            a data set.
        idle_timeout: seconds that a chunked call waits for its caller's next message.
        max_upload_bytes: largest model file that `UploadModel` takes.
        audits: makes what keeps audits, over the worker and the data sets; None for no audits.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        address: str = "127.0.0.1:0",
        repository: Path | None = None,
        repository_poll: float = 0.0,
        data_root: Path | None = None,
        max_message_bytes: int = 64 << 20,
        max_request_bytes: int = 256 << 20,
        idle_timeout: float = 60.0,
        max_upload_bytes: int = 2 << 30,
        audits: Callable[[Worker, DataRoot | None], Audits] | None = None,
    ) -> None:
        data = DataRoot(data_root) if data_root else None
        self._worker = Names(DataWorker(worker, data, max_request_bytes))
        self._audits = AuditDesk(audits and partial(audits, worker, data))
        self._address, self._repository = address, repository
        self._reloader = None if repository is None else Reloader(repository, self._worker)
        self._poll = repository_poll
        self._watching: asyncio.Task[None] | None = None
        self._max_message_bytes, self._max_upload_bytes = max_message_bytes, max_upload_bytes
        self._max_request_bytes, self._idle_timeout = max_request_bytes, idle_timeout
        self._health = health.aio.HealthServicer()
        self._serving = False

    async def start(self) -> str:
        """Listen; health says NOT_SERVING until `serve`. Returns the bound address.

        Raises:
            AddressError: the address is in use, or none of this machine's.
        """
        for service in ("", *SERVICES):
            await self._health.set(service, _STATUS.NOT_SERVING)
        self._server = aio.server(
            interceptors=[CallInterceptor()],
            options=[
                ("grpc.max_receive_message_length", self._max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Messages of megabytes in few frames and without waiting for window updates.
                ("grpc.http2.lookahead_bytes", 4 << 20),
                ("grpc.http2.max_frame_size", (1 << 24) - 1),
                # Otherwise a second server on the same port would take half of the calls.
                ("grpc.so_reuseport", 0),
            ],
        )
        self._add_services()
        try:
            port = self._server.add_insecure_port(self._address)
        except RuntimeError:
            port = 0
        if not port:
            raise AddressError(
                f"cannot listen on {self._address}: the port is in use or not allowed, or the "
                "host is not one of this machine's"
            )
        await self._server.start()
        return f"{self._address.rpartition(':')[0]}:{port}"

    def _add_services(self) -> None:
        worker, grpc = self._worker, self._server
        models = ModelServicer(worker, self._repository, self._max_upload_bytes)
        chunked = ChunkedServicer(worker, self._max_request_bytes, self._idle_timeout)
        audits = AuditServicer(self._audits, worker, self._idle_timeout)
        inference = OpenInferenceServicer(worker, lambda: self._serving)
        servicers: dict[Any, Any] = {
            model_service_pb2_grpc.add_ModelServiceServicer_to_server: models,
            plugin_service_pb2_grpc.add_PluginServiceServicer_to_server: PluginServicer(worker),
            interpret_service_pb2_grpc.add_InterpretServiceServicer_to_server: InterpretServicer(
                worker
            ),
            chunked_service_pb2_grpc.add_ChunkedServiceServicer_to_server: chunked,
            audit_service_pb2_grpc.add_AuditServiceServicer_to_server: audits,
            grpc_predict_v2_pb2_grpc.add_GRPCInferenceServiceServicer_to_server: inference,
            health_pb2_grpc.add_HealthServicer_to_server: self._health,
        }
        for add, servicer in servicers.items():
            add(servicer, grpc)
        reflection.enable_server_reflection(SERVICES, grpc)

    async def load_repository(self) -> tuple[str, ...]:
        """Load what the repository asks for, once; failures are logged.

        Returns:
            One sentence for everything of the repository that is not served.
        """
        return () if self._reloader is None else await self._reloader.update()

    def reload(self) -> None:
        """Look for changes in the repository now; what failed is tried again."""
        if self._reloader is not None:
            self._reloader.ask()

    async def resume_audits(self) -> None:
        """Go on with what an earlier server left; otherwise the first call about audits does.

        Raises:
            InterpretError: they cannot be opened.
        """
        await self._audits.audits()

    async def serve(self) -> None:
        """Report SERVING, and follow the changes of the repository from now on."""
        self._serving = True
        if self._reloader is not None:
            self._watching = asyncio.create_task(self._reloader.watch(self._poll))
        for service in ("", *SERVICES):
            await self._health.set(service, _STATUS.SERVING)

    async def stop(self, grace: float) -> None:
        """Report NOT_SERVING, refuse new calls, and give running ones `grace` seconds."""
        self._serving = False
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(grace + _FLUSH))
        began = time.monotonic()
        await self._audits.close(grace)
        await self._worker.close(max(grace - (time.monotonic() - began), 0.0))
        await self._server.stop(_FLUSH)
        await stopping
