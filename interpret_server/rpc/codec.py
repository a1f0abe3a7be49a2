"""Between protobuf messages and the values of `engine.api`; `bytes` fields are read once."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from interpret_api.v1 import interpret_service_pb2 as runs
from interpret_api.v1 import types_pb2 as types

from ..data import StoredCall, StoredRows
from ..engine import api
from ..errors import InvalidRequest
from .parts import Incoming, Outgoing
from .rendering import to_rendering

MODEL_NAME = re.compile(r"(?!\.+\Z)[A-Za-z0-9._-]{1,128}")
NO_DEADLINE = 1e8  # seconds; gRPC reports a far deadline where the caller set none

_DTYPES: dict[int, str] = {
    types.DataType.Value(f"DATA_TYPE_{name.upper()}"): name for name in api.ITEM_SIZES
}
_NUMBERS: dict[str, Any] = {name: number for number, name in _DTYPES.items()}


def required(value: str, field: str, what: str) -> str:
    """A field that may not be empty.

    Raises:
        InvalidRequest: naming the field.
    """
    if not value:
        raise InvalidRequest.field(field, f"give the name of {what}")
    return value


def model_name(value: str, field: str = "name") -> str:
    """A name that a model may be served under.

    Raises:
        InvalidRequest: naming the field.
    """
    if not MODEL_NAME.fullmatch(value):
        raise InvalidRequest.field(
            field,
            "a model's name has 1 to 128 letters, digits, dots, underscores and hyphens, "
            "and not dots alone",
        )
    return value


def check_array(dtype: str, shape: Sequence[int], size: int, field: str) -> None:
    """Compare a tensor's shape with its size in bytes.

    Raises:
        InvalidRequest: naming the field.
    """
    if any(axis < 0 for axis in shape):
        raise InvalidRequest.field(f"{field}.shape", f"{list(shape)} has a negative size")
    expected = math.prod(shape) * api.ITEM_SIZES[dtype]
    if size != expected:
        raise InvalidRequest.field(
            f"{field}.data",
            f"{size} bytes were sent, but shape {list(shape)} of {dtype} takes {expected}",
        )


def to_array(tensor: types.Tensor, field: str, parts: Incoming | None = None) -> api.Array:
    """A tensor of a request.

    Args:
        tensor: the message.
        field: its name in the request.
        parts: of a chunked call; the array's bytes may then come later.

    Raises:
        InvalidRequest: dtype, shape and data do not fit together.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InvalidRequest.field(
            f"{field}.dtype", f"give one of {', '.join(types.DataType.keys()[1:])}"
        )
    shape, data = tuple(tensor.shape), _data(tensor, field, parts)
    check_array(dtype, shape, len(data), field)
    return api.Array(dtype, shape, data)


def _data(tensor: types.Tensor, field: str, parts: Incoming | None) -> bytes | memoryview:
    data = tensor.data
    if not tensor.part:
        return data
    if data:
        raise InvalidRequest.field(f"{field}.part", "give data or a part, not both")
    return _part(tensor.part, f"{field}.part", parts)


def _part(part: int, field: str, parts: Incoming | None) -> memoryview:
    if parts is None:
        raise InvalidRequest.field(field, "only requests of ChunkedService.Call have parts")
    return parts.take(part, field)


def from_array(array: api.Array, tensor: types.Tensor, parts: Outgoing | None = None) -> None:
    """Fill a tensor of a response; its bytes become a part where there are `parts`."""
    tensor.dtype = _NUMBERS[array.dtype]
    tensor.shape.extend(array.shape)
    part = 0 if parts is None else parts.add(array.data)
    if part:
        tensor.part = part
    else:
        tensor.data = bytes(array.data)


Inputs = api.Array | tuple[bytes, ...] | Mapping[str, api.Array] | StoredRows


def to_inputs(
    inputs: types.Inputs, field: str = "inputs", parts: Incoming | None = None
) -> Inputs | None:
    """The inputs of a request; None where it brings none."""
    match inputs.WhichOneof("value"):
        case "named":
            if not inputs.named.tensors:
                raise InvalidRequest.field(f"{field}.named", "give at least one tensor")
            return {
                name: to_array(tensor, f"{field}.{name}", parts)
                for name, tensor in inputs.named.tensors.items()
            }
        case "tensor":
            return to_array(inputs.tensor, field, parts)
        case "images":
            return _images(inputs.images, f"{field}.images", parts)
        case "dataset":
            return _stored(inputs.dataset, f"{field}.dataset")
        case _:
            return None


def _stored(message: types.DataSet, field: str) -> StoredRows:
    required(message.name, f"{field}.name", "a data set below the server's data root")
    if message.start < 0 or message.count < 0:
        raise InvalidRequest.field(f"{field}.rows", "start and count are not negative")
    return StoredRows(message.name, message.start, message.count or None, tuple(message.rows))


def make_call(*, inputs: Inputs | None, **fields: Any) -> api.Call:
    """A call, with its rows or those of a data set, which are then read before it runs."""
    if isinstance(inputs, StoredRows):
        return StoredCall(dataset=inputs, **fields)
    return api.Call(inputs=inputs, **fields)


def _images(message: types.EncodedImages, field: str, parts: Incoming | None) -> tuple[Any, ...]:
    images = tuple(message.images)
    if images and message.parts:
        raise InvalidRequest.field(f"{field}.parts", "give images or parts, not both")
    if not (images or message.parts):
        raise InvalidRequest.field(field, "give at least one image")
    return images or tuple(
        _part(part, f"{field}.parts[{row}]", parts) for row, part in enumerate(message.parts)
    )


