"""Uploaded model files and the model repository, over a fake worker."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from failures import failure_of
from fake_worker import FakeWorker
from grpc import StatusCode

from interpret_api.v1 import model_service_pb2 as models
from interpret_api.v1.model_service_pb2_grpc import ModelServiceStub
from interpret_server.testing.server import serve

FILE = b"a model file" * 1000
DIGEST = hashlib.sha256(FILE).hexdigest()
WAIT = 20  # seconds that no test should take


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where temporary files may appear."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def messages(*chunks: bytes, **header: Any) -> Iterator[models.UploadModelRequest]:
    yield models.UploadModelRequest(header=models.UploadHeader(**{"name": "new", **header}))
    for chunk in chunks:
        yield models.UploadModelRequest(chunk=chunk)


def test_an_upload_arrives_whole_and_leaves_no_file(
    channel: grpc.Channel, worker: FakeWorker, folder: Path
) -> None:
    upload = messages(
        FILE[:5000],
        b"",
        FILE[5000:],
        size=len(FILE),
        sha256=DIGEST.upper(),
        manifest_json='{"version": "9", "bounds": [0, 1]}',
    )
    model = ModelServiceStub(channel).UploadModel(upload).model
    assert (model.name, model.version) == ("new", "9")
    ((name, data, manifest, path),) = worker.loaded
    assert (name, data) == ("new", FILE)
    assert manifest.input.bounds == (0, 1)
    assert path.is_relative_to(folder)
    assert not list(folder.iterdir())


def test_an_upload_replaces_a_model_where_it_may(channel: grpc.Channel, folder: Path) -> None:
    stub = ModelServiceStub(channel)
    failure = failure_of(lambda: stub.UploadModel(messages(FILE, name="net")))
    assert failure.code is StatusCode.ALREADY_EXISTS
    assert "replace" in failure.message
    assert stub.UploadModel(messages(FILE, name="net", replace=True)).model.name == "net"


BAD_UPLOADS: dict[str, tuple[list[models.UploadModelRequest], str, str]] = {
    "no message": ([], "header", "first message"),
    "no header": ([models.UploadModelRequest(chunk=FILE)], "header", "first message"),
    "an empty message": ([models.UploadModelRequest()], "header", "first message"),
    "two headers": ([*messages(), *messages()], "chunk", "first message"),
    "no name": (list(messages(FILE, name="")), "header.name", "1 to 128"),
    "a path as name": (list(messages(FILE, name="../net")), "header.name", "1 to 128"),
    "dots as name": (list(messages(FILE, name="..")), "header.name", "1 to 128"),
    "a long name": (list(messages(FILE, name="n" * 129)), "header.name", "1 to 128"),
    "no bytes": (list(messages()), "chunk", "no bytes"),
    "truncated": (list(messages(FILE[:-1], size=len(FILE))), "header.size", "11999 arrived"),
    "too many bytes": (list(messages(FILE, size=1)), "header.size", "12000 arrived"),
    "a negative size": (list(messages(FILE, size=-1)), "header.size", "0 when unknown"),
    "another digest": (
        list(messages(FILE, sha256="ab" * 32)),
        "header.sha256",
        f"{DIGEST}; send the file again",
    ),
    "no JSON": (list(messages(FILE, manifest_json="{")), "manifest", "JSON"),
    "an unknown manifest field": (
        list(messages(FILE, manifest_json='{"colour": 1}')),
        "manifest.colour",
        "no such field",
    ),
    "a wrong manifest field": (
        list(messages(FILE, manifest_json='{"inputs": [{"bounds": [1, 0]}]}')),
        "manifest.inputs[0].bounds",
        "lower bound",
    ),
}


@pytest.mark.parametrize(("sent", "field", "sentence"), BAD_UPLOADS.values(), ids=BAD_UPLOADS)
def test_a_bad_upload_is_refused_and_leaves_no_file(
    channel: grpc.Channel,
    worker: FakeWorker,
    folder: Path,
    sent: list[models.UploadModelRequest],
    field: str,
    sentence: str,
) -> None:
    stub = ModelServiceStub(channel)
    failure = failure_of(lambda: stub.UploadModel(iter(sent)))
    assert failure.code is StatusCode.INVALID_ARGUMENT
    assert list(failure.fields) == [field]
    assert sentence in failure.message
    assert not worker.loaded
    assert not list(folder.iterdir())
    assert stub.UploadModel(messages(FILE)).model.name == "new"


def test_every_wrong_field_of_a_manifest_is_named(channel: grpc.Channel) -> None:
    manifest = json.dumps({"max_batch": 0, "output": {"index": -1}, "labels": 3})
    failure = failure_of(
        lambda: ModelServiceStub(channel).UploadModel(messages(FILE, manifest_json=manifest))
    )
    assert set(failure.fields) == {"manifest.max_batch", "manifest.output.index", "manifest.labels"}


@pytest.mark.parametrize("announced", [True, False])
def test_a_file_beyond_the_limit_is_refused(
    worker: FakeWorker, folder: Path, announced: bool
) -> None:
    with (
        serve(worker=worker, max_upload_bytes=10_000) as address,
        grpc.insecure_channel(address) as channel,
    ):
        sent = messages(FILE[:6000], FILE[6000:], size=len(FILE) if announced else 0)
        failure = failure_of(lambda: ModelServiceStub(channel).UploadModel(sent))
    assert failure.code is StatusCode.INVALID_ARGUMENT
    assert "10000 bytes" in failure.message
    assert not list(folder.iterdir())


def test_a_file_that_cannot_be_served_leaves_nothing(channel: grpc.Channel, folder: Path) -> None:
    failure = failure_of(lambda: ModelServiceStub(channel).UploadModel(messages(b"rejected")))
    assert (failure.code, failure.reason) == (StatusCode.FAILED_PRECONDITION, "MODEL_REJECTED")
    assert not list(folder.iterdir())


def test_an_upload_that_its_client_cancels_leaves_nothing(worker: FakeWorker, folder: Path) -> None:
    import threading

    hold = threading.Event()

    def endless() -> Iterator[models.UploadModelRequest]:
        yield from messages(FILE)
        hold.wait(WAIT)

    with serve(worker=worker) as address, grpc.insecure_channel(address) as channel:
        call = ModelServiceStub(channel).UploadModel.future(endless())
        while not list(folder.rglob("model")):
            assert not call.done()
        call.cancel()
        hold.set()
    assert not list(folder.iterdir())
    assert not worker.loaded


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for version in ("1", "2"):
        (tmp_path / "cats" / version).mkdir(parents=True)
        (tmp_path / "cats" / version / "model.onnx").write_bytes(b"cats " + version.encode())
    (tmp_path / "cats" / "model.toml").write_text("bounds = [0, 255]\n")
    (tmp_path / "dogs" / "1").mkdir(parents=True)
    (tmp_path / "dogs" / "1" / "model.pt").write_bytes(b"rejected")
    (tmp_path / "fish" / "1").mkdir(parents=True)
    (tmp_path / "fish" / "1" / "model.pt").write_bytes(b"fish")
    (tmp_path / "fish" / "model.toml").write_text("colour = 1\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_the_repositorys_sound_models_are_served_and_the_others_logged(
    worker: FakeWorker, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        serve(worker=worker, repository=repository) as address,
        grpc.insecure_channel(address) as channel,
    ):
        listed = ModelServiceStub(channel).ListModels(models.ListModelsRequest()).models
    assert [model.name for model in listed] == ["cats", "net"]
    messages = {record.getMessage() for record in caplog.records if record.levelname == "ERROR"}
    assert any("model dogs is not served: the file's outputs" in item for item in messages)
    assert any("fish is not served" in item and "manifest.colour" in item for item in messages)
    assert any("empty is not served" in item for item in messages)


@pytest.mark.parametrize(
    ("path", "data"),
    [("", b"cats 2"), ("cats", b"cats 2"), ("cats/1", b"cats 1"), ("cats/1/model.onnx", b"cats 1")],
)
def test_load_model_finds_what_the_path_names(
    worker: FakeWorker, repository: Path, path: str, data: bytes
) -> None:
    with serve(worker=worker) as address, grpc.insecure_channel(address) as channel:
        failure = failure_of(
            lambda: ModelServiceStub(channel).LoadModel(models.LoadModelRequest(name="cats"))
        )
        assert failure.code is StatusCode.FAILED_PRECONDITION
        assert "--model-repository" in failure.message
    worker = FakeWorker()
    with (
        serve(worker=worker, repository=repository) as address,
        grpc.insecure_channel(address) as channel,
    ):
        request = models.LoadModelRequest(name="cats", path=path, replace=True)
        answer = ModelServiceStub(channel).LoadModel(request)
        assert answer.model.name == "cats"
        _, loaded, manifest, _ = worker.loaded[-1]
        assert loaded == data
        assert manifest.input.bounds == (0, 255)
        request.manifest_json = '{"bounds": [0, 1]}'
        ModelServiceStub(channel).LoadModel(request)
        assert worker.loaded[-1][2].input.bounds == (0, 1)


@pytest.mark.parametrize(
    ("fields", "code", "named"),
    [
        ({"name": "a b"}, StatusCode.INVALID_ARGUMENT, ["name"]),
        ({"name": "new", "path": "../secret"}, StatusCode.INVALID_ARGUMENT, ["path"]),
        ({"name": "new", "path": "/etc/passwd"}, StatusCode.INVALID_ARGUMENT, ["path"]),
        ({"name": "new", "path": "other"}, StatusCode.NOT_FOUND, []),
        ({"name": "new"}, StatusCode.NOT_FOUND, []),
        ({"name": "net", "path": "cats"}, StatusCode.ALREADY_EXISTS, []),
        ({"name": "new", "path": "dogs"}, StatusCode.FAILED_PRECONDITION, []),
        ({"name": "new", "path": "fish"}, StatusCode.INVALID_ARGUMENT, ["manifest.colour"]),
        (
            {"name": "new", "path": "cats", "manifest_json": "[]"},
            StatusCode.INVALID_ARGUMENT,
            ["manifest"],
        ),
    ],
)
def test_a_bad_load_is_refused(
    worker: FakeWorker,
    repository: Path,
    fields: dict[str, str],
    code: StatusCode,
    named: list[str],
) -> None:
    with (
        serve(worker=worker, repository=repository) as address,
        grpc.insecure_channel(address) as channel,
    ):
        request = models.LoadModelRequest(**fields)
        failure = failure_of(lambda: ModelServiceStub(channel).LoadModel(request))
    assert failure.code is code
    assert list(failure.fields) == named
    assert str(repository) not in failure.message
