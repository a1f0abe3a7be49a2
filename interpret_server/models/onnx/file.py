"""Reading an ONNX file that nobody vouches for."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from ...errors import InvalidModel
from .values import DTYPES

MAX_NODES = 100_000


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
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opset: int


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
    return Header(tuple(inputs), tuple(map(_info, model.graph.output)), versions.get("", 1))


def load(path: Path) -> ModelProto:
    """A checked file with its external data read in.

    Raises:
        InvalidModel: as `check`, or the external data is too short.
    """
    model = check(path)
    try:
        for tensor in filter(_is_external, _tensors(model)):
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InvalidModel("model: the data in the file beside the model cannot be read") from error
    return model


def check(path: Path) -> ModelProto:
    """A checked file without its external data.

    Raises:
        InvalidModel: the file is corrupt, no ONNX file, too large a graph, or keeps data elsewhere
            than in plain files beside it.
    """
    model = _parse(path)
    if (nodes := sum(1 for _ in _nodes(model))) > MAX_NODES:
        raise InvalidModel(f"model: the graph has {nodes} nodes; at most {MAX_NODES} are accepted")
    for tensor in filter(_is_external, _tensors(model)):
        _check_location(tensor, path.parent)
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        told = str(error).replace(str(path), "the file").replace(str(path.parent), "its folder")
        lines = told.splitlines()
        reason = (lines[0] if lines else type(error).__name__)[:200]
        raise InvalidModel(f"model: the file breaks the ONNX standard ({reason})") from error
    return model


def _parse(path: Path) -> ModelProto:
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise InvalidModel("model: the file is no ONNX file, or is corrupt") from error
    except FileNotFoundError as error:
        raise InvalidModel("model: there is no such file") from error
    if not model.opset_import or not model.HasField("graph") or not model.graph.output:
        raise InvalidModel("model: the file is no ONNX file, or is corrupt")
    return model


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


def _graphs(model: ModelProto) -> Iterator[GraphProto]:
    inside = (node for function in model.functions for node in function.node)
    pending = [model.graph, *(graph for node in inside for graph in _subgraphs(node))]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            pending += _subgraphs(node)


def _subgraphs(node: NodeProto) -> list[GraphProto]:
    single = [item.g for item in node.attribute if item.type == AttributeProto.GRAPH]
    return single + [graph for item in node.attribute for graph in item.graphs]


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    for graph in _graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for item in node.attribute:
            if item.type == AttributeProto.TENSOR:
                yield item.t
            yield from item.tensors
            if item.type == AttributeProto.SPARSE_TENSOR:
                yield from (item.sparse_tensor.values, item.sparse_tensor.indices)


def _is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _check_location(tensor: TensorProto, folder: Path) -> None:
    location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
    plain = location not in ("", ".", "..") and not set(location) & {"/", "\\", "\0"}
    if not plain:
        raise InvalidModel(
            f"model: the data of {tensor.name!r} must lie in a file beside the model, "
            f"not in {location!r}"
        )
    file = folder / location
    if file.is_symlink() or not file.is_file():
        raise InvalidModel(
            f"model: the data of {tensor.name!r} lies in {location!r}, which is no plain file "
            "beside the model"
        )