def required_inputs(request: Any, parts: Incoming | None = None) -> Inputs:
    """The inputs of a request that needs some.

    Raises:
        InvalidRequest: there are none.
    """
    value = to_inputs(request.inputs, parts=parts) if request.HasField("inputs") else None
    if value is None:
        raise InvalidRequest.field("inputs", "give a tensor, encoded images or a data set")
    return value


def to_target(target: types.Target, field: str, parts: Incoming | None = None) -> api.Target:
    """One target of a request.

    Raises:
        InvalidRequest: its unit is missing, or a class is sought in a layer.
    """
    layer = target.layer or None
    match target.WhichOneof("unit"):
        case "class_index":
            if layer is not None:
                raise InvalidRequest.field(
                    f"{field}.layer", "a class is a logit; name a channel or neuron of a layer"
                )
            return api.Target("class", (target.class_index,))
        case "neuron":
            return api.Target("neuron", tuple(target.neuron.index), layer)
        case "channel":
            return api.Target("channel", (target.channel,), layer)
        case "whole_layer" if target.whole_layer:
            return api.Target("layer", (), layer)
        case "direction":
            direction = to_array(target.direction, f"{field}.direction", parts)
            return api.Target("direction", (), layer, direction)
        case _:
            raise InvalidRequest.field(
                field, "set one of class_index, neuron, channel, whole_layer and direction"
            )


def from_target(target: api.Target, parts: Outgoing | None = None) -> types.Target:
    """One target of a result's provenance."""
    message = types.Target(layer=target.layer or "")
    match target.kind:
        case "class":
            message.class_index = target.index[0]
        case "neuron":
            message.neuron.index.extend(target.index)
        case "channel":
            message.channel = target.index[0]
        case "layer":
            message.whole_layer = True
        case "direction" if target.direction is not None:
            from_array(target.direction, message.direction, parts)
    return message


def to_timeout(remaining: float | None) -> float | None:
    """Seconds that the caller will wait; None where it set no deadline."""
    return None if remaining is None or remaining > NO_DEADLINE else max(remaining, 0.0)


def to_call(
    request: runs.RunRequest,
    *,
    parts: Incoming | None = None,
    **fields: Any,
) -> api.Call:
    """A request to run a plugin.

    Args:
        request: the message.
        parts: of a chunked call.
        fields: of the call, that the message does not hold.

    Raises:
        InvalidRequest: naming the field that is wrong.
    """
    return make_call(
        model=required(request.model, "model", "a loaded model; ListModels lists them"),
        plugin=required(request.plugin, "plugin", "a plugin; ListPlugins lists them"),
        params=request.params_json or "{}",
        inputs=to_inputs(request.inputs, parts=parts) if request.HasField("inputs") else None,
        targets=tuple(
            to_target(target, f"targets[{row}]", parts)
            for row, target in enumerate(request.targets)
        ),
        seeds=tuple(request.seeds),
        tensors={
            name: to_array(tensor, f"tensors.{name}", parts)
            for name, tensor in request.tensors.items()
        },
        models={
            role: required(name, f"models.{role}", "a loaded model; ListModels lists them")
            for role, name in request.models.items()
        },
        render=to_rendering(request),
        half=request.half_precision,
        **fields,
    )


def from_prediction(prediction: api.Prediction) -> types.Prediction:
    """One row's classes."""
    return types.Prediction(
        classes=prediction.classes,
        probabilities=prediction.probabilities,
        logits=prediction.logits,
        labels=prediction.labels,
    )


def _fill(
    message: runs.Preview | runs.Result,
    tensors: Mapping[str, api.Array],
    pictures: Mapping[str, tuple[bytes, ...]],
    parts: Outgoing | None,
) -> None:
    for name, array in tensors.items():
        from_array(array, message.tensors[name], parts)
    for name, files in pictures.items():
        picture = message.pictures[name]
        if parts is not None:
            picture.parts.extend(parts.add_files(files))
        if not picture.parts:
            picture.png.extend(files)


def from_result(result: api.Result, message: runs.Result, parts: Outgoing | None = None) -> None:
    """Fill the result of a response."""
    _fill(message, result.tensors, result.pictures, parts)
    for name, values in result.metrics.items():
        message.metrics[name].values.extend(values)
    message.predictions_before.extend(map(from_prediction, result.before))
    message.predictions_after.extend(map(from_prediction, result.after))
    for warning in result.warnings:
        message.warnings.add(message=warning.message, rows=warning.rows)
    source = result.provenance
    message.provenance.CopyFrom(
        runs.Provenance(
            model=source.model,
            model_sha256=source.model_sha256,
            model_version=source.model_version,
            plugin=source.plugin,
            plugin_version=source.plugin_version,
            server_version=source.server_version,
            params_json=source.params,
            targets=[from_target(target, parts) for target in source.targets],
            seeds=source.seeds,
            device=source.device,
            precision=source.precision,
            queue_seconds=source.queue_seconds,
            run_seconds=source.run_seconds,
            batch_rows=source.batch_rows,
            models=[runs.SecondModel(**vars(item)) for item in source.models],
        )
    )


def from_event(event: api.Event, parts: Outgoing | None = None) -> runs.RunStreamResponse:
    """One message of a stream."""
    response = runs.RunStreamResponse()
    match event:
        case api.Progress():
            response.progress.done, response.progress.total = event.done, event.total
            response.progress.SetInParent()
        case api.Preview():
            response.preview.done, response.preview.total = event.done, event.total
            response.preview.SetInParent()
            _fill(response.preview, event.tensors, event.pictures, parts)
        case api.Result():
            from_result(event, response.result, parts)
    return response
