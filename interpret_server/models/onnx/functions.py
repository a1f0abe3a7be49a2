"""The bodies that the ONNX standard gives for operators made of simpler ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import FunctionProto, NodeProto, TypeProto

from .call import Call
from .values import DTYPES, Maybe, to_tensor

_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Body:
    """A function body with the default values of the attributes that its schema has."""

    function: FunctionProto
    defaults: dict[str, Any]


def schema_function(call: Call, node: NodeProto, inputs: Sequence[Maybe]) -> Body | None:
    """The body of an operator at the file's opset, or None where the standard has none."""
    try:
        schema: Any = onnx.defs.get_schema(call.operator, call.opset, call.domain)
    except onnx.defs.SchemaError:
        return None
    function = FunctionProto()
    if schema.has_function:
        version = _newest(schema.function_opset_versions, call.opset)
        function.ParseFromString(schema.get_function_with_opset_version(version))
    elif schema.has_context_dependent_function:
        version = _newest(schema.context_dependent_function_opset_versions, call.opset)
        types = [_type(call, value) for value in inputs]
        function.ParseFromString(
            schema.get_context_dependent_function_with_opset_version(
                version,
                _resolved(call, node).SerializeToString(),
                [item.SerializeToString() for item in types],
            )
        )
    else:
        return None
    defaults: dict[str, Any] = {}
    for name, attribute in schema.attributes.items():
        if attribute.default_value.name:
            value = onnx.helper.get_attribute_value(attribute.default_value)
            if isinstance(value, onnx.TensorProto):
                value = to_tensor(value)
            defaults[name] = value.decode() if isinstance(value, bytes) else value
    return Body(function, defaults)


def _resolved(call: Call, node: NodeProto) -> NodeProto:
    """The node with the values that attributes of the function around it refer to."""
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            copy.attribute.append(attribute)
        elif attribute.name in call.attributes:
            value = call.attributes[attribute.name]
            if isinstance(value, torch.Tensor):
                value = onnx.numpy_helper.from_array(value.numpy())
            made = onnx.helper.make_attribute(attribute.name, value, attr_type=attribute.type)
            copy.attribute.append(made)
    return copy


def _newest(versions: Sequence[int], opset: int) -> int:
    return max((version for version in versions if version <= opset), default=min(versions))


def _type(call: Call, value: Maybe) -> TypeProto:
    proto = TypeProto()
    dtype = None if value is None else call.dtype(value)
    if value is None or dtype is None:
        return proto
    proto.tensor_type.elem_type = _code(dtype)
    for length in call.shape(value) or ():
        axis = proto.tensor_type.shape.dim.add()
        if length is not None:
            axis.dim_value = length
    return proto


def _code(dtype: torch.dtype) -> int:
    return _CODES[dtype]
