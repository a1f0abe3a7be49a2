"""Reading an ONNX file that nobody vouches for."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
)

from ...errors import InvalidModel
from .external import read_external
from .limits import LIMITS, Limits, exceeds
from .order import sort_nodes
from .registry import find
from .values import DTYPES

_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.UINT16: 16,
    TensorProto.INT16: 16,
    TensorProto.INT32: 32,
    TensorProto.INT64: 64,
    TensorProto.BOOL: 8,
    TensorProto.FLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.UINT32: 32,
    TensorProto.UINT64: 64,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
    TensorProto.BFLOAT16: 16,
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
}
_TYPES = frozenset(TensorProto.DataType.values())
MAX_NODES = LIMITS.nodes
_SHORT = 64  # bytes of a tensor that the checker is given as it is
_UNCHECKED = "unchecked"
_UNLISTED_IR = 4  # from which on weights need not be listed as inputs; some never listed them


@dataclass(frozen=True)
class TensorInfo:
    """An input or output as the file declares it.

    Args:
        name: in the file.
        dtype: None where torch has none, or the value is no tensor.
        shape: all axes, None for a size that the file leaves open; None where the rank is unknown.
    """

    name: str
    dtype: torch.dtype | None
    shape: tuple[int | None, ...] | None

    @property
    def row_shape(self) -> tuple[int | None, ...] | None:
        """The shape without the batch axis."""
        return self.shape[1:] if self.shape else None

    @property
    def batch(self) -> int | None:
        """The size that the file fixes the batch axis to; None where it is open."""
        return self.shape[0] or None if self.shape else None


@dataclass(frozen=True)
class Header:
    """What a file says about its inputs and outputs.

    Args:
        inputs: those that have no stored value, in order.
        outputs: in order.
        opset: version of the default operator set.
        files: names of those that hold external data.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opset: int
    files: tuple[str, ...] = ()


def read_header(path: Path) -> Header:
    """The inputs and outputs of an ONNX file, without reading its external data.

    Raises:
        InvalidModel: the file is corrupt or no ONNX file.
    """
    return header(_parse(path))


