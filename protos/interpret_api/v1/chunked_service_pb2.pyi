from interpret_api.v1 import interpret_service_pb2 as _interpret_service_pb2
from interpret_api.v1 import model_service_pb2 as _model_service_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CallRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class RequestHeader(_message.Message):
    __slots__ = ("run", "run_stream", "predict", "compute_gradient", "compute_activations", "part_sizes")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RUN_STREAM_FIELD_NUMBER: _ClassVar[int]
    PREDICT_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    PART_SIZES_FIELD_NUMBER: _ClassVar[int]
    run: _interpret_service_pb2.RunRequest
    run_stream: _interpret_service_pb2.RunStreamRequest
    predict: _model_service_pb2.PredictRequest
    compute_gradient: _model_service_pb2.ComputeGradientRequest
    compute_activations: _model_service_pb2.ComputeActivationsRequest
    part_sizes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, run: _Optional[_Union[_interpret_service_pb2.RunRequest, _Mapping]] = ..., run_stream: _Optional[_Union[_interpret_service_pb2.RunStreamRequest, _Mapping]] = ..., predict: _Optional[_Union[_model_service_pb2.PredictRequest, _Mapping]] = ..., compute_gradient: _Optional[_Union[_model_service_pb2.ComputeGradientRequest, _Mapping]] = ..., compute_activations: _Optional[_Union[_model_service_pb2.ComputeActivationsRequest, _Mapping]] = ..., part_sizes: _Optional[_Iterable[int]] = ...) -> None: ...

class CallResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ResponseHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[ResponseHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class ResponseHeader(_message.Message):
    __slots__ = ("run", "run_stream", "predict", "compute_gradient", "compute_activations", "part_sizes")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RUN_STREAM_FIELD_NUMBER: _ClassVar[int]
    PREDICT_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    PART_SIZES_FIELD_NUMBER: _ClassVar[int]
    run: _interpret_service_pb2.RunResponse
    run_stream: _interpret_service_pb2.RunStreamResponse
    predict: _model_service_pb2.PredictResponse
    compute_gradient: _model_service_pb2.ComputeGradientResponse
    compute_activations: _model_service_pb2.ComputeActivationsResponse
    part_sizes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, run: _Optional[_Union[_interpret_service_pb2.RunResponse, _Mapping]] = ..., run_stream: _Optional[_Union[_interpret_service_pb2.RunStreamResponse, _Mapping]] = ..., predict: _Optional[_Union[_model_service_pb2.PredictResponse, _Mapping]] = ..., compute_gradient: _Optional[_Union[_model_service_pb2.ComputeGradientResponse, _Mapping]] = ..., compute_activations: _Optional[_Union[_model_service_pb2.ComputeActivationsResponse, _Mapping]] = ..., part_sizes: _Optional[_Iterable[int]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("part", "data")
    PART_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    part: int
    data: bytes
    def __init__(self, part: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...
