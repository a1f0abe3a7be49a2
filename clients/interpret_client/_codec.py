"""Values of the caller to protobuf messages, without I/O except for reading named image files."""

import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from interpret_api.v1 import types_pb2 as types

from ._chunks import Part, Parts
from .errors import InvalidRequest, ServerError
from .results import Array, DataSet, Target

ImageFile = str | PathLike[str] | bytes
Inputs = Array | dict[str, Array] | list[bytes] | DataSet | None

IMAGE_BYTES = 1 << 20
PICTURE_BYTES = 1 << 17

_PRIORITIES: Mapping[str, types.Priority] = {
    "low": types.PRIORITY_LOW,
    "normal": types.PRIORITY_NORMAL,
    "high": types.PRIORITY_HIGH,
}
_DTYPES: Mapping[str, types.DataType] = {
    "float32": types.DATA_TYPE_FLOAT32,
    "float64": types.DATA_TYPE_FLOAT64,
    "float16": types.DATA_TYPE_FLOAT16,
    "bfloat16": types.DATA_TYPE_BFLOAT16,  # ml_dtypes' name; numpy itself has none
    "int64": types.DATA_TYPE_INT64,
    "int32": types.DATA_TYPE_INT32,
    "int16": types.DATA_TYPE_INT16,
    "int8": types.DATA_TYPE_INT8,
    "uint8": types.DATA_TYPE_UINT8,
    "bool": types.DATA_TYPE_BOOL,
}
_NAMES = {code: name for name, code in _DTYPES.items()}


def to_array(value: Any, field: str) -> Array:
    """Anything array-like as a numpy array; Python's own floats become float32.

    Torch tensors may require gradients and lie on any device.
    """
    if isinstance(value, np.ndarray):
        return value
    for step in ("detach", "cpu"):
        if callable(method := getattr(value, step, None)):
            value = method()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InvalidRequest.field(field, f"cannot be read as an array ({error})") from error
    if not hasattr(value, "__array__") and array.dtype == np.float64:
        return array.astype(np.float32)
    return array


def encode_tensor(
    value: Any, field: str, parts: Parts | None = None, message: types.Tensor | None = None
) -> types.Tensor:
    """An array as a message: little-endian bytes in C order, as a part where there are `parts`.

    `message` is filled where it is given: protobuf copies a message into the one that takes it.
    """
    array = to_array(value, field)
    dtype = _DTYPES.get(array.dtype.name)
    if dtype is None:
        raise InvalidRequest.field(
            field, f"arrays of type {array.dtype} cannot be sent; use one of {', '.join(_DTYPES)}"
        )
    little = (
        array
        if array.dtype.name == "bfloat16"
        else array.astype(array.dtype.newbyteorder("<"), copy=False)
    )
    message = types.Tensor() if message is None else message
    message.dtype = dtype
    message.shape.extend(array.shape)
    if parts is not None:
        flat = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
        message.part = parts.add(flat.data)
    if not message.part:
        message.data = little.tobytes()
    return message


def decode_tensor(tensor: types.Tensor, name: str, parts: Sequence[Part] = ()) -> Array:
    """A message as a writable array; bfloat16 becomes float32, which holds it exactly."""
    dtype = _NAMES.get(tensor.dtype)
    if dtype is None:
        raise ServerError(f"{name}: the server sent an element type that this client lacks")
    stored = np.dtype("<u2" if dtype == "bfloat16" else dtype).newbyteorder("<")
    shape, data = tuple(tensor.shape), _data(tensor, name, parts)
    if len(data) != math.prod(shape) * stored.itemsize:
        raise ServerError(f"{name}: the server sent {len(data)} bytes for shape {shape}")
    array = np.frombuffer(data, dtype=stored).reshape(shape)
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _data(tensor: types.Tensor, name: str, parts: Sequence[Part]) -> bytearray | Part:
    if not tensor.part:
        return bytearray(tensor.data)
    if tensor.part > len(parts):
        raise ServerError(f"{name}: the server did not send its bytes")
    return parts[tensor.part - 1]


def decode_tensors(
    tensors: Mapping[str, types.Tensor], parts: Sequence[Part] = ()
) -> dict[str, Array]:
    """Named messages as arrays, in the order of their names."""
    return {name: decode_tensor(tensors[name], name, parts) for name in sorted(tensors)}


