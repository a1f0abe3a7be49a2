"""Versions and labels of a repository as clients see them."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from failures import failure_of
from fake_worker import FakeWorker
from grpc import StatusCode

from interpret_api.open_inference import grpc_predict_v2_pb2 as inference
from interpret_api.open_inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from interpret_api.v1 import model_service_pb2 as models
from interpret_api.v1.model_service_pb2_grpc import ModelServiceStub
from interpret_server.testing.server import serve


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for version in ("1", "2", "3"):
        (tmp_path / "cats" / version).mkdir(parents=True)
        (tmp_path / "cats" / version / "model.onnx").write_bytes(b"cats " + version.encode())
    (tmp_path / "cats/versions.toml").write_text('serve = ["1", "3"]\nlabels = {stable = "1"}\n')
    (tmp_path / "cats/labels.txt").write_text("tabby\ntom\n")
    return tmp_path


@pytest.fixture
def channel(worker: FakeWorker, repository: Path) -> Iterator[grpc.Channel]:
    with (
        serve(worker=worker, repository=repository) as address,
        grpc.insecure_channel(address) as channel,
    ):
        yield channel


def test_each_version_is_loaded_and_listed_once(channel: grpc.Channel, worker: FakeWorker) -> None:
    stub = ModelServiceStub(channel)
    listed = stub.ListModels(models.ListModelsRequest()).models
    assert [(model.name, model.version) for model in listed] == [
        ("cats", "3"),
        ("cats@1", "1"),
        ("net", "3"),
    ]
    assert [name for name, *_ in worker.loaded] == ["cats@1", "cats@3"]
    assert worker.loaded[0][2].labels == ("tabby", "tom")
    assert listed[0].notes[-1] == "It also answers to cats@3."
    assert listed[1].notes[-1] == "It also answers to cats@stable."


@pytest.mark.parametrize(
    ("name", "shown", "version"),
    [("cats", "cats", "3"), ("cats@3", "cats", "3"), ("cats@stable", "cats@1", "1")],
)
def test_a_model_is_found_by_each_of_its_names(
    channel: grpc.Channel, name: str, shown: str, version: str
) -> None:
    model = ModelServiceStub(channel).GetModel(models.GetModelRequest(name=name)).model
    assert (model.name, model.version) == (shown, version)


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("cats", "", True),
        ("cats", "3", True),
        ("cats", "1", True),
        ("cats", "stable", True),
        ("cats", "2", False),
        ("cats@stable", "", True),
        ("cats@stable", "1", True),
        ("cats@stable", "3", False),
        ("cats@4", "", False),
    ],
)
def test_a_version_that_is_served_is_ready(
    channel: grpc.Channel, name: str, version: str, ready: bool
) -> None:
    stub = GRPCInferenceServiceStub(channel)
    assert stub.ModelReady(inference.ModelReadyRequest(name=name, version=version)).ready is ready


def test_metadata_names_every_version(channel: grpc.Channel) -> None:
    stub = GRPCInferenceServiceStub(channel)
    metadata = stub.ModelMetadata(inference.ModelMetadataRequest(name="cats"))
    assert (metadata.name, list(metadata.versions)) == ("cats", ["3", "1"])
    metadata = stub.ModelMetadata(inference.ModelMetadataRequest(name="cats", version="1"))
    assert metadata.name == "cats"


@pytest.mark.parametrize(
    ("version", "own"), [("", "cats@3"), ("1", "cats@1"), ("stable", "cats@1")]
)
def test_an_inference_goes_to_the_version_it_names(
    channel: grpc.Channel, worker: FakeWorker, version: str, own: str
) -> None:
    tensor = inference.ModelInferRequest.InferInputTensor(
        name="image", datatype="FP32", shape=[2, 2]
    )
    request = inference.ModelInferRequest(
        model_name="cats", model_version=version, inputs=[tensor], raw_input_contents=[bytes(16)]
    )
    answer = GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert (answer.model_name, answer.model_version) == ("cats", own.removeprefix("cats@"))
    assert [call.model for call in worker.calls] == [own]


def test_an_unknown_version_is_not_found(channel: grpc.Channel) -> None:
    request = inference.ModelMetadataRequest(name="cats", version="2")
    failure = failure_of(lambda: GRPCInferenceServiceStub(channel).ModelMetadata(request))
    assert failure.code is StatusCode.NOT_FOUND
    assert failure.message == "model 'cats' is served in version '3' and '1', not '2'"


def test_a_client_cannot_use_a_version_as_a_name(channel: grpc.Channel) -> None:
    stub = ModelServiceStub(channel)
    header = models.UploadModelRequest(header=models.UploadHeader(name="cats@9"))
    for call in (
        lambda: stub.UploadModel(iter([header])),
        lambda: stub.LoadModel(models.LoadModelRequest(name="cats@9", path="cats/1")),
    ):
        failure = failure_of(call)
        assert failure.code is StatusCode.INVALID_ARGUMENT
        assert "letters, digits" in failure.message


def test_unloading_by_a_label_takes_the_version_out_of_service(channel: grpc.Channel) -> None:
    stub = ModelServiceStub(channel)
    stub.UnloadModel(models.UnloadModelRequest(name="cats@stable"))
    listed = stub.ListModels(models.ListModelsRequest()).models
    assert [model.name for model in listed] == ["cats", "net"]


def test_a_client_loads_any_version_under_a_name_of_its_own(
    channel: grpc.Channel, worker: FakeWorker
) -> None:
    stub = ModelServiceStub(channel)
    answer = stub.LoadModel(models.LoadModelRequest(name="older", path="cats/2"))
    assert (answer.model.name, answer.model.version) == ("older", "2")
    failure = failure_of(lambda: stub.LoadModel(models.LoadModelRequest(name="cats")))
    assert failure.code is StatusCode.ALREADY_EXISTS
