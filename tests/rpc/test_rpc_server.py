"""Start, health, reflection and shutdown, over a fake worker."""

import asyncio
import subprocess
import sys

import grpc
import pytest
from fake_worker import FakeWorker
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from interpret_server.errors import InterpretError
from interpret_server.rpc.server import SERVICES, AddressError, Server
from interpret_server.testing.server import serve

NAMES = [
    "interpret_api.v1.ModelService",
    "interpret_api.v1.PluginService",
    "interpret_api.v1.InterpretService",
    "interpret_api.v1.ChunkedService",
    "interpret_api.v1.AuditService",
    "inference.GRPCInferenceService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
]


async def health_of(address: str, service: str = "") -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


def test_reflection_lists_every_service(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert sorted(database.get_services()) == sorted(NAMES)
    file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
    assert file.package == "inference"


@pytest.mark.parametrize("service", ["", *NAMES])
def test_every_service_reports_its_health(channel: grpc.Channel, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    answer = health_pb2_grpc.HealthStub(channel).Check(request)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_an_unknown_service_has_no_health(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_follows_the_server(worker: FakeWorker) -> None:
    status = health_pb2.HealthCheckResponse
    server = Server(worker)
    address = await server.start()
    assert await health_of(address) == status.NOT_SERVING
    await server.serve()
    assert await health_of(address, SERVICES[0]) == status.SERVING
    async with grpc.aio.insecure_channel(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == status.SERVING
        stopping = asyncio.create_task(server.stop(60))
        assert (await watch.read()).status == status.NOT_SERVING
        # A watch never ends by itself; it must not hold the server for its grace.
        await asyncio.wait_for(stopping, 30)
    assert worker.closed_with == pytest.approx(60, abs=1)


async def test_an_address_in_use_is_refused(worker: FakeWorker) -> None:
    first = Server(worker)
    address = await first.start()
    with pytest.raises(AddressError, match=f"cannot listen on {address}"):
        await Server(FakeWorker(), address=address).start()
    await first.stop(0)


async def test_a_host_of_another_machine_is_refused(worker: FakeWorker) -> None:
    with pytest.raises(AddressError, match=r"192\.0\.2\.1"):
        await Server(worker, address="192.0.2.1:0").start()


async def test_an_ipv6_address_is_bound(worker: FakeWorker) -> None:
    server = Server(worker, address="[::1]:0")
    try:
        address = await server.start()
    except AddressError:
        pytest.skip("this machine has no IPv6")
    assert address.startswith("[::1]:")
    assert await health_of(address) == health_pb2.HealthCheckResponse.NOT_SERVING
    await server.stop(0)


def test_serve_ends_the_server_when_a_model_does_not_load(worker: FakeWorker, tmp_path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"rejected")
    with pytest.raises(InterpretError), serve(worker=worker, models={"bad": path}):
        pass
    assert worker.closed_with is not None


def test_serve_loads_files_with_and_without_a_manifest(worker: FakeWorker, tmp_path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"file")
    with serve(worker=worker, models={"a": path, "b": (path, {"version": "7"})}):
        assert {info.name: info.version for info in worker.models()} == {
            "net": "3",
            "a": "1",
            "b": "7",
        }


def test_the_front_end_imports_no_torch() -> None:
    code = (
        "import pkgutil, importlib, sys, interpret_server.rpc as rpc\n"
        "names = [item.name for item in pkgutil.iter_modules(rpc.__path__)]\n"
        "[importlib.import_module(f'interpret_server.rpc.{name}') for name in names]\n"
        "import interpret_server.cli\n"
        "print(len(names), 'torch' in sys.modules, 'onnx' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *imported = run.stdout.split()
    assert int(count) >= 10
    assert imported == ["False", "False"]
