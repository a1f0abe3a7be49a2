"""Between the Open Inference Protocol's messages and the values of `engine.api`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interpret_api.open_inference import grpc_predict_v2_pb2 as pb

from ..engine import api
from ..errors import InvalidRequest
from .codec import check_array


@dataclass(frozen=True)
class _Datatype:
    dtype: str  # of engine.api
    numpy: str | None  # None where only raw contents can carry it
    contents: str


_DATATYPES = {
    "BOOL": _Datatype("bool", "<?", "bool_contents"),
    "UINT8": _Datatype("uint8", "<u1", "uint_contents"),
    "INT8": _Datatype("int8", "<i1", "int_contents"),
    "INT16": _Datatype("int16", "<i2", "int_contents"),
    "INT32": _Datatype("int32", "<i4", "int_contents"),
    "INT64": _Datatype("int64", "<i8", "int64_contents"),
    "FP32": _Datatype("float32", "<f4", "fp32_contents"),
    "FP64": _Datatype("float64", "<f8", "fp64_contents"),
    "FP16": _Datatype("float16", None, ""),
    "BF16": _Datatype("bfloat16", None, ""),
}
RAW_ONLY = frozenset(item.dtype for item in _DATATYPES.values() if item.numpy is None)
_NAMES = {datatype.dtype: name for name, datatype in _DATATYPES.items()}


def datatype_of(dtype: str) -> str:
    """The protocol's name of a data type."""
    return _NAMES[dtype]


def to_arrays(request: pb.ModelInferRequest, names: Sequence[str]) -> dict[str, api.Array]:
    """The inputs of a request, from raw or typed contents, by name.

    Args:
        request: the whole request.
        names: what the model calls its inputs.

    Raises:
        InvalidRequest: naming the field that is wrong.
    """
    listed = " and ".join(repr(name) for name in names)
    if len(request.inputs) != len(names):
        wanted = "one" if len(names) == 1 else str(len(names))
        raise InvalidRequest.field(
            "inputs", f"{len(request.inputs)} tensors were sent; give {wanted}, named {listed}"
        )
    raw = request.raw_input_contents
    if raw and len(raw) != len(names):
        plural = "input" if len(names) == 1 else "inputs"
        raise InvalidRequest.field(
            "raw_input_contents", f"{len(raw)} entries for {len(names)} {plural}"
        )
    arrays: dict[str, api.Array] = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name not in names or tensor.name in arrays:
            which = "input is" if len(names) == 1 else "inputs are"
            problem = "was sent twice" if tensor.name in arrays else "is none of the model's inputs"
            raise InvalidRequest.field(
                f"inputs[{index}].name", f"{tensor.name!r} {problem}; its {which} {listed}"
            )
        arrays[tensor.name] = _to_array(tensor, raw[index] if raw else None, f"inputs[{index}]")
    return arrays


def _to_array(
    tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, field: str
) -> api.Array:
    datatype = _DATATYPES.get(tensor.datatype)
    if datatype is None:
        raise InvalidRequest.field(
            f"{field}.datatype", f"{tensor.datatype!r} is none of {', '.join(_DATATYPES)}"
        )
    shape = tuple(tensor.shape)
    if raw is None:
        data = _typed(tensor, datatype, shape, field)
    elif tensor.HasField("contents"):
        raise InvalidRequest.field(
            f"{field}.contents", "leave this out where raw_input_contents is used"
        )
    else:
        data = raw
    check_array(datatype.dtype, shape, len(data), field)
    return api.Array(datatype.dtype, shape, data)


def _typed(
    tensor: pb.ModelInferRequest.InferInputTensor,
    datatype: _Datatype,
    shape: Sequence[int],
    field: str,
) -> bytes:
    if datatype.numpy is None:
        raise InvalidRequest.field(
            f"{field}.contents", f"{tensor.datatype} travels in raw_input_contents only"
        )
    values = getattr(tensor.contents, datatype.contents)
    if len(values) != math.prod(shape):
        raise InvalidRequest.field(
            f"{field}.contents.{datatype.contents}",
            f"{len(values)} values were sent, but shape {list(shape)} takes {math.prod(shape)}",
        )
    try:
        return np.fromiter(values, np.dtype(datatype.numpy), len(values)).tobytes()
    except OverflowError:
        raise InvalidRequest.field(
            f"{field}.contents.{datatype.contents}",
            f"a value does not fit into {tensor.datatype}",
        ) from None


def wanted_outputs(request: pb.ModelInferRequest, outputs: Sequence[str]) -> tuple[str, ...]:
    """The outputs that a request asks for; all where it names none.

    Raises:
        InvalidRequest: there is no such output.
    """
    names = tuple(output.name for output in request.outputs) or tuple(outputs)
    for position, name in enumerate(names):
        if name not in outputs:
            raise InvalidRequest.field(
                f"outputs[{position}].name",
                f"the model has no output {name!r}; there are {' and '.join(outputs)}",
            )
    return names


def add_output(response: pb.ModelInferResponse, name: str, array: api.Array, *, raw: bool) -> None:
    """Append an output as raw or as typed contents; a type of `RAW_ONLY` must be raw."""
    datatype = _DATATYPES[_NAMES[array.dtype]]
    output = response.outputs.add(name=name, datatype=_NAMES[array.dtype], shape=array.shape)
    if raw or datatype.numpy is None:
        response.raw_output_contents.append(bytes(array.data))
    else:
        values = np.frombuffer(array.data, np.dtype(datatype.numpy)).tolist()
        getattr(output.contents, datatype.contents).extend(values)
