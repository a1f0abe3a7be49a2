"""The Open Inference Protocol, over a fake worker."""

import struct
from typing import Any

import grpc
import pytest
from failures import failure_of
from fake_worker import FakeWorker
from grpc import StatusCode

from interpret_api.open_inference import grpc_predict_v2_pb2 as pb
from interpret_api.open_inference.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from interpret_server.engine import api

VALUES = (0.5, 0.25, 1.0, 0.0)
DATA = struct.pack("<4f", *VALUES)
Contents = pb.InferTensorContents


@pytest.fixture
def stub(channel: grpc.Channel) -> GRPCInferenceServiceStub:
    return GRPCInferenceServiceStub(channel)


def request(**fields: Any) -> pb.ModelInferRequest:
    tensor = {"name": "image", "datatype": "FP32", "shape": [2, 2], **fields.pop("tensor", {})}
    inputs = [pb.ModelInferRequest.InferInputTensor(**tensor)]
    return pb.ModelInferRequest(**{"model_name": "net", "inputs": inputs, **fields})


def test_the_server_describes_itself(stub: GRPCInferenceServiceStub) -> None:
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    metadata = stub.ServerMetadata(pb.ServerMetadataRequest())
    assert metadata.name == "interpret-server"
    assert metadata.version


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("net", "", True), ("net", "3", True), ("net", "4", False), ("other", "", False)],
)
def test_a_model_is_ready_in_its_version_only(
    stub: GRPCInferenceServiceStub, name: str, version: str, ready: bool
) -> None:
    assert stub.ModelReady(pb.ModelReadyRequest(name=name, version=version)).ready is ready


def test_a_models_metadata_names_its_tensors(stub: GRPCInferenceServiceStub) -> None:
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="net", version="3"))
    tensor = pb.ModelMetadataResponse.TensorMetadata
    assert metadata == pb.ModelMetadataResponse(
        name="net",
        versions=["3"],
        platform="interpret_onnx",
        inputs=[tensor(name="image", datatype="FP32", shape=[-1, 2])],
        outputs=[
            tensor(name="logits", datatype="FP32", shape=[-1, 2]),
            tensor(name="probabilities", datatype="FP32", shape=[-1, 2]),
        ],
    )


def test_raw_contents_are_answered_with_raw_contents(
    stub: GRPCInferenceServiceStub, worker: FakeWorker
) -> None:
    answer = stub.ModelInfer(request(raw_input_contents=[DATA], id="seven"), timeout=60)
    assert (answer.model_name, answer.model_version, answer.id) == ("net", "3", "seven")
    assert [output.name for output in answer.outputs] == ["logits", "probabilities"]
    assert [list(output.shape) for output in answer.outputs] == [[2, 2], [2, 2]]
    assert [struct.unpack("<4f", raw) for raw in answer.raw_output_contents] == [(0, 1, 0, 1)] * 2
    (call,) = worker.calls
    assert (call.plugin, call.inputs) == ("_predict", api.Array("float32", (2, 2), DATA))
    assert call.timeout is not None
    assert 0 < call.timeout < 90


def test_typed_contents_are_answered_with_typed_contents(
    stub: GRPCInferenceServiceStub, worker: FakeWorker
) -> None:
    contents = Contents(fp32_contents=VALUES)
    wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name="probabilities")]
    answer = stub.ModelInfer(request(tensor={"contents": contents}, outputs=wanted))
    (output,) = answer.outputs
    assert (output.name, output.datatype) == ("probabilities", "FP32")
    assert list(output.contents.fp32_contents) == [0, 1, 0, 1]
    assert not answer.raw_output_contents
    assert worker.calls[0].inputs == api.Array("float32", (2, 2), DATA)


