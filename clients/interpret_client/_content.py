"""The arrays of a request, and how they travel: in its message or in chunks."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from google.protobuf.message import Message

from interpret_api.v1 import types_pb2 as types

from . import _codec as codec
from ._chunks import LARGE_BYTES, METHOD, Parts
from ._requests import Call
from .results import DataSet

T = TypeVar("T")

_KINDS: Mapping[str, str] = {
    "InterpretService.Run": "run",
    "InterpretService.RunStream": "run_stream",
    "ModelService.Predict": "predict",
    "ModelService.ComputeGradient": "compute_gradient",
    "ModelService.ComputeActivations": "compute_activations",
}


class Content:
    """What of a request may be large.

    Args:
        inputs: as a caller gives them.
        tensors: the other arrays, by the name of their field.
        any_size: the answer may be large even where the request is small.
        copied: the caller may change the arrays while they are being sent.
        pictures: how many are drawn of every row.
    """

    def __init__(
        self,
        inputs: Any,
        tensors: Mapping[str, Any] = MappingProxyType({}),
        *,
        any_size: bool = False,
        copied: bool = False,
        pictures: int = 0,
    ) -> None:
        self._inputs = codec.read_inputs(inputs)
        self._tensors = {field: codec.to_array(value, field) for field, value in tensors.items()}
        any_size = any_size or isinstance(inputs, DataSet)  # whose rows the client does not know
        expected = codec.expected_bytes(self._inputs, self._tensors.values(), pictures)
        self.parts = Parts(copied=copied) if any_size or expected > LARGE_BYTES else None

    def fill_inputs(self, message: types.Inputs) -> None:
        """Write the inputs into a field of the request."""
        codec.encode_inputs(self._inputs, self.parts, message)

    def fill_tensor(self, field: str, message: types.Tensor) -> None:
        """Write another array into a field of the request."""
        codec.encode_tensor(self._tensors[field], field, self.parts, message)

    def call(
        self, method: str, request: Message, parse: Callable[..., T], **options: Any
    ) -> Call[T]:
        """The call with this content: of its own method, or a chunked one."""
        if self.parts is None:
            return Call(method, request, parse, **options)
        kind = _KINDS[method]
        messages = partial(self.parts.messages, kind, request)
        return Call(METHOD, messages, parse, chunked=kind, **options)
