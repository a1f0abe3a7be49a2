"""`PluginService`: which plugins there are, with the schemas of their parameters."""

from typing import Any

from interpret_api.v1 import plugin_service_pb2 as pb
from interpret_api.v1 import plugin_service_pb2_grpc

from ..engine.api import PluginInfo, Worker
from ..errors import NotFound
from . import codec
from .descriptions import from_plugin


def public_plugins(worker: Worker) -> dict[str, PluginInfo]:
    """The plugins that callers may name; the engine's primitives have RPCs of their own."""
    return {info.name: info for info in worker.plugins() if not info.name.startswith("_")}


class PluginServicer(plugin_service_pb2_grpc.PluginServiceServicer):
    """Answers from what the worker said of its plugins."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def ListPlugins(
        self, request: pb.ListPluginsRequest, context: Any
    ) -> pb.ListPluginsResponse:
        """Every plugin, or those of one kind."""
        found = public_plugins(self._worker).values()
        return pb.ListPluginsResponse(
            plugins=[from_plugin(info) for info in found if request.kind in ("", info.kind)]
        )

    async def GetPlugin(self, request: pb.GetPluginRequest, context: Any) -> pb.GetPluginResponse:
        """One plugin by name. Raises NotFound."""
        name = codec.required(request.name, "name", "a plugin; ListPlugins lists them")
        found = public_plugins(self._worker)
        if name not in found:
            raise unknown_plugin(name)
        return pb.GetPluginResponse(plugin=from_plugin(found[name]))


def unknown_plugin(name: str) -> NotFound:
    """The error for a name that no plugin has."""
    return NotFound(f"there is no plugin {name!r}; ListPlugins lists those that there are")
