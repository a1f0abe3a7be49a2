"""Models that the front end loads for itself do not exist for callers."""

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from failures import failure_of
from fake_worker import INFO, FakeWorker
from grpc import StatusCode

from interpret_api.open_inference import grpc_predict_v2_pb2 as inference
from interpret_api.open_inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from interpret_api.v1 import interpret_service_pb2 as interpret
from interpret_api.v1 import model_service_pb2 as models
from interpret_api.v1.interpret_service_pb2_grpc import InterpretServiceStub
from interpret_api.v1.model_service_pb2_grpc import ModelServiceStub
from interpret_server.data import DataWorker
from interpret_server.engine.api import Call
from interpret_server.errors import InvalidRequest, NotFound
from interpret_server.models.manifest import Manifest
from interpret_server.rpc.names import Names

HIDDEN = "_audit-7"


@pytest.fixture
async def worker(tmp_path: Path) -> FakeWorker:
    worker = FakeWorker()
    path = tmp_path / "model.pt"
    path.write_bytes(b"file")
    await worker.load(HIDDEN, path, Manifest())
    return worker


def test_callers_are_not_told_of_hidden_models(channel: grpc.Channel) -> None:
    listed = ModelServiceStub(channel).ListModels(models.ListModelsRequest()).models
    assert [model.name for model in listed] == ["net"]
    ready = GRPCInferenceServiceStub(channel).ModelReady(inference.ModelReadyRequest(name=HIDDEN))
    assert not ready.ready


@pytest.mark.parametrize("name", [HIDDEN, "_audit-of-nothing"])
def test_callers_reach_no_hidden_model(
    channel: grpc.Channel, worker: FakeWorker, name: str
) -> None:
    stub, other = ModelServiceStub(channel), GRPCInferenceServiceStub(channel)
    explain = InterpretServiceStub(channel)
    inputs = [inference.ModelInferRequest.InferInputTensor(name="x", shape=[1], datatype="FP32")]
    upload = [
        models.UploadModelRequest(header=models.UploadHeader(name=name, replace=True)),
        models.UploadModelRequest(chunk=b"file"),
    ]
    attempts: dict[Callable[[], object], StatusCode] = {
        lambda: stub.GetModel(models.GetModelRequest(name=name)): StatusCode.NOT_FOUND,
        lambda: stub.UnloadModel(models.UnloadModelRequest(name=name)): StatusCode.NOT_FOUND,
        lambda: stub.UploadModel(iter(upload)): StatusCode.INVALID_ARGUMENT,
        lambda: other.ModelMetadata(
            inference.ModelMetadataRequest(name=name)
        ): StatusCode.NOT_FOUND,
        lambda: other.ModelInfer(
            inference.ModelInferRequest(model_name=name, inputs=inputs)
        ): StatusCode.NOT_FOUND,
        lambda: explain.Run(interpret.RunRequest(model=name, plugin="echo")): StatusCode.NOT_FOUND,
        lambda: list(
            explain.RunStream(
                interpret.RunStreamRequest(request=interpret.RunRequest(model=name, plugin="echo"))
            )
        ): StatusCode.NOT_FOUND,
        lambda: explain.Run(
            interpret.RunRequest(model="net", plugin="echo", models={"judge": name})
        ): StatusCode.NOT_FOUND,
    }
    for attempt, code in attempts.items():
        assert failure_of(attempt).code is code
    assert not worker.calls
    assert len(worker.loaded) == 1
    assert HIDDEN in [info.name for info in worker.models()]


async def test_hidden_models_are_those_of_the_worker_behind_the_names(worker: FakeWorker) -> None:
    data = DataWorker(worker, None, 1 << 20)
    names = Names(data)
    assert {info.name for info in data.models()} == {HIDDEN, INFO.name}
    assert [info.name for info in names.models()] == [INFO.name]
    assert not names.holds(HIDDEN)
    with pytest.raises(NotFound):
        names.find(HIDDEN)
    with pytest.raises(NotFound):
        await names.unload(HIDDEN)
    with pytest.raises(NotFound):
        await names.keep(HIDDEN, Path("kept"))
    with pytest.raises(NotFound, match=r"there is no model '_audit-7'; loaded: net$"):
        names.run(Call(HIDDEN, "echo"))
    with pytest.raises(NotFound, match=r"models.judge: there is no model '_audit-7'"):
        names.run(Call("net", "echo", models={"judge": HIDDEN}))
    for load in (
        names.load(HIDDEN, Path(), Manifest()),
        names.load_version(HIDDEN, Path(), Manifest(), None),
    ):
        with pytest.raises(InvalidRequest, match="is no model name"):
            await load
    await data.unload(HIDDEN)
    assert [info.name for info in data.models()] == [INFO.name]
