from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListPluginsRequest(_message.Message):
    __slots__ = ("kind",)
    KIND_FIELD_NUMBER: _ClassVar[int]
    kind: str
    def __init__(self, kind: _Optional[str] = ...) -> None: ...

class ListPluginsResponse(_message.Message):
    __slots__ = ("plugins",)
    PLUGINS_FIELD_NUMBER: _ClassVar[int]
    plugins: _containers.RepeatedCompositeFieldContainer[Plugin]
    def __init__(self, plugins: _Optional[_Iterable[_Union[Plugin, _Mapping]]] = ...) -> None: ...

class GetPluginRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetPluginResponse(_message.Message):
    __slots__ = ("plugin",)
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    plugin: Plugin
    def __init__(self, plugin: _Optional[_Union[Plugin, _Mapping]] = ...) -> None: ...

class Plugin(_message.Message):
    __slots__ = ("name", "kind", "api", "version", "distribution", "summary", "description", "requires", "rows", "inputs", "target_kinds", "params_schema_json", "result_fields", "tensors", "models")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    API_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REQUIRES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TARGET_KINDS_FIELD_NUMBER: _ClassVar[int]
    PARAMS_SCHEMA_JSON_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELDS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    api: int
    version: str
    distribution: str
    summary: str
    description: str
    requires: _containers.RepeatedScalarFieldContainer[str]
    rows: str
    inputs: str
    target_kinds: _containers.RepeatedScalarFieldContainer[str]
    params_schema_json: str
    result_fields: _containers.RepeatedCompositeFieldContainer[ResultField]
    tensors: _containers.RepeatedCompositeFieldContainer[AuxTensor]
    models: _containers.RepeatedCompositeFieldContainer[ModelRole]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., api: _Optional[int] = ..., version: _Optional[str] = ..., distribution: _Optional[str] = ..., summary: _Optional[str] = ..., description: _Optional[str] = ..., requires: _Optional[_Iterable[str]] = ..., rows: _Optional[str] = ..., inputs: _Optional[str] = ..., target_kinds: _Optional[_Iterable[str]] = ..., params_schema_json: _Optional[str] = ..., result_fields: _Optional[_Iterable[_Union[ResultField, _Mapping]]] = ..., tensors: _Optional[_Iterable[_Union[AuxTensor, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[ModelRole, _Mapping]]] = ...) -> None: ...

class ResultField(_message.Message):
    __slots__ = ("name", "role", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    description: str
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class ModelRole(_message.Message):
    __slots__ = ("name", "description", "requires", "required", "same_inputs", "output")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REQUIRES_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    SAME_INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    requires: _containers.RepeatedScalarFieldContainer[str]
    required: bool
    same_inputs: bool
    output: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., requires: _Optional[_Iterable[str]] = ..., required: bool = ..., same_inputs: bool = ..., output: _Optional[str] = ...) -> None: ...

class AuxTensor(_message.Message):
    __slots__ = ("name", "description", "like_input", "required")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    LIKE_INPUT_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    like_input: bool
    required: bool
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., like_input: bool = ..., required: bool = ...) -> None: ...
