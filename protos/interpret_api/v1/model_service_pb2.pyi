from interpret_api.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoadModelRequest(_message.Message):
    __slots__ = ("name", "path", "manifest_json", "replace")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    manifest_json: str
    replace: bool
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., manifest_json: _Optional[str] = ..., replace: bool = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class UploadModelRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("name", "manifest_json", "replace", "size", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    manifest_json: str
    replace: bool
    size: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., manifest_json: _Optional[str] = ..., replace: bool = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class UploadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Verification(_message.Message):
    __slots__ = ("reference", "max_difference", "relative_difference", "batch_sizes", "inputs")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    MAX_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZES_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    reference: str
    max_difference: float
    relative_difference: float
    batch_sizes: _containers.RepeatedScalarFieldContainer[int]
    inputs: int
    def __init__(self, reference: _Optional[str] = ..., max_difference: _Optional[float] = ..., relative_difference: _Optional[float] = ..., batch_sizes: _Optional[_Iterable[int]] = ..., inputs: _Optional[int] = ...) -> None: ...

class Layer(_message.Message):
    __slots__ = ("name", "kind", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Bounds(_message.Message):
    __slots__ = ("lower", "upper")
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    lower: float
    upper: float
    def __init__(self, lower: _Optional[float] = ..., upper: _Optional[float] = ...) -> None: ...

class ModelInput(_message.Message):
    __slots__ = ("name", "kind", "shape", "dtype", "layout", "bounds", "limit", "integers", "features")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: str
    layout: str
    bounds: Bounds
    limit: int
    integers: bool
    features: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[str] = ..., layout: _Optional[str] = ..., bounds: _Optional[_Union[Bounds, _Mapping]] = ..., limit: _Optional[int] = ..., integers: bool = ..., features: _Optional[_Iterable[str]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "format", "form", "form_reason", "sha256", "size", "device", "precision", "input_name", "output_name", "input_shape", "input_dtype", "input_layout", "bounds", "classes", "labels", "logits_from", "layers", "capabilities", "lacking", "verification", "notes", "manifest_json", "max_batch", "inputs", "explained_shape")
    class LackingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    FORM_REASON_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    INPUT_NAME_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_NAME_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    INPUT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    INPUT_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FROM_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    LACKING_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    EXPLAINED_SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    format: str
    form: str
    form_reason: str
    sha256: str
    size: int
    device: str
    precision: str
    input_name: str
    output_name: str
    input_shape: _containers.RepeatedScalarFieldContainer[int]
    input_dtype: str
    input_layout: str
    bounds: Bounds
    classes: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    logits_from: str
    layers: _containers.RepeatedCompositeFieldContainer[Layer]
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    lacking: _containers.ScalarMap[str, str]
    verification: Verification
    notes: _containers.RepeatedScalarFieldContainer[str]
    manifest_json: str
    max_batch: int
    inputs: _containers.RepeatedCompositeFieldContainer[ModelInput]
    explained_shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., format: _Optional[str] = ..., form: _Optional[str] = ..., form_reason: _Optional[str] = ..., sha256: _Optional[str] = ..., size: _Optional[int] = ..., device: _Optional[str] = ..., precision: _Optional[str] = ..., input_name: _Optional[str] = ..., output_name: _Optional[str] = ..., input_shape: _Optional[_Iterable[int]] = ..., input_dtype: _Optional[str] = ..., input_layout: _Optional[str] = ..., bounds: _Optional[_Union[Bounds, _Mapping]] = ..., classes: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., logits_from: _Optional[str] = ..., layers: _Optional[_Iterable[_Union[Layer, _Mapping]]] = ..., capabilities: _Optional[_Iterable[str]] = ..., lacking: _Optional[_Mapping[str, str]] = ..., verification: _Optional[_Union[Verification, _Mapping]] = ..., notes: _Optional[_Iterable[str]] = ..., manifest_json: _Optional[str] = ..., max_batch: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[ModelInput, _Mapping]]] = ..., explained_shape: _Optional[_Iterable[int]] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("model", "inputs", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    inputs: _types_pb2.Inputs
    priority: _types_pb2.Priority
    def __init__(self, model: _Optional[str] = ..., inputs: _Optional[_Union[_types_pb2.Inputs, _Mapping]] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("logits", "probabilities", "predictions")
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    logits: _types_pb2.Tensor
    probabilities: _types_pb2.Tensor
    predictions: _containers.RepeatedCompositeFieldContainer[_types_pb2.Prediction]
    def __init__(self, logits: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., probabilities: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., predictions: _Optional[_Iterable[_Union[_types_pb2.Prediction, _Mapping]]] = ...) -> None: ...

class ComputeGradientRequest(_message.Message):
    __slots__ = ("model", "inputs", "grad_outputs", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    GRAD_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    inputs: _types_pb2.Inputs
    grad_outputs: _types_pb2.Tensor
    priority: _types_pb2.Priority
    def __init__(self, model: _Optional[str] = ..., inputs: _Optional[_Union[_types_pb2.Inputs, _Mapping]] = ..., grad_outputs: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ...) -> None: ...

class ComputeGradientResponse(_message.Message):
    __slots__ = ("gradient", "logits", "gradients")
    class GradientsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _types_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ...) -> None: ...
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    gradient: _types_pb2.Tensor
    logits: _types_pb2.Tensor
    gradients: _containers.MessageMap[str, _types_pb2.Tensor]
    def __init__(self, gradient: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., logits: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ..., gradients: _Optional[_Mapping[str, _types_pb2.Tensor]] = ...) -> None: ...

class ComputeActivationsRequest(_message.Message):
    __slots__ = ("model", "inputs", "layers", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    inputs: _types_pb2.Inputs
    layers: _containers.RepeatedScalarFieldContainer[str]
    priority: _types_pb2.Priority
    def __init__(self, model: _Optional[str] = ..., inputs: _Optional[_Union[_types_pb2.Inputs, _Mapping]] = ..., layers: _Optional[_Iterable[str]] = ..., priority: _Optional[_Union[_types_pb2.Priority, str]] = ...) -> None: ...

class ComputeActivationsResponse(_message.Message):
    __slots__ = ("activations",)
    class ActivationsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _types_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_types_pb2.Tensor, _Mapping]] = ...) -> None: ...
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    activations: _containers.MessageMap[str, _types_pb2.Tensor]
    def __init__(self, activations: _Optional[_Mapping[str, _types_pb2.Tensor]] = ...) -> None: ...
