"""`Array` to tensor and back."""

import ctypes
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidRequest
from .api import ITEM_SIZES, Array

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_SIZES}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def to_tensor(array: Array, field: str) -> Tensor:
    """A tensor that shares the array's memory; it must not be written to.

    Args:
        array: what a caller sent.
        field: its name in the request, for messages.

    Raises:
        InvalidRequest: the data type is unknown, or the bytes do not fill the shape.
    """
    if array.dtype not in DTYPES:
        raise InvalidRequest.field(
            field, f"unknown data type {array.dtype!r}; use one of {', '.join(DTYPES)}"
        )
    shape = tuple(array.shape)
    if any(size < 0 for size in shape):
        raise InvalidRequest.field(field, f"the shape {list(shape)} has a negative size")
    view = memoryview(array.data).cast("B")
    needed = math.prod(shape) * ITEM_SIZES[array.dtype]
    if len(view) != needed:
        raise InvalidRequest.field(
            field, f"{len(view)} bytes, shape {list(shape)} of {array.dtype} needs {needed}"
        )
    dtype = DTYPES[array.dtype]
    if not needed:
        return torch.empty(shape, dtype=dtype)
    tensor = torch.frombuffer(_writable(view), dtype=dtype)
    if tensor.data_ptr() % ITEM_SIZES[array.dtype]:
        tensor = torch.frombuffer(bytearray(view), dtype=dtype)
    return tensor.reshape(shape)


def _writable(view: memoryview) -> Any:
    """The same memory as a buffer that torch accepts without a warning."""
    if not view.readonly:
        return view
    address, _ = np.frombuffer(view, np.uint8).__array_interface__["data"]
    buffer = (ctypes.c_ubyte * len(view)).from_address(address)
    buffer.owner = view  # type: ignore[attr-defined]  # keeps the bytes alive with the tensor
    return buffer


def to_array(tensor: Tensor, *, half: bool = False) -> Array:
    """A copy of a tensor's values as bytes; floating-point values as float16 where `half`."""
    values = tensor.detach().cpu()
    if half and values.is_floating_point():
        values = values.to(torch.float16)
    if values.dtype not in _NAMES:
        values = values.to(torch.float32 if values.is_floating_point() else torch.int64)
    shape = tuple(values.shape)
    name = _NAMES[values.dtype]
    if values.dtype is torch.bfloat16:
        values = values.view(torch.int16)
    source = values.numpy()
    if values.data_ptr() == tensor.data_ptr() or not values.is_contiguous():
        # Other threads run meanwhile, unlike with `tobytes`; and memory that numpy frees is used
        # again, unlike the aligned memory of torch.
        source = np.empty(shape, source.dtype)
        np.copyto(source, values.numpy())
    return Array(name, shape, source.reshape(-1).data.cast("B") if source.size else b"")
