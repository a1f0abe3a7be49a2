"""Bad requests to a real server with real models and plugins: each is refused, none does harm."""

import io
import math
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from failures import failure_of
from grpc import StatusCode
from torch import nn

from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import model_service_pb2 as models
from interpret_api.v1 import types_pb2 as types
from interpret_api.v1.interpret_service_pb2_grpc import InterpretServiceStub
from interpret_api.v1.model_service_pb2_grpc import ModelServiceStub
from interpret_plugins.attacks.pgd import PGD
from interpret_plugins.attribution.guided_backprop import GuidedBackprop
from interpret_plugins.attribution.saliency import Saliency
from interpret_server.registry import Registry
from interpret_server.testing.server import serve

SHAPE = (1, 4, 4)
CLASSES = 3
MANIFEST = '{"shape": [1, 4, 4], "bounds": [0, 1]}'


def archive(module: nn.Module) -> bytes:
    """A scripted archive."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module.eval()), buffer)
    return buffer.getvalue()


def network(*, rectified: bool = True) -> nn.Module:
    middle = nn.ReLU() if rectified else nn.Sigmoid()
    return nn.Sequential(nn.Conv2d(1, 2, 3), middle, nn.Flatten(), nn.Linear(8, CLASSES))


def upload(name: str, file: bytes, manifest: str = MANIFEST) -> Iterator[models.UploadModelRequest]:
    header = models.UploadHeader(name=name, manifest_json=manifest)
    yield models.UploadModelRequest(header=header)
    yield models.UploadModelRequest(chunk=file)


@pytest.fixture(scope="module")
def channel() -> Iterator[grpc.Channel]:
    """To a server with `net`, `unbounded` (no bounds) and `smooth` (no rectifiers)."""
    torch.manual_seed(0)
    registry = Registry()
    for plugin in (Saliency, GuidedBackprop, PGD):
        registry.add(plugin, "interpret-server")
    with serve(registry) as address, grpc.insecure_channel(address) as channel:
        stub = ModelServiceStub(channel)
        net = archive(network())
        stub.UploadModel(upload("net", net))
        stub.UploadModel(upload("unbounded", net, '{"shape": [1, 4, 4]}'))
        stub.UploadModel(upload("smooth", archive(network(rectified=False))))
        yield channel


def tensor(array: np.ndarray, dtype: str = "FLOAT32", **fields: Any) -> types.Tensor:
    number = types.DataType.Value(f"DATA_TYPE_{dtype}")
    given = {"dtype": number, "shape": array.shape, "data": array.tobytes()}
    return types.Tensor(**{**given, **fields})


def inputs(value: float = 0.5, shape: tuple[int, ...] = (2, *SHAPE), **fields: Any) -> types.Inputs:
    array = np.full(shape, 0.5, np.float32)
    if array.size:
        array.flat[-1] = value
    return types.Inputs(tensor=tensor(array, **fields))


def run(channel: grpc.Channel, **fields: Any) -> runs.Result:
    request = {"model": "net", "plugin": "saliency", "inputs": inputs(), **fields}
    return InterpretServiceStub(channel).Run(runs.RunRequest(**request)).result


BAD = StatusCode.INVALID_ARGUMENT
REFUSED = StatusCode.FAILED_PRECONDITION
RUNS: dict[str, tuple[dict[str, Any], StatusCode, str | None, str]] = {
    "unknown model": ({"model": "nest"}, StatusCode.NOT_FOUND, None, "no model 'nest'"),
    "unknown plugin": ({"plugin": "saliencies"}, StatusCode.NOT_FOUND, None, "saliency"),
    "no inputs": ({"inputs": None}, BAD, "inputs", "needs inputs|inputs"),
    "no rows": ({"inputs": inputs(shape=(0, *SHAPE))}, BAD, "inputs", "row"),
    "wrong shape": (
        {"inputs": inputs(shape=(2, 3, 4, 4))},
        BAD,
        "inputs",
        r"takes \[rows, 1, 4, 4\]",
    ),
    "no batch axis": ({"inputs": inputs(shape=SHAPE)}, BAD, "inputs", r"takes \[rows, 1, 4, 4\]"),
    "wrong dtype": (
        {"inputs": types.Inputs(tensor=tensor(np.zeros((2, *SHAPE), np.bool_), "BOOL"))},
        BAD,
        "inputs",
        "bool",
    ),
    "integers": (
        {"inputs": types.Inputs(tensor=tensor(np.zeros((2, *SHAPE), np.int64), "INT64"))},
        BAD,
        "inputs",
        "int64 values",
    ),
    "no dtype": ({"inputs": inputs(dtype="UNSPECIFIED")}, BAD, "inputs.dtype", "DATA_TYPE_FLOAT32"),
    "truncated bytes": ({"inputs": inputs(data=bytes(127))}, BAD, "inputs.data", "takes 128"),
    "NaN": ({"inputs": inputs(math.nan)}, BAD, "inputs", "(?i)nan"),
    "infinity": ({"inputs": inputs(math.inf)}, BAD, "inputs", "inf"),
    "out of bounds": ({"inputs": inputs(1.5)}, BAD, "inputs", r"1\.5|bounds"),
    "no image": (
        {"inputs": types.Inputs(images=types.EncodedImages(images=[b"GIF89a"]))},
        BAD,
        "inputs",
        "JPEG|PNG",
    ),
    "class out of range": (
        {"targets": [types.Target(class_index=CLASSES)]},
        BAD,
        "target",
        "0 to 2",
    ),
    "negative class": ({"targets": [types.Target(class_index=-1)]}, BAD, "target", "0 to 2"),
    "unknown layer": (
        {"targets": [types.Target(channel=0, layer="nowhere")]},
        BAD,
        "target",
        "nowhere",
    ),
    "channel out of range": (
        {"targets": [types.Target(channel=2, layer="0")]},
        BAD,
        "target",
        "0 to 1",
    ),
    "too few targets": (
        {"targets": [types.Target(class_index=0)] * 2, "inputs": inputs(shape=(3, *SHAPE))},
        BAD,
        "target",
        "2",
    ),
    "too many seeds": ({"seeds": [1, 2, 3]}, BAD, "seeds", "3"),
    "parameters are no JSON": ({"params_json": "{"}, BAD, "params", "JSON"),
    "unknown parameter": ({"params_json": '{"colour": 1}'}, BAD, "params.colour", "colour"),
    "parameter out of range": (
        {"plugin": "pgd", "params_json": '{"steps": -1}', "targets": [types.Target(class_index=0)]},
        BAD,
        "params.steps",
        "steps",
    ),
    "undeclared tensor": (
        {"tensors": {"style": tensor(np.zeros((2, *SHAPE), np.float32))}},
        BAD,
        "tensors.style",
        "style",
    ),
    "no bounds": ({"plugin": "pgd", "model": "unbounded"}, REFUSED, None, "bounds"),
    "no rectifiers": ({"plugin": "guided_backprop", "model": "smooth"}, REFUSED, None, "rectifier"),
}


@pytest.mark.parametrize(("fields", "code", "field", "sentence"), RUNS.values(), ids=RUNS)
def test_a_bad_run_is_refused_with_a_sentence_to_act_on(
    channel: grpc.Channel,
    fields: dict[str, Any],
    code: StatusCode,
    field: str | None,
    sentence: str,
) -> None:
    failure = failure_of(lambda: run(channel, **fields))
    assert failure.code is code, failure.message
    assert re.search(sentence, failure.message), failure.message
    assert [name for name in failure.fields if not re.match(rf"{field}\b", name)] == []
    assert bool(failure.fields) == (field is not None)
    assert "/" not in failure.message
    assert "Traceback" not in failure.message
    assert run(channel).tensors["attributions"].shape == [2, *SHAPE]


def _half(file: bytes) -> bytes:
    return file[: len(file) // 2]


def _foreign_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("notes.txt", "no model")
    return buffer.getvalue()


FILES: dict[str, tuple[bytes, str, str]] = {
    "corrupt file": (_half(archive(network())), MANIFEST, "INVALID_MODEL"),
    "an archive of something else": (_foreign_zip(), MANIFEST, "INVALID_MODEL"),
    "a file of another format": (b"\x89PNG\r\n\x1a\n" + bytes(100), MANIFEST, "INVALID_MODEL"),
    "text": (b"hello, world\n" * 10, MANIFEST, "INVALID_MODEL"),
    "another format than the manifest's": (
        archive(network()),
        '{"shape": [1, 4, 4], "format": "onnx"}',
        "INVALID_MODEL",
    ),
    "a pickled state_dict": (b"", MANIFEST, "INVALID_MODEL"),
    "a shape that the file does not take": (
        archive(network()),
        '{"shape": [3, 4, 4]}',
        "INVALID_REQUEST",
    ),
    "too many labels": (
        archive(network()),
        '{"shape": [1, 4, 4], "labels": ["a", "b", "c", "d"]}',
        "INVALID_REQUEST",
    ),
}


@pytest.mark.parametrize(("file", "manifest", "reason"), FILES.values(), ids=FILES)
def test_a_bad_file_is_refused_and_not_served(
    channel: grpc.Channel, file: bytes, manifest: str, reason: str
) -> None:
    if not file:
        buffer = io.BytesIO()
        torch.save(network().state_dict(), buffer)
        file = buffer.getvalue()
    stub = ModelServiceStub(channel)
    failure = failure_of(lambda: stub.UploadModel(upload("bad", file, manifest)))
    assert (failure.code, failure.reason) == (BAD, reason), failure.message
    assert "/" not in failure.message
    assert "bad" not in [model.name for model in stub.ListModels(models.ListModelsRequest()).models]
    assert run(channel).tensors["attributions"].shape == [2, *SHAPE]


def test_a_failed_replacement_keeps_the_old_model(channel: grpc.Channel) -> None:
    stub = ModelServiceStub(channel)
    before = run(channel).provenance.model_sha256
    header = models.UploadHeader(name="net", manifest_json=MANIFEST, replace=True)
    parts = [models.UploadModelRequest(header=header), models.UploadModelRequest(chunk=b"no model")]
    assert failure_of(lambda: stub.UploadModel(iter(parts))).reason == "INVALID_MODEL"
    assert run(channel).provenance.model_sha256 == before


PREDICTIONS: dict[str, tuple[str, Any, str]] = {
    "predict out of bounds": (
        "Predict",
        models.PredictRequest(model="net", inputs=inputs(2)),
        "inputs",
    ),
    "cotangent of another width": (
        "ComputeGradient",
        models.ComputeGradientRequest(
            model="net", inputs=inputs(), grad_outputs=tensor(np.zeros((2, 4), np.float32))
        ),
        "grad_outputs",
    ),
    "cotangent with other rows": (
        "ComputeGradient",
        models.ComputeGradientRequest(
            model="net", inputs=inputs(), grad_outputs=tensor(np.zeros((3, 3), np.float32))
        ),
        "grad_outputs",
    ),
    "activations of an unknown layer": (
        "ComputeActivations",
        models.ComputeActivationsRequest(model="net", inputs=inputs(), layers=["nowhere"]),
        "layers",
    ),
}


@pytest.mark.parametrize(
    ("method", "request_message", "field"), PREDICTIONS.values(), ids=PREDICTIONS
)
def test_a_bad_evaluation_names_the_field_of_its_request(
    channel: grpc.Channel, method: str, request_message: Any, field: str
) -> None:
    failure = failure_of(lambda: getattr(ModelServiceStub(channel), method)(request_message))
    assert failure.code is BAD
    assert list(failure.fields) == [field]
    assert failure.message.startswith(field)
