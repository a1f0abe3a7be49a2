from interpret_api.v1 import model_service_pb2 as _model_service_pb2
from interpret_api.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReportForm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPORT_FORM_UNSPECIFIED: _ClassVar[ReportForm]
    REPORT_FORM_HTML: _ClassVar[ReportForm]
    REPORT_FORM_JSON: _ClassVar[ReportForm]
    REPORT_FORM_CSV: _ClassVar[ReportForm]
    REPORT_FORM_PARQUET: _ClassVar[ReportForm]
    REPORT_FORM_BUNDLE: _ClassVar[ReportForm]

class AuditSuite(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_SUITE_UNSPECIFIED: _ClassVar[AuditSuite]
    AUDIT_SUITE_QUICK: _ClassVar[AuditSuite]
    AUDIT_SUITE_STANDARD: _ClassVar[AuditSuite]
    AUDIT_SUITE_BLACK_BOX: _ClassVar[AuditSuite]
    AUDIT_SUITE_CORRUPTION: _ClassVar[AuditSuite]

class AuditNorm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_NORM_UNSPECIFIED: _ClassVar[AuditNorm]
    AUDIT_NORM_LINF: _ClassVar[AuditNorm]
    AUDIT_NORM_L2: _ClassVar[AuditNorm]
    AUDIT_NORM_L1: _ClassVar[AuditNorm]

class AuditState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_STATE_UNSPECIFIED: _ClassVar[AuditState]
    AUDIT_STATE_QUEUED: _ClassVar[AuditState]
    AUDIT_STATE_RUNNING: _ClassVar[AuditState]
    AUDIT_STATE_CANCELLED: _ClassVar[AuditState]
    AUDIT_STATE_FAILED: _ClassVar[AuditState]
    AUDIT_STATE_FINISHED: _ClassVar[AuditState]
REPORT_FORM_UNSPECIFIED: ReportForm
REPORT_FORM_HTML: ReportForm
REPORT_FORM_JSON: ReportForm
REPORT_FORM_CSV: ReportForm
REPORT_FORM_PARQUET: ReportForm
REPORT_FORM_BUNDLE: ReportForm
AUDIT_SUITE_UNSPECIFIED: AuditSuite
AUDIT_SUITE_QUICK: AuditSuite
AUDIT_SUITE_STANDARD: AuditSuite
AUDIT_SUITE_BLACK_BOX: AuditSuite
AUDIT_SUITE_CORRUPTION: AuditSuite
AUDIT_NORM_UNSPECIFIED: AuditNorm
AUDIT_NORM_LINF: AuditNorm
AUDIT_NORM_L2: AuditNorm
AUDIT_NORM_L1: AuditNorm
AUDIT_STATE_UNSPECIFIED: AuditState
AUDIT_STATE_QUEUED: AuditState
AUDIT_STATE_RUNNING: AuditState
AUDIT_STATE_CANCELLED: AuditState
AUDIT_STATE_FAILED: AuditState
AUDIT_STATE_FINISHED: AuditState

class CreateAuditRequest(_message.Message):
    __slots__ = ("header", "samples")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    header: AuditHeader
    samples: AuditSamples
    def __init__(self, header: _Optional[_Union[AuditHeader, _Mapping]] = ..., samples: _Optional[_Union[AuditSamples, _Mapping]] = ...) -> None: ...

class AuditHeader(_message.Message):
    __slots__ = ("spec", "samples")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    spec: AuditSpec
    samples: int
    def __init__(self, spec: _Optional[_Union[AuditSpec, _Mapping]] = ..., samples: _Optional[int] = ...) -> None: ...

class AuditSamples(_message.Message):
    __slots__ = ("inputs", "labels")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    inputs: _types_pb2.Inputs
    labels: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, inputs: _Optional[_Union[_types_pb2.Inputs, _Mapping]] = ..., labels: _Optional[_Iterable[int]] = ...) -> None: ...

class CreateAuditResponse(_message.Message):
    __slots__ = ("audit",)
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    audit: Audit
    def __init__(self, audit: _Optional[_Union[Audit, _Mapping]] = ...) -> None: ...

class GetAuditRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class GetAuditResponse(_message.Message):
    __slots__ = ("audit",)
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    audit: Audit
    def __init__(self, audit: _Optional[_Union[Audit, _Mapping]] = ...) -> None: ...

class ListAuditsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAuditsResponse(_message.Message):
    __slots__ = ("audits",)
    AUDITS_FIELD_NUMBER: _ClassVar[int]
    audits: _containers.RepeatedCompositeFieldContainer[Audit]
    def __init__(self, audits: _Optional[_Iterable[_Union[Audit, _Mapping]]] = ...) -> None: ...

class WatchAuditRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class WatchAuditResponse(_message.Message):
    __slots__ = ("audit",)
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    audit: Audit
    def __init__(self, audit: _Optional[_Union[Audit, _Mapping]] = ...) -> None: ...

class CancelAuditRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class CancelAuditResponse(_message.Message):
    __slots__ = ("audit",)
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    audit: Audit
    def __init__(self, audit: _Optional[_Union[Audit, _Mapping]] = ...) -> None: ...

class ResumeAuditRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ResumeAuditResponse(_message.Message):
    __slots__ = ("audit",)
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    audit: Audit
    def __init__(self, audit: _Optional[_Union[Audit, _Mapping]] = ...) -> None: ...

class DeleteAuditRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class DeleteAuditResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetAuditReportRequest(_message.Message):
    __slots__ = ("id", "form")
    ID_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    id: str
    form: ReportForm
    def __init__(self, id: _Optional[str] = ..., form: _Optional[_Union[ReportForm, str]] = ...) -> None: ...

class GetAuditReportResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ReportHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[ReportHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ReportHeader(_message.Message):
    __slots__ = ("name", "media_type", "size", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    media_type: str
    size: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., media_type: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class AuditSpec(_message.Message):
    __slots__ = ("model", "title", "suite", "attacks", "threats", "minimal", "seed", "batch_size", "budget", "confirm_small_epsilon")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    SUITE_FIELD_NUMBER: _ClassVar[int]
    ATTACKS_FIELD_NUMBER: _ClassVar[int]
    THREATS_FIELD_NUMBER: _ClassVar[int]
    MINIMAL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    CONFIRM_SMALL_EPSILON_FIELD_NUMBER: _ClassVar[int]
    model: str
    title: str
    suite: AuditSuite
    attacks: _containers.RepeatedCompositeFieldContainer[AuditAttack]
    threats: _containers.RepeatedCompositeFieldContainer[AuditThreat]
    minimal: bool
    seed: int
    batch_size: int
    budget: AuditBudget
    confirm_small_epsilon: bool
    def __init__(self, model: _Optional[str] = ..., title: _Optional[str] = ..., suite: _Optional[_Union[AuditSuite, str]] = ..., attacks: _Optional[_Iterable[_Union[AuditAttack, _Mapping]]] = ..., threats: _Optional[_Iterable[_Union[AuditThreat, _Mapping]]] = ..., minimal: bool = ..., seed: _Optional[int] = ..., batch_size: _Optional[int] = ..., budget: _Optional[_Union[AuditBudget, _Mapping]] = ..., confirm_small_epsilon: bool = ...) -> None: ...

class AuditThreat(_message.Message):
    __slots__ = ("norm", "epsilons")
    NORM_FIELD_NUMBER: _ClassVar[int]
    EPSILONS_FIELD_NUMBER: _ClassVar[int]
    norm: AuditNorm
    epsilons: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, norm: _Optional[_Union[AuditNorm, str]] = ..., epsilons: _Optional[_Iterable[float]] = ...) -> None: ...

class AuditAttack(_message.Message):
    __slots__ = ("plugin", "name", "params_json")
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMS_JSON_FIELD_NUMBER: _ClassVar[int]
    plugin: str
    name: str
    params_json: str
    def __init__(self, plugin: _Optional[str] = ..., name: _Optional[str] = ..., params_json: _Optional[str] = ...) -> None: ...

class AuditBudget(_message.Message):
    __slots__ = ("seconds", "queries")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    queries: int
    def __init__(self, seconds: _Optional[float] = ..., queries: _Optional[int] = ...) -> None: ...

class Audit(_message.Message):
    __slots__ = ("id", "state", "error", "spec", "plan", "origin", "progress", "created", "started", "finished", "seconds", "current")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: AuditState
    error: str
    spec: AuditSpec
    plan: AuditPlan
    origin: AuditOrigin
    progress: AuditProgress
    created: float
    started: float
    finished: float
    seconds: float
    current: AuditStep
    def __init__(self, id: _Optional[str] = ..., state: _Optional[_Union[AuditState, str]] = ..., error: _Optional[str] = ..., spec: _Optional[_Union[AuditSpec, _Mapping]] = ..., plan: _Optional[_Union[AuditPlan, _Mapping]] = ..., origin: _Optional[_Union[AuditOrigin, _Mapping]] = ..., progress: _Optional[_Union[AuditProgress, _Mapping]] = ..., created: _Optional[float] = ..., started: _Optional[float] = ..., finished: _Optional[float] = ..., seconds: _Optional[float] = ..., current: _Optional[_Union[AuditStep, _Mapping]] = ...) -> None: ...

class AuditStep(_message.Message):
    __slots__ = ("batch", "stage", "done", "total")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    batch: int
    stage: str
    done: int
    total: int
    def __init__(self, batch: _Optional[int] = ..., stage: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class AuditPlan(_message.Message):
    __slots__ = ("samples", "batch_size", "stages", "notes")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    samples: int
    batch_size: int
    stages: _containers.RepeatedScalarFieldContainer[str]
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, samples: _Optional[int] = ..., batch_size: _Optional[int] = ..., stages: _Optional[_Iterable[str]] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class AuditProgress(_message.Message):
    __slots__ = ("done", "total", "samples", "correct", "standing")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    samples: int
    correct: int
    standing: int
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ..., samples: _Optional[int] = ..., correct: _Optional[int] = ..., standing: _Optional[int] = ...) -> None: ...

class AuditOrigin(_message.Message):
    __slots__ = ("model", "model_version", "model_sha256", "model_format", "manifest_json", "input_shape", "bounds", "classes", "labels", "data", "data_sha256", "versions", "device", "precision")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_FORMAT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DATA_SHA256_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_version: str
    model_sha256: str
    model_format: str
    manifest_json: str
    input_shape: _containers.RepeatedScalarFieldContainer[int]
    bounds: _model_service_pb2.Bounds
    classes: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    data: str
    data_sha256: str
    versions: _containers.ScalarMap[str, str]
    device: str
    precision: str
    def __init__(self, model: _Optional[str] = ..., model_version: _Optional[str] = ..., model_sha256: _Optional[str] = ..., model_format: _Optional[str] = ..., manifest_json: _Optional[str] = ..., input_shape: _Optional[_Iterable[int]] = ..., bounds: _Optional[_Union[_model_service_pb2.Bounds, _Mapping]] = ..., classes: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., data: _Optional[str] = ..., data_sha256: _Optional[str] = ..., versions: _Optional[_Mapping[str, str]] = ..., device: _Optional[str] = ..., precision: _Optional[str] = ...) -> None: ...