@pytest.mark.parametrize(
    ("datatype", "field", "dtype", "code"),
    [
        ("BOOL", "bool_contents", "bool", "<4?"),
        ("UINT8", "uint_contents", "uint8", "<4B"),
        ("INT8", "int_contents", "int8", "<4b"),
        ("INT16", "int_contents", "int16", "<4h"),
        ("INT32", "int_contents", "int32", "<4i"),
        ("INT64", "int64_contents", "int64", "<4q"),
        ("FP32", "fp32_contents", "float32", "<4f"),
        ("FP64", "fp64_contents", "float64", "<4d"),
    ],
)
def test_every_datatype_has_its_typed_contents(
    stub: GRPCInferenceServiceStub,
    worker: FakeWorker,
    datatype: str,
    field: str,
    dtype: str,
    code: str,
) -> None:
    contents = Contents(**{field: [0, 1, 1, 0]})
    stub.ModelInfer(request(tensor={"datatype": datatype, "contents": contents}))
    assert worker.calls[0].inputs == api.Array(dtype, (2, 2), struct.pack(code, 0, 1, 1, 0))


NAMED = pb.ModelInferRequest.InferRequestedOutputTensor
INPUT = pb.ModelInferRequest.InferInputTensor
BAD: dict[str, tuple[pb.ModelInferRequest, StatusCode, list[str]]] = {
    "no name": (
        request(model_name="", raw_input_contents=[DATA]),
        StatusCode.INVALID_ARGUMENT,
        ["model_name"],
    ),
    "unknown model": (
        request(model_name="other", raw_input_contents=[DATA]),
        StatusCode.NOT_FOUND,
        [],
    ),
    "unknown version": (
        request(model_version="4", raw_input_contents=[DATA]),
        StatusCode.NOT_FOUND,
        [],
    ),
    "no input": (pb.ModelInferRequest(model_name="net"), StatusCode.INVALID_ARGUMENT, ["inputs"]),
    "two inputs": (
        pb.ModelInferRequest(model_name="net", inputs=[INPUT(), INPUT()]),
        StatusCode.INVALID_ARGUMENT,
        ["inputs"],
    ),
    "another input": (
        request(tensor={"name": "picture"}, raw_input_contents=[DATA]),
        StatusCode.INVALID_ARGUMENT,
        ["inputs[0].name"],
    ),
    "unknown datatype": (
        request(tensor={"datatype": "UINT64"}, raw_input_contents=[DATA]),
        StatusCode.INVALID_ARGUMENT,
        ["inputs[0].datatype"],
    ),
    "truncated": (
        request(raw_input_contents=[DATA[:-1]]),
        StatusCode.INVALID_ARGUMENT,
        ["inputs[0].data"],
    ),
    "too many raw contents": (
        request(raw_input_contents=[DATA, DATA]),
        StatusCode.INVALID_ARGUMENT,
        ["raw_input_contents"],
    ),
    "both kinds of contents": (
        request(raw_input_contents=[DATA], tensor={"contents": Contents(fp32_contents=VALUES)}),
        StatusCode.INVALID_ARGUMENT,
        ["inputs[0].contents"],
    ),
    "too few values": (
        request(tensor={"contents": Contents(fp32_contents=VALUES[:3])}),
        StatusCode.INVALID_ARGUMENT,
        ["inputs[0].contents.fp32_contents"],
    ),
    "a value that does not fit": (
        request(tensor={"datatype": "INT8", "contents": Contents(int_contents=[0, 0, 0, 300])}),
        StatusCode.INVALID_ARGUMENT,
        ["inputs[0].contents.int_contents"],
    ),
    "half precision without raw contents": (
        request(tensor={"datatype": "FP16", "contents": Contents()}),
        StatusCode.INVALID_ARGUMENT,
        ["inputs[0].contents"],
    ),
    "unknown output": (
        request(raw_input_contents=[DATA], outputs=[NAMED(name="logits"), NAMED(name="other")]),
        StatusCode.INVALID_ARGUMENT,
        ["outputs[1].name"],
    ),
}


@pytest.mark.parametrize(("sent", "code", "fields"), BAD.values(), ids=BAD)
def test_a_bad_request_is_answered_with_the_field_that_is_wrong(
    stub: GRPCInferenceServiceStub,
    sent: pb.ModelInferRequest,
    code: StatusCode,
    fields: list[str],
) -> None:
    failure = failure_of(lambda: stub.ModelInfer(sent))
    assert (failure.code, list(failure.fields)) == (code, fields)
    assert stub.ModelInfer(request(raw_input_contents=[DATA])).outputs
