"""What an ONNX value is during import: a constant, a graph node, or numbers known to Python."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, fx

from ...errors import InvalidModel
from ..lowered import Unlowerable

Number: TypeAlias = int | float | bool | fx.Node

DTYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BFLOAT16: torch.bfloat16,
}
_TORCH: Any = torch  # whose type stubs leave these out
INT2, INT4, UINT2, UINT4 = (getattr(_TORCH, name) for name in ("int2", "int4", "uint2", "uint4"))
# Types of weights; a number of less than 8 bits takes a byte here.
_STORED: Mapping[int, tuple[torch.dtype, type]] = {
    TensorProto.INT4: (INT4, np.int8),
    TensorProto.UINT4: (UINT4, np.uint8),
    TensorProto.INT2: (INT2, np.int8),
    TensorProto.UINT2: (UINT2, np.uint8),
}
_FLOAT8: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    TensorProto.FLOAT8E8M0: torch.float8_e8m0fnu,
}
HALF = frozenset({torch.float16, torch.bfloat16})


@dataclass(frozen=True)
class Numbers:
    """A scalar or vector whose elements are Python numbers, some of them known only at run time.

    Args:
        items: literals, and nodes that compute a Python number (a symbolic batch size, say).
        scalar: rank 0 rather than rank 1.
        dtype: of the ONNX value.
    """

    items: tuple[Number, ...]
    scalar: bool
    dtype: torch.dtype


@dataclass(frozen=True)
class Listed:
    """An ONNX sequence whose length is known, by its items."""

    items: tuple["Value", ...]


Value: TypeAlias = Tensor | fx.Node | Numbers | Listed
Maybe: TypeAlias = Value | None
Output: TypeAlias = Maybe | Sequence[Maybe]
# What a value may be in the two trial runs of `Builder`, without data; None where it is unknown.
Examples: TypeAlias = tuple[Any, Any]
UNKNOWN: Examples = (None, None)


def dtype_of(code: int) -> torch.dtype:
    """The torch dtype of an ONNX element type.

    Raises:
        Unlowerable: torch has none.
    """
    if code in _STORED:
        return _STORED[code][0]
    if code in _FLOAT8:
        return _FLOAT8[code]
    if code not in DTYPES:
        raise Unlowerable(f"tensors of type {TensorProto.DataType.Name(code)} are not supported")
    return DTYPES[code]


def to_tensor(proto: TensorProto) -> Tensor:
    """The values of a stored tensor.

    Raises:
        InvalidModel: the data does not fill the declared shape.
        Unlowerable: the element type is not supported.
    """
    dtype = dtype_of(proto.data_type)
    try:
        array: Any = numpy_helper.to_array(proto)
    except Exception as error:
        raise InvalidModel(
            f"model: the tensor {proto.name!r} holds other data than its shape says"
        ) from error
    if proto.data_type in _STORED:
        return torch.from_numpy(array.astype(_STORED[proto.data_type][1])).view(dtype)
    if proto.data_type in _FLOAT8:
        return torch.from_numpy(np.array(array.view(np.uint8), order="C")).view(dtype)
    if dtype is torch.bfloat16:
        return torch.from_numpy(np.array(array.view(np.int16), order="C")).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))


def number_type(dtype: torch.dtype) -> type[int] | type[float] | type[bool]:
    """The Python type of a dtype's elements."""
    if dtype is torch.bool:
        return bool
    return float if dtype.is_floating_point else int
