"""The generated modules are those of the .proto files, which keep to one style."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor
from grpc_tools import protoc

from interpret_api.generate import SOURCES, generate
from interpret_api.open_inference import grpc_predict_v2_pb2
from interpret_api.v1 import (
    audit_service_pb2,
    chunked_service_pb2,
    interpret_service_pb2,
    model_service_pb2,
    plugin_service_pb2,
    types_pb2,
)
from interpret_server.engine.workers import protocol_pb2

OURS = [
    module.DESCRIPTOR
    for module in (
        audit_service_pb2,
        chunked_service_pb2,
        interpret_service_pb2,
        model_service_pb2,
        plugin_service_pb2,
        protocol_pb2,
        types_pb2,
    )
]
ROOT = Path(__file__).resolve().parent.parent
CAMEL = re.compile(r"([A-Z][a-z0-9]+)+")
SNAKE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def test_the_committed_modules_are_the_generated_ones(tmp_path: Path) -> None:
    assert generate(tmp_path) == 0
    generated = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*_pb2*.py*")}
    committed = {
        path.relative_to(SOURCES): path
        for path in SOURCES.rglob("*_pb2*.py*")
        if path.suffix in (".py", ".pyi")
    }
    assert generated.keys() == committed.keys()
    for name, path in generated.items():
        assert path.read_bytes() == committed[name].read_bytes(), f"run `make protos` for {name}"


def test_the_committed_worker_messages_are_the_generated_ones(tmp_path: Path) -> None:
    source = ROOT / "interpret_server/engine/workers/protocol.proto"
    arguments = [f"-I{ROOT}", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", str(source)]
    assert protoc.main(["protoc", *arguments]) == 0
    generated = sorted(tmp_path.rglob("*_pb2.py*"))
    assert [path.name for path in generated] == ["protocol_pb2.py", "protocol_pb2.pyi"]
    for path in generated:
        committed = ROOT / path.relative_to(tmp_path)
        assert path.read_bytes() == committed.read_bytes(), f"run `make protos` for {path.name}"


def _messages(file: FileDescriptor) -> Iterator[Descriptor]:
    waiting = list(file.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        if not message.GetOptions().map_entry:
            yield message
            waiting.extend(message.nested_types)


def _enums(file: FileDescriptor) -> Iterator[EnumDescriptor]:
    yield from file.enum_types_by_name.values()
    for message in _messages(file):
        yield from message.enum_types


@pytest.mark.parametrize("file", OURS, ids=lambda file: Path(file.name).stem)
def test_names_follow_the_style(file: FileDescriptor) -> None:
    assert file.package == Path(file.name).parent.as_posix().replace("/", ".")
    for message in _messages(file):
        assert CAMEL.fullmatch(message.name), message.full_name
        for field in message.fields:
            assert SNAKE.fullmatch(field.name), field.full_name
        for oneof in message.oneofs:
            name = oneof.name.removeprefix("_")  # protoc's own, of an optional field
            assert SNAKE.fullmatch(name), oneof.full_name
    for enum in _enums(file):
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
        assert enum.values_by_number[0].name == f"{prefix}_UNSPECIFIED"
        assert all(value.name.startswith(f"{prefix}_") for value in enum.values)


@pytest.mark.parametrize("file", OURS, ids=lambda file: Path(file.name).stem)
def test_every_call_has_a_request_and_a_response_of_its_own(file: FileDescriptor) -> None:
    for service in file.services_by_name.values():
        assert CAMEL.fullmatch(service.name)
        assert service.name.endswith("Service")
        for method in service.methods:
            assert CAMEL.fullmatch(method.name), method.full_name
            assert method.input_type.name == f"{method.name}Request"
            assert method.output_type.name == f"{method.name}Response"


@pytest.mark.parametrize("file", OURS, ids=lambda file: Path(file.name).stem)
def test_field_numbers_have_no_gaps(file: FileDescriptor) -> None:
    for message in _messages(file):
        numbers = sorted(field.number for field in message.fields)
        assert numbers == list(range(1, len(numbers) + 1)), message.full_name


# Field numbers of the public specification; an existing client depends on every one.
OPEN_INFERENCE = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready",
    "ModelReadyRequest": "name version",
    "ModelReadyResponse": "ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name version extensions",
    "ModelMetadataRequest": "name version",
    "ModelMetadataResponse": "name versions platform inputs outputs",
    "TensorMetadata": "name datatype shape",
    "ModelInferRequest": "model_name model_version id parameters inputs outputs raw_input_contents",
    "InferInputTensor": "name datatype shape parameters contents",
    "InferRequestedOutputTensor": "name parameters",
    "ModelInferResponse": "model_name model_version id parameters outputs raw_output_contents",
    "InferOutputTensor": "name datatype shape parameters contents",
    "InferParameter": "bool_param int64_param string_param double_param uint64_param",
    "InferTensorContents": "bool_contents int_contents int64_contents uint_contents "
    "uint64_contents fp32_contents fp64_contents bytes_contents",
}


def test_the_open_inference_protocol_is_the_public_one() -> None:
    file = grpc_predict_v2_pb2.DESCRIPTOR
    assert file.package == "inference"
    found = {
        message.name: [
            field.name for field in sorted(message.fields, key=lambda field: field.number)
        ]
        for message in _messages(file)
    }
    assert found == {name: fields.split() for name, fields in OPEN_INFERENCE.items()}
    for message in _messages(file):
        assert [field.number for field in message.fields] == list(range(1, len(message.fields) + 1))
    methods = file.services_by_name["GRPCInferenceService"].methods_by_name
    assert set(methods) == {
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelInfer",
    }
