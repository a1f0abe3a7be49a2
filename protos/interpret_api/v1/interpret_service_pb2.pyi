from interpret_api.v1 import rendering_pb2 as _rendering_pb2
from interpret_api.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunRequest(_message.Message):
    __slots__ = ("model", "plugin", "inputs", "targets", "params_json", "seeds", "tensors", "render", "half_precision", "priority", "models", "rendering")
    class TensorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _types_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ...) -> None: ...
    class ModelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    PARAMS_JSON_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    RENDER_FIELD_NUMBER: _ClassVar[int]
    HALF_PRECISION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    RENDERING_FIELD_NUMBER: _ClassVar[int]
    model: str
    plugin: str
    inputs: _types_pb2.Inputs
    targets: _containers.RepeatedCompositeFieldContainer[_types_pb2.Target]
    params_json: str
    seeds: _containers.RepeatedScalarFieldContainer[int]
    tensors: _containers.MessageMap[str, _types_pb2.Tensor]
    render: bool
    half_precision: bool
    priority: _types_pb2.Priority
    models: _containers.ScalarMap[str, str]
    rendering: _rendering_pb2.Rendering
    def __init__(self, model: _Optional[str] = ..., plugin: _Optional[str] = ..., inputs: _Optional[_Union[_types_pb2.Inputs, _Mapping]] = ..., targets: _Optional[_Iterable[_Union[_types_pb2.Target, _Mapping]]] = ..., params_json: _Optional[str] = ..., seeds: _Optional[_Iterable[int]] = ..., tensors: _Optional[_Mapping[str, _types_pb2.Tensor]] = ..., render: bool = ..., half_precision: bool = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ..., models: _Optional[_Mapping[str, str]] = ..., rendering: _Optional[_Union[_rendering_pb2.Rendering, _Mapping]] = ...) -> None: ...

class RunResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: Result
    def __init__(self, result: _Optional[_Union[Result, _Mapping]] = ...) -> None: ...

class RunStreamRequest(_message.Message):
    __slots__ = ("request", "previews")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    PREVIEWS_FIELD_NUMBER: _ClassVar[int]
    request: RunRequest
    previews: bool
    def __init__(self, request: _Optional[_Union[RunRequest, _Mapping]] = ..., previews: bool = ...) -> None: ...

class RunStreamResponse(_message.Message):
    __slots__ = ("progress", "preview", "result")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    preview: Preview
    result: Result
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("done", "total")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("done", "total", "tensors", "pictures")
    class TensorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _types_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ...) -> None: ...
    class PicturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Pictures
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Pictures, _Mapping]] = ...) -> None: ...
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    tensors: _containers.MessageMap[str, _types_pb2.Tensor]
    pictures: _containers.MessageMap[str, Pictures]
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ..., tensors: _Optional[_Mapping[str, _types_pb2.Tensor]] = ..., pictures: _Optional[_Mapping[str, Pictures]] = ...) -> None: ...

class Pictures(_message.Message):
    __slots__ = ("png", "parts")
    PNG_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    png: _containers.RepeatedScalarFieldContainer[bytes]
    parts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, png: _Optional[_Iterable[bytes]] = ..., parts: _Optional[_Iterable[int]] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("tensors", "metrics", "predictions_before", "predictions_after", "warnings", "pictures", "provenance")
    class TensorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _types_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Metric
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Metric, _Mapping]] = ...) -> None: ...
    class PicturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Pictures
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Pictures, _Mapping]] = ...) -> None: ...
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_AFTER_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.MessageMap[str, _types_pb2.Tensor]
    metrics: _containers.MessageMap[str, Metric]
    predictions_before: _containers.RepeatedCompositeFieldContainer[_types_pb2.Prediction]
    predictions_after: _containers.RepeatedCompositeFieldContainer[_types_pb2.Prediction]
    warnings: _containers.RepeatedCompositeFieldContainer[_types_pb2.RowWarning]
    pictures: _containers.MessageMap[str, Pictures]
    provenance: Provenance
    def __init__(self, tensors: _Optional[_Mapping[str, _types_pb2.Tensor]] = ..., metrics: _Optional[_Mapping[str, Metric]] = ..., predictions_before: _Optional[_Iterable[_Union[_types_pb2.Prediction, _Mapping]]] = ..., predictions_after: _Optional[_Iterable[_Union[_types_pb2.Prediction, _Mapping]]] = ..., warnings: _Optional[_Iterable[_Union[_types_pb2.RowWarning, _Mapping]]] = ..., pictures: _Optional[_Mapping[str, Pictures]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ...) -> None: ...

class SecondModel(_message.Message):
    __slots__ = ("role", "model", "model_sha256", "model_version")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    role: str
    model: str
    model_sha256: str
    model_version: str
    def __init__(self, role: _Optional[str] = ..., model: _Optional[str] = ..., model_sha256: _Optional[str] = ..., model_version: _Optional[str] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("model", "model_sha256", "model_version", "plugin", "plugin_version", "server_version", "params_json", "targets", "seeds", "device", "precision", "queue_seconds", "run_seconds", "batch_rows", "models")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    PARAMS_JSON_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RUN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_sha256: str
    model_version: str
    plugin: str
    plugin_version: str
    server_version: str
    params_json: str
    targets: _containers.RepeatedCompositeFieldContainer[_types_pb2.Target]
    seeds: _containers.RepeatedScalarFieldContainer[int]
    device: str
    precision: str
    queue_seconds: float
    run_seconds: float
    batch_rows: int
    models: _containers.RepeatedCompositeFieldContainer[SecondModel]
    def __init__(self, model: _Optional[str] = ..., model_sha256: _Optional[str] = ..., model_version: _Optional[str] = ..., plugin: _Optional[str] = ..., plugin_version: _Optional[str] = ..., server_version: _Optional[str] = ..., params_json: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[_types_pb2.Target, _Mapping]]] = ..., seeds: _Optional[_Iterable[int]] = ..., device: _Optional[str] = ..., precision: _Optional[str] = ..., queue_seconds: _Optional[float] = ..., run_seconds: _Optional[float] = ..., batch_rows: _Optional[int] = ..., models: _Optional[_Iterable[_Union[SecondModel, _Mapping]]] = ...) -> None: ...