def header(model: ModelProto) -> Header:
    """The inputs and outputs of a parsed file."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = (_info(item) for item in model.graph.input if item.name not in stored)
    versions = {_domain(item.domain): item.version for item in model.opset_import}
    entries = (item for tensor in _tensors(model) for item in tensor.external_data)
    files = sorted({item.value for item in entries if item.key == "location"})
    outputs = tuple(map(_info, model.graph.output))
    return Header(tuple(inputs), outputs, versions.get("", 1), tuple(files))


def load(path: Path, limits: Limits = LIMITS) -> ModelProto:
    """A checked file with its external data read in.

    Raises:
        InvalidModel: the file is corrupt, no ONNX file, larger than the limits allow, breaks the
            standard, or keeps data elsewhere than in plain files beside it.
    """
    model = _parse(path, limits)
    _measure(model, limits)
    read_external(_tensors(model), path.parent, limits)
    for tensor in _tensors(model):
        _check_size(tensor)
    sort_nodes(model.graph)
    _check_standard(model)
    return model


def _parse(path: Path, limits: Limits = LIMITS) -> ModelProto:
    model = ModelProto()
    try:
        if (size := path.stat().st_size) > limits.file:
            raise exceeds("the file", size, limits.file)
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise InvalidModel("model: the file is no ONNX file, or is corrupt") from error
    except FileNotFoundError as error:
        raise InvalidModel("model: there is no such file") from error
    if not model.opset_import or not model.HasField("graph") or not model.graph.output:
        raise InvalidModel("model: the file is no ONNX file, or is corrupt")
    _check_text(*(item.name for item in (*model.graph.input, *model.graph.output)))
    _check_text(*(item.domain for item in model.opset_import))
    return model


def _measure(model: ModelProto, limits: Limits) -> None:
    listed = len(model.graph.node) + sum(len(function.node) for function in model.functions)
    if listed > limits.nodes:  # which would take long to look through
        raise _too_many(listed, limits)
    for _, depth in _graphs(model):
        if depth > limits.depth:
            raise InvalidModel(
                f"model: branches and loops are nested {depth} deep; at most {limits.depth} are "
                "accepted"
            )
    if (nodes := sum(1 for _ in all_nodes(model))) > limits.nodes:
        raise _too_many(nodes, limits)
    for node in all_nodes(model):
        _check_text(node.op_type, node.domain, node.name, *node.input, *node.output)
        for item in node.attribute:
            if max(len(item.ints), len(item.floats), len(item.strings)) > limits.elements:
                raise InvalidModel(
                    f"model: the attribute {item.name!r} of {node.op_type} lists more than the "
                    f"{limits.elements} numbers that are accepted"
                )


def _too_many(nodes: int, limits: Limits) -> InvalidModel:
    return InvalidModel(f"model: the graph has {nodes} nodes; at most {limits.nodes} are accepted")


def _check_text(*names: str) -> None:
    """Refuse names that are no UTF-8, which protobuf gives as bytes."""
    if not all(isinstance(name, str) for name in names):
        raise InvalidModel("model: the file is no ONNX file, or is corrupt")


def _check_size(tensor: TensorProto) -> None:
    """Refuse a shape that the stored bytes do not fill, before anything is made of that shape."""
    _check_text(tensor.name)
    width = _BITS.get(tensor.data_type)
    if min(tensor.dims, default=0) < 0 or tensor.data_type not in _TYPES:
        raise _misfit(tensor)
    if width is None or not tensor.HasField("raw_data"):
        return
    if len(tensor.raw_data) != -(-math.prod(tensor.dims) * width // 8):
        raise _misfit(tensor)


def _misfit(tensor: TensorProto) -> InvalidModel:
    return InvalidModel(f"model: the tensor {tensor.name!r} holds other data than its shape says")


def _check_standard(model: ModelProto) -> None:
    """Run the onnx checker on the graph without its weights.

    What onnxruntime's optimisers write is not held against a file: their fused operators keep the
    standard's domain, where it has no such operator at that version, and graphs may lack a name.
    Outputs of unknown rank, which converters from other frameworks write, have no shape.
    Neither is a version of the file format that is newer than the checker, or older than weights
    that are no inputs.
    """
    held = [
        (tensor, list(tensor.dims), tensor.raw_data)
        for tensor in _dense(model)
        if len(tensor.raw_data) > _SHORT
    ]
    skeleton = ModelProto()
    for tensor, _, _ in held:
        tensor.dims[:] = [0]
        tensor.ClearField("raw_data")
    try:
        skeleton.CopyFrom(model)
    finally:
        for tensor, shape, values in held:
            tensor.dims[:] = shape
            tensor.raw_data = values
    skeleton.ir_version = min(max(skeleton.ir_version, _UNLISTED_IR), onnx.IR_VERSION)
    for graph, _ in _graphs(skeleton):
        graph.name = "graph"
        for value in (*graph.input, *graph.output):
            if value.type.HasField("tensor_type"):
                value.type.tensor_type.shape.SetInParent()
    scopes: list[Any] = [skeleton, *skeleton.functions]
    for scope in scopes:
        versions = {_domain(item.domain): item.version for item in scope.opset_import}
        for node in _nodes_of(scope):
            domain = _domain(node.domain)
            opset = versions.get(domain, 1)
            if not _has_schema(node, opset) and find(domain, node.op_type, opset):
                node.domain = _UNCHECKED
        scope.opset_import.add(domain=_UNCHECKED, version=1)
    try:
        onnx.checker.check_model(skeleton)
    except Exception as error:
        lines = str(error).splitlines()
        reason = (lines[0] if lines else type(error).__name__)[:200]
        raise InvalidModel(f"model: the file breaks the ONNX standard ({reason})") from error


def _has_schema(node: NodeProto, opset: int) -> bool:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, _domain(node.domain))
    except onnx.defs.SchemaError:
        return False
    return not schema.deprecated


def _info(item: ValueInfoProto) -> TensorInfo:
    kind = item.type.tensor_type
    if not kind.HasField("shape"):
        return TensorInfo(item.name, DTYPES.get(kind.elem_type), None)
    shape = tuple(
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value >= 0 else None
        for axis in kind.shape.dim
    )
    return TensorInfo(item.name, DTYPES.get(kind.elem_type), shape)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _graphs(model: ModelProto) -> Iterator[tuple[GraphProto, int]]:
    """Every graph, with how many others it lies in."""
    yield from _graphs_of(model)
    for function in model.functions:
        yield from _graphs_of(function)


def _graphs_of(scope: ModelProto | FunctionProto) -> Iterator[tuple[GraphProto, int]]:
    if isinstance(scope, ModelProto):
        pending = [(scope.graph, 0)]
    else:
        pending = [(graph, 1) for node in scope.node for graph in _subgraphs(node)]
    while pending:
        graph, depth = pending.pop()
        yield graph, depth
        for node in graph.node:
            pending += [(inner, depth + 1) for inner in _subgraphs(node)]


def _nodes_of(scope: ModelProto | FunctionProto) -> Iterator[NodeProto]:
    if isinstance(scope, FunctionProto):
        yield from scope.node
    for graph, _ in _graphs_of(scope):
        yield from graph.node


def _subgraphs(node: NodeProto) -> list[GraphProto]:
    single = [item.g for item in node.attribute if item.type == AttributeProto.GRAPH]
    return single + [graph for item in node.attribute for graph in item.graphs]


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """The nodes of the graph, its subgraphs and its functions."""
    yield from _nodes_of(model)
    for function in model.functions:
        yield from _nodes_of(function)


def _dense(model: ModelProto) -> Iterator[TensorProto]:
    for graph, _ in _graphs(model):
        yield from graph.initializer
    for node in all_nodes(model):
        for item in node.attribute:
            if item.type == AttributeProto.TENSOR:
                yield item.t
            yield from item.tensors


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _dense(model)
    for graph, _ in _graphs(model):
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in all_nodes(model):
        for item in node.attribute:
            if item.type == AttributeProto.SPARSE_TENSOR:
                yield from (item.sparse_tensor.values, item.sparse_tensor.indices)
