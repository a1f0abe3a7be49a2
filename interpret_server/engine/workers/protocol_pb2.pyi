from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Block(_message.Message):
    __slots__ = ("inline", "span")
    INLINE_FIELD_NUMBER: _ClassVar[int]
    SPAN_FIELD_NUMBER: _ClassVar[int]
    inline: bytes
    span: Span
    def __init__(self, inline: _Optional[bytes] = ..., span: _Optional[_Union[Span, _Mapping]] = ...) -> None: ...

class Span(_message.Message):
    __slots__ = ("segment", "offset", "length")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    segment: int
    offset: int
    length: int
    def __init__(self, segment: _Optional[int] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class Array(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: Block
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[_Union[Block, _Mapping]] = ...) -> None: ...

class NamedArray(_message.Message):
    __slots__ = ("name", "array")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    name: str
    array: Array
    def __init__(self, name: _Optional[str] = ..., array: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...

class NamedArrays(_message.Message):
    __slots__ = ("arrays",)
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    arrays: _containers.RepeatedCompositeFieldContainer[NamedArray]
    def __init__(self, arrays: _Optional[_Iterable[_Union[NamedArray, _Mapping]]] = ...) -> None: ...

class Files(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[Block]
    def __init__(self, files: _Optional[_Iterable[_Union[Block, _Mapping]]] = ...) -> None: ...

class NamedFiles(_message.Message):
    __slots__ = ("name", "files")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    name: str
    files: _containers.RepeatedCompositeFieldContainer[Block]
    def __init__(self, name: _Optional[str] = ..., files: _Optional[_Iterable[_Union[Block, _Mapping]]] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("kind", "index", "layer", "direction")
    KIND_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    kind: str
    index: _containers.RepeatedScalarFieldContainer[int]
    layer: str
    direction: Array
    def __init__(self, kind: _Optional[str] = ..., index: _Optional[_Iterable[int]] = ..., layer: _Optional[str] = ..., direction: _Optional[_Union[Array, _Mapping]] = ...) -> None: ...

class Rendering(_message.Message):
    __slots__ = ("styles", "percentile", "alpha", "top", "channels", "colors", "backdrop", "foreground", "background", "smoothing")
    STYLES_FIELD_NUMBER: _ClassVar[int]
    PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    COLORS_FIELD_NUMBER: _ClassVar[int]
    BACKDROP_FIELD_NUMBER: _ClassVar[int]
    FOREGROUND_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    SMOOTHING_FIELD_NUMBER: _ClassVar[int]
    styles: _containers.RepeatedScalarFieldContainer[str]
    percentile: float
    alpha: float
    top: float
    channels: str
    colors: str
    backdrop: str
    foreground: float
    background: float
    smoothing: float
    def __init__(self, styles: _Optional[_Iterable[str]] = ..., percentile: _Optional[float] = ..., alpha: _Optional[float] = ..., top: _Optional[float] = ..., channels: _Optional[str] = ..., colors: _Optional[str] = ..., backdrop: _Optional[str] = ..., foreground: _Optional[float] = ..., background: _Optional[float] = ..., smoothing: _Optional[float] = ...) -> None: ...

class Call(_message.Message):
    __slots__ = ("model", "plugin", "params", "array", "images", "named", "targets", "seeds", "tensors", "render", "half", "previews", "timeout", "client", "priority", "progress", "models", "alone")
    class ModelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    ARRAY_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    NAMED_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    RENDER_FIELD_NUMBER: _ClassVar[int]
    HALF_FIELD_NUMBER: _ClassVar[int]
    PREVIEWS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    model: str
    plugin: str
    params: str
    array: Array
    images: Files
    named: NamedArrays
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    seeds: _containers.RepeatedScalarFieldContainer[int]
    tensors: _containers.RepeatedCompositeFieldContainer[NamedArray]
    render: Rendering
    half: bool
    previews: bool
    timeout: float
    client: str
    priority: int
    progress: bool
    models: _containers.ScalarMap[str, str]
    alone: bool
    def __init__(self, model: _Optional[str] = ..., plugin: _Optional[str] = ..., params: _Optional[str] = ..., array: _Optional[_Union[Array, _Mapping]] = ..., images: _Optional[_Union[Files, _Mapping]] = ..., named: _Optional[_Union[NamedArrays, _Mapping]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., seeds: _Optional[_Iterable[int]] = ..., tensors: _Optional[_Iterable[_Union[NamedArray, _Mapping]]] = ..., render: _Optional[_Union[Rendering, _Mapping]] = ..., half: bool = ..., previews: bool = ..., timeout: _Optional[float] = ..., client: _Optional[str] = ..., priority: _Optional[int] = ..., progress: bool = ..., models: _Optional[_Mapping[str, str]] = ..., alone: bool = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("done", "total")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("done", "total", "tensors", "pictures")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    tensors: _containers.RepeatedCompositeFieldContainer[NamedArray]
    pictures: _containers.RepeatedCompositeFieldContainer[NamedFiles]
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[NamedArray, _Mapping]]] = ..., pictures: _Optional[_Iterable[_Union[NamedFiles, _Mapping]]] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("name", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("classes", "probabilities", "logits", "labels")
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedScalarFieldContainer[int]
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    logits: _containers.RepeatedScalarFieldContainer[float]
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, classes: _Optional[_Iterable[int]] = ..., probabilities: _Optional[_Iterable[float]] = ..., logits: _Optional[_Iterable[float]] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class RowWarning(_message.Message):
    __slots__ = ("message", "rows")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    message: str
    rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, message: _Optional[str] = ..., rows: _Optional[_Iterable[int]] = ...) -> None: ...

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
    __slots__ = ("model", "model_sha256", "model_version", "plugin", "plugin_version", "server_version", "params", "targets", "seeds", "device", "precision", "queue_seconds", "run_seconds", "batch_rows", "models")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
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
    params: str
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    seeds: _containers.RepeatedScalarFieldContainer[int]
    device: str
    precision: str
    queue_seconds: float
    run_seconds: float
    batch_rows: int
    models: _containers.RepeatedCompositeFieldContainer[SecondModel]
    def __init__(self, model: _Optional[str] = ..., model_sha256: _Optional[str] = ..., model_version: _Optional[str] = ..., plugin: _Optional[str] = ..., plugin_version: _Optional[str] = ..., server_version: _Optional[str] = ..., params: _Optional[str] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., seeds: _Optional[_Iterable[int]] = ..., device: _Optional[str] = ..., precision: _Optional[str] = ..., queue_seconds: _Optional[float] = ..., run_seconds: _Optional[float] = ..., batch_rows: _Optional[int] = ..., models: _Optional[_Iterable[_Union[SecondModel, _Mapping]]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("tensors", "metrics", "before", "after", "warnings", "pictures", "provenance")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[NamedArray]
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    before: _containers.RepeatedCompositeFieldContainer[Prediction]
    after: _containers.RepeatedCompositeFieldContainer[Prediction]
    warnings: _containers.RepeatedCompositeFieldContainer[RowWarning]
    pictures: _containers.RepeatedCompositeFieldContainer[NamedFiles]
    provenance: Provenance
    def __init__(self, tensors: _Optional[_Iterable[_Union[NamedArray, _Mapping]]] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ..., before: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., after: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., warnings: _Optional[_Iterable[_Union[RowWarning, _Mapping]]] = ..., pictures: _Optional[_Iterable[_Union[NamedFiles, _Mapping]]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("call", "progress", "preview", "result")
    CALL_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    call: int
    progress: Progress
    preview: Preview
    result: Result
    def __init__(self, call: _Optional[int] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ...) -> None: ...

class Violation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("type", "message", "violations", "retry_after")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    type: str
    message: str
    violations: _containers.RepeatedCompositeFieldContainer[Violation]
    retry_after: float
    def __init__(self, type: _Optional[str] = ..., message: _Optional[str] = ..., violations: _Optional[_Iterable[_Union[Violation, _Mapping]]] = ..., retry_after: _Optional[float] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("name", "path", "manifest_json", "samples_path")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PATH_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    manifest_json: str
    samples_path: str
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., manifest_json: _Optional[str] = ..., samples_path: _Optional[str] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("call", "request", "lends")
    CALL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    LENDS_FIELD_NUMBER: _ClassVar[int]
    call: int
    request: Call
    lends: _containers.RepeatedCompositeFieldContainer[Lend]
    def __init__(self, call: _Optional[int] = ..., request: _Optional[_Union[Call, _Mapping]] = ..., lends: _Optional[_Iterable[_Union[Lend, _Mapping]]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("call",)
    CALL_FIELD_NUMBER: _ClassVar[int]
    call: int
    def __init__(self, call: _Optional[int] = ...) -> None: ...

class Lend(_message.Message):
    __slots__ = ("call", "segment", "size", "for_result")
    CALL_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FOR_RESULT_FIELD_NUMBER: _ClassVar[int]
    call: int
    segment: int
    size: int
    for_result: bool
    def __init__(self, call: _Optional[int] = ..., segment: _Optional[int] = ..., size: _Optional[int] = ..., for_result: bool = ...) -> None: ...

class Forget(_message.Message):
    __slots__ = ("segment",)
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    segment: int
    def __init__(self, segment: _Optional[int] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("grace",)
    GRACE_FIELD_NUMBER: _ClassVar[int]
    grace: float
    def __init__(self, grace: _Optional[float] = ...) -> None: ...

class ToWorker(_message.Message):
    __slots__ = ("load", "run", "cancel", "lend", "forget", "ping", "close")
    LOAD_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    LEND_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    load: Load
    run: Run
    cancel: Cancel
    lend: Lend
    forget: Forget
    ping: Ping
    close: Close
    def __init__(self, load: _Optional[_Union[Load, _Mapping]] = ..., run: _Optional[_Union[Run, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., lend: _Optional[_Union[Lend, _Mapping]] = ..., forget: _Optional[_Union[Forget, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ...) -> None: ...

class Loaded(_message.Message):
    __slots__ = ("model_info_json",)
    MODEL_INFO_JSON_FIELD_NUMBER: _ClassVar[int]
    model_info_json: str
    def __init__(self, model_info_json: _Optional[str] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("call", "error")
    CALL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    call: int
    error: Error
    def __init__(self, call: _Optional[int] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Need(_message.Message):
    __slots__ = ("call", "bytes")
    CALL_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    call: int
    bytes: int
    def __init__(self, call: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class Log(_message.Message):
    __slots__ = ("level", "logger", "text")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    LOGGER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    level: int
    logger: str
    text: str
    def __init__(self, level: _Optional[int] = ..., logger: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("id", "busy_seconds", "wanted")
    ID_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    id: int
    busy_seconds: float
    wanted: bool
    def __init__(self, id: _Optional[int] = ..., busy_seconds: _Optional[float] = ..., wanted: bool = ...) -> None: ...

class FromWorker(_message.Message):
    __slots__ = ("loaded", "failed", "event", "need", "log", "pong")
    LOADED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    NEED_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    loaded: Loaded
    failed: Failed
    event: Event
    need: Need
    log: Log
    pong: Pong
    def __init__(self, loaded: _Optional[_Union[Loaded, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., event: _Optional[_Union[Event, _Mapping]] = ..., need: _Optional[_Union[Need, _Mapping]] = ..., log: _Optional[_Union[Log, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ...) -> None: ...

class Describe(_message.Message):
    __slots__ = ("plugin_dirs",)
    PLUGIN_DIRS_FIELD_NUMBER: _ClassVar[int]
    plugin_dirs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, plugin_dirs: _Optional[_Iterable[str]] = ...) -> None: ...

class Spawn(_message.Message):
    __slots__ = ("worker", "device", "confined", "memory_bytes", "max_queue_bytes", "max_queue", "max_batch", "execution", "read", "gpu_memory_fraction", "max_step")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CONFINED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    GPU_MEMORY_FRACTION_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_FIELD_NUMBER: _ClassVar[int]
    worker: int
    device: str
    confined: bool
    memory_bytes: int
    max_queue_bytes: int
    max_queue: int
    max_batch: int
    execution: str
    read: _containers.RepeatedScalarFieldContainer[str]
    gpu_memory_fraction: float
    max_step: float
    def __init__(self, worker: _Optional[int] = ..., device: _Optional[str] = ..., confined: bool = ..., memory_bytes: _Optional[int] = ..., max_queue_bytes: _Optional[int] = ..., max_queue: _Optional[int] = ..., max_batch: _Optional[int] = ..., execution: _Optional[str] = ..., read: _Optional[_Iterable[str]] = ..., gpu_memory_fraction: _Optional[float] = ..., max_step: _Optional[float] = ...) -> None: ...

class Kill(_message.Message):
    __slots__ = ("worker",)
    WORKER_FIELD_NUMBER: _ClassVar[int]
    worker: int
    def __init__(self, worker: _Optional[int] = ...) -> None: ...

class ToNursery(_message.Message):
    __slots__ = ("describe", "spawn", "kill")
    DESCRIBE_FIELD_NUMBER: _ClassVar[int]
    SPAWN_FIELD_NUMBER: _ClassVar[int]
    KILL_FIELD_NUMBER: _ClassVar[int]
    describe: Describe
    spawn: Spawn
    kill: Kill
    def __init__(self, describe: _Optional[_Union[Describe, _Mapping]] = ..., spawn: _Optional[_Union[Spawn, _Mapping]] = ..., kill: _Optional[_Union[Kill, _Mapping]] = ...) -> None: ...

class Described(_message.Message):
    __slots__ = ("plugins_json", "cuda_devices")
    PLUGINS_JSON_FIELD_NUMBER: _ClassVar[int]
    CUDA_DEVICES_FIELD_NUMBER: _ClassVar[int]
    plugins_json: str
    cuda_devices: int
    def __init__(self, plugins_json: _Optional[str] = ..., cuda_devices: _Optional[int] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("sentence",)
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    sentence: str
    def __init__(self, sentence: _Optional[str] = ...) -> None: ...

class Spawned(_message.Message):
    __slots__ = ("worker", "pid")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    worker: int
    pid: int
    def __init__(self, worker: _Optional[int] = ..., pid: _Optional[int] = ...) -> None: ...

class Exited(_message.Message):
    __slots__ = ("worker", "status")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    worker: int
    status: int
    def __init__(self, worker: _Optional[int] = ..., status: _Optional[int] = ...) -> None: ...

class FromNursery(_message.Message):
    __slots__ = ("described", "refused", "spawned", "exited")
    DESCRIBED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    SPAWNED_FIELD_NUMBER: _ClassVar[int]
    EXITED_FIELD_NUMBER: _ClassVar[int]
    described: Described
    refused: Refused
    spawned: Spawned
    exited: Exited
    def __init__(self, described: _Optional[_Union[Described, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., spawned: _Optional[_Union[Spawned, _Mapping]] = ..., exited: _Optional[_Union[Exited, _Mapping]] = ...) -> None: ...