def read_inputs(inputs: Any) -> Inputs:
    """An array `(N, ...)`, arrays by name, or encoded images: one, or one per row in sequence."""
    if inputs is None or isinstance(inputs, DataSet):
        return inputs
    if isinstance(inputs, Mapping):
        return {str(name): to_array(value, f"inputs.{name}") for name, value in inputs.items()}
    if isinstance(inputs, str | PathLike | bytes):
        inputs = [inputs]
    if isinstance(inputs, list | tuple) and any(
        isinstance(item, str | PathLike | bytes) for item in inputs
    ):
        return [_image(item, row) for row, item in enumerate(inputs)]
    return to_array(inputs, "inputs")


def encode_inputs(
    inputs: Inputs, parts: Parts | None = None, message: types.Inputs | None = None
) -> types.Inputs:
    """The inputs as a message; `message` is filled where it is given, and left alone by None."""
    message = types.Inputs() if message is None else message
    if isinstance(inputs, DataSet):
        message.dataset.CopyFrom(_encode_rows(inputs))
    elif isinstance(inputs, dict):
        message.named.SetInParent()
        for name, value in inputs.items():
            encode_tensor(value, f"inputs.{name}", parts, message.named.tensors[name])
    elif isinstance(inputs, list):
        message.images.SetInParent()
        message.images.parts.extend([] if parts is None else parts.add_files(inputs))
        message.images.images.extend([] if message.images.parts else inputs)
    elif inputs is not None:
        encode_tensor(inputs, "inputs", parts, message.tensor)
    return message


def _encode_rows(dataset: DataSet) -> types.DataSet:
    field, rows = "inputs.dataset.rows", dataset.rows
    if rows is None:
        return types.DataSet(name=dataset.name)
    if not isinstance(rows, slice):
        wanted = to_array(rows, field).reshape(-1)
        if not wanted.size or wanted.dtype.kind not in "iu" or wanted.min() < 0:
            raise InvalidRequest.field(field, "give a slice, or the numbers of rows")
        return types.DataSet(name=dataset.name, rows=wanted.tolist())
    start, stop = rows.start or 0, rows.stop
    if rows.step not in (None, 1) or start < 0 or (stop is not None and stop <= start):
        raise InvalidRequest.field(field, "give a slice of at least one row, from 0 and by 1")
    return types.DataSet(name=dataset.name, start=start, count=0 if stop is None else stop - start)


def expected_bytes(inputs: Inputs, tensors: Iterable[Array], pictures: int = 0) -> int:
    """About as many bytes as the request, or a result like its inputs, will have.

    Results hold four bytes and more per element, and a decoded image about a MiB. A picture has
    about a byte per element.

    Args:
        inputs: of the request.
        tensors: the other arrays.
        pictures: how many are drawn of every row.
    """
    arrays = list(tensors)
    if isinstance(inputs, dict):
        arrays += inputs.values()
    elif isinstance(inputs, np.ndarray):
        arrays.append(inputs)
    images = inputs if isinstance(inputs, list) else []
    return sum(max(array.nbytes, 4 * array.size) + pictures * array.size for array in arrays) + sum(
        max(len(image), IMAGE_BYTES) + pictures * PICTURE_BYTES for image in images
    )


def _image(item: Any, row: int) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str | PathLike):
        return Path(item).read_bytes()
    raise InvalidRequest.field(
        f"inputs[{row}]", "a list of images holds paths and bytes only; send arrays as one array"
    )


def encode_targets(target: Any, parts: Parts | None = None) -> list[types.Target]:
    """None, one target, or one per row; see `Client.run` for what a target may be."""
    if target is None:
        return []
    if isinstance(target, Mapping) or _is_int(target):
        return [_target(target, "target", parts)]
    if isinstance(target, list | tuple) and any(isinstance(item, Mapping) for item in target):
        return [_target(item, f"target[{row}]", parts) for row, item in enumerate(target)]
    classes = to_array(target, "target")
    if classes.dtype.kind not in "iu" or classes.ndim > 1:
        raise InvalidRequest.field(
            "target", "give a class, one class per row, or dictionaries with a layer"
        )
    return [types.Target(class_index=int(item)) for item in classes.reshape(-1)]


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _target(value: Any, field: str, parts: Parts | None) -> types.Target:
    if _is_int(value):
        return types.Target(class_index=int(value))
    if not isinstance(value, Mapping):
        raise InvalidRequest.field(field, "give a class or a dictionary with a layer")
    layer = value.get("layer")
    units = [key for key in value if key != "layer"]
    known = {"class", "channel", "neuron", "direction"}
    if not (layer is None or isinstance(layer, str)) or not set(units) <= known or len(units) > 1:
        raise InvalidRequest.field(
            field,
            "takes a layer's name as layer and at most one of channel, neuron and direction, "
            f"not {sorted(map(str, value))}",
        )
    message = types.Target(layer=layer or "")
    match units:
        case [] if layer:
            message.whole_layer = True
        case ["class"] if not layer and _is_int(value["class"]):
            message.class_index = int(value["class"])
        case ["channel"] if _is_int(value["channel"]):
            message.channel = int(value["channel"])
        case ["neuron"]:
            index = to_array(value["neuron"], f"{field}.neuron").reshape(-1)
            if index.dtype.kind not in "iu":
                raise InvalidRequest.field(f"{field}.neuron", "give one whole number per axis")
            message.neuron.index.extend(index.tolist())
        case ["direction"]:
            direction = to_array(value["direction"], f"{field}.direction").astype(np.float32)
            encode_tensor(direction, f"{field}.direction", parts, message.direction)
        case [unit]:
            raise InvalidRequest.field(f"{field}.{unit}", "give one whole number")
        case _:
            raise InvalidRequest.field(field, "the dictionary names no layer")
    return message


def decode_target(target: types.Target, parts: Sequence[Part] = ()) -> Target:
    """A target in the form that `run` takes."""
    layer = {"layer": target.layer} if target.layer else {}
    match target.WhichOneof("unit"):
        case "class_index":
            return int(target.class_index)
        case "channel":
            return {**layer, "channel": int(target.channel)}
        case "neuron":
            return {**layer, "neuron": list(target.neuron.index)}
        case "direction":
            return {**layer, "direction": decode_tensor(target.direction, "direction", parts)}
        case _:
            return layer


def encode_seeds(seed: int | Sequence[int] | None) -> list[int]:
    """None, one seed, or one per row; each from 0 to 2**64 - 1."""
    if seed is None:
        return []
    items = seed if isinstance(seed, Iterable) else [seed]
    values = [item.item() if hasattr(item, "item") else item for item in items]
    seeds = [item if _is_int(item) else -1 for item in values]
    if not all(0 <= item < 2**64 for item in seeds):
        raise InvalidRequest.field("seed", "give whole numbers from 0 to 2**64 - 1")
    return seeds


def encode_models(models: Mapping[str, str] | None) -> dict[str, str]:
    """None, or names of models by role."""
    for role, name in (models or {}).items():
        if not (isinstance(role, str) and isinstance(name, str) and name):
            raise InvalidRequest.field(f"models.{role}", "give the name of a loaded model")
    return dict(models or {})


def encode_priority(priority: str | None) -> types.Priority:
    """None, `low`, `normal` or `high`."""
    if priority is None:
        return types.PRIORITY_UNSPECIFIED
    if priority not in _PRIORITIES:
        raise InvalidRequest.field("priority", "give low, normal or high")
    return _PRIORITIES[priority]


def encode_params(params: Mapping[str, Any] | None) -> str:
    """Parameters as JSON text; numpy's numbers and arrays are taken too."""
    if not params:
        return ""
    try:
        return json.dumps(dict(params), default=_plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest.field("params", f"cannot be written as JSON ({error})") from error


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def encode_manifest(manifest: Mapping[str, Any] | str | PathLike[str] | None) -> str:
    """A manifest, or the path of a .toml or .json file with one, as JSON text."""
    if manifest is None:
        return ""
    if not isinstance(manifest, Mapping):
        manifest = read_manifest(Path(manifest))
    try:
        return json.dumps(dict(manifest), default=_plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest.field("manifest", f"cannot be written as JSON ({error})") from error


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in a .toml or .json file."""
    text = path.read_text(encoding="utf-8")
    try:
        manifest = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise InvalidRequest.field("manifest", f"{path.name} cannot be read ({error})") from error
    if not isinstance(manifest, dict):
        raise InvalidRequest.field("manifest", f"{path.name} holds no table of fields")
    return manifest
