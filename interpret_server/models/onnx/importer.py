"""Walks an ONNX graph and emits the same computation as FX nodes."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto
from torch import Tensor, fx

from ...errors import InvalidModel
from ..lowered import Lowered, Unlowerable
from . import host, operators
from .builder import Builder
from .call import Call
from .class_names import are_picked
from .file import TensorInfo, header
from .functions import schema_function
from .limits import LIMITS, Deadline, Limits
from .names import by_modules
from .registry import find
from .rows import follow_rows
from .subgraph import Frame, Subgraphs
from .values import HALF, Listed, Maybe, Numbers, Output, Value, to_tensor

_DEEPEST = 32
# Two lengths for every free axis: of images, of waveforms, of other sequences. Lengths that are
# far apart are told apart after much pooling; short ones suit networks of few positions.
SIZES = (
    ((224, 480), (16384, 40960), (128, 320)),
    ((224, 256), (400, 960), (16, 24)),
    ((32, 64), (64, 160), (5, 9)),
)
_SENSELESS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_DECIDES = (
    "The file branches or loops on computed values, which the rows of a batch share; it is run "
    "one row at a time."
)

__all__ = ["Importer", "operators"]


class Importer:
    """One import of one file.

    Args:
        model: a checked file with its data.
        free_batch: make the first axis of every input of any size, also where the file fixes it.
        faithful: keep float16 and training mode as the file has them.
        straight_through: rounding to integers passes gradients on.
        limits: of the graph.
        deadline: of the import.
        rows_apart: dynamic quantisation takes its range over each row, rather than the batch.
        sizes: one of `SIZES`.
    """

    def __init__(
        self,
        model: ModelProto,
        *,
        free_batch: bool,
        faithful: bool,
        straight_through: bool = False,
        rows_apart: bool = True,
        sizes: tuple[tuple[int, int], ...] = SIZES[1],
        limits: Limits = LIMITS,
        deadline: Deadline | None = None,
    ) -> None:
        self.model, self.faithful, self.straight_through = model, faithful, straight_through
        self.header = header(model)
        self._sizes = sizes
        fixed = {info.batch for info in self.header.inputs if info.batch is not None}
        self.fixed = min(fixed) if len(fixed) == 1 else None
        self.free_batch = free_batch and len(fixed) <= 1
        self.builder = Builder(self.fixed if self.free_batch else None)
        self.builder.rows_apart = rows_apart
        self.functions = {(_domain(f.domain), f.name): f for f in model.functions}
        self.layers: dict[str, str] = {}
        self.origins: dict[str, str] = {}
        self.halves = False
        self._visited, self._most_nodes = 0, limits.nodes
        self.deadline = deadline or Deadline(limits.seconds)
        counts: dict[str, int] = {}
        for node in model.graph.node:
            counts[node.name] = counts.get(node.name, 0) + 1
        self._unique = {name for name, count in counts.items() if name and count == 1}

    def run(self) -> Lowered:
        """The graph module with its layers.

        Raises:
            Unlowerable: naming what is not supported.
            InvalidModel: the graph asks for too large constants, or makes no sense.
            FixedBatch: the graph does not run at other batch sizes than the file's.
            RowByRow: a dynamic quantisation cannot keep the rows apart.
        """
        graph = self.model.graph
        if graph.sparse_initializer:
            raise Unlowerable("sparse initializers are not supported")
        values: dict[str, Maybe] = {"": None}
        sizes: dict[str, tuple[int, int]] = {}
        for info, item in zip(self.header.inputs, self._inputs(graph), strict=True):
            names = [axis.dim_param for axis in item.type.tensor_type.shape.dim]
            values[info.name] = self.builder.placeholder(
                info.name, self._examples(info, names, sizes)
            )
        self.store(graph, values)
        self.walk(graph.node, Frame(self.builder, values, _versions(self.model.opset_import), {}))
        outputs = [self.value(values, item.name) for item in graph.output]
        module = self.builder.finish(outputs)
        alive = {node.name for node in module.graph.nodes}
        kept = {layer: node for layer, node in self.layers.items() if node in alive}
        layers, origins = by_modules(graph, kept, self.origins)
        return Lowered(
            graph=module,
            input_names=tuple(info.name for info in self.header.inputs),
            output_names=tuple(item.name for item in graph.output),
            layers=layers,
            origins=origins,
            notes=[_DECIDES] if self.builder.decides else [],
            mixes_rows=self.builder.decides,
            row_by_row=self.builder.decides,
        )

    def _inputs(self, graph: GraphProto) -> list[onnx.ValueInfoProto]:
        stored = {tensor.name for tensor in graph.initializer}
        return [item for item in graph.input if item.name not in stored]

    def _examples(
        self, info: TensorInfo, names: Sequence[str], sizes: dict[str, tuple[int, int]]
    ) -> tuple[Tensor | None, Tensor | None]:
        if info.shape is None or info.dtype is None:
            return None, None
        dtype = self._keep(info.dtype)
        pairs: list[tuple[int, int]] = []
        for axis, (length, name) in enumerate(zip(info.shape, names, strict=True)):
            if axis == 0 and (length is None or self.free_batch):
                pair = self.builder.batches
            elif length is not None:
                pair = (length, length)
            else:
                pair = self._lengths(info.shape, info.dtype, axis)
            pairs.append(sizes.setdefault(name, pair) if name and length is None else pair)
        first, second = (
            torch.empty([pair[k] for pair in pairs], dtype=dtype, device="meta") for k in (0, 1)
        )
        return first, second

    def _lengths(
        self, shape: Sequence[int | None], dtype: torch.dtype, axis: int
    ) -> tuple[int, int]:
        image, waveform, sequence = self._sizes
        if len(shape) > 3:
            return image
        return waveform if dtype.is_floating_point and axis == len(shape) - 1 else sequence

    def _keep(self, dtype: torch.dtype) -> torch.dtype:
        if dtype in HALF and not self.faithful:
            self.halves = True
            return torch.float32
        return dtype

    def store(self, graph: GraphProto, values: dict[str, Maybe]) -> None:
        """Add a graph's stored values; names that a winner picks one of become its position."""
        for proto in graph.initializer:
            if proto.data_type == onnx.TensorProto.STRING and are_picked(proto, graph):
                values[proto.name] = torch.arange(len(proto.string_data))
            else:
                values[proto.name] = self._constant(to_tensor(proto))

    def _constant(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._keep(tensor.dtype))

    def _input(self, values: Mapping[str, Maybe], name: str) -> Maybe:
        try:
            return values[name]
        except KeyError as error:
            raise InvalidModel(f"model: the value {name!r} is used but never computed") from error

    def value(self, values: Mapping[str, Maybe], name: str) -> Value:
        """A value by name.

        Raises:
            InvalidModel: it is never computed.
        """
        value = self._input(values, name)
        if value is None:
            raise InvalidModel(f"model: the value {name!r} is used but never computed")
        return value

    def walk(self, nodes: Sequence[NodeProto], frame: Frame) -> None:
        """Import nodes in order, adding their outputs to the frame's values."""
        if frame.depth > _DEEPEST:
            raise InvalidModel("model: functions or branches are nested too deeply")
        for node in nodes:
            self._visited += 1
            if self._visited > self._most_nodes:
                raise InvalidModel(
                    f"model: the graph expands to more than {self._most_nodes} nodes"
                )
            self.deadline.check()
            inputs = [self._input(frame.values, name) for name in node.input]
            results = self._node(node, inputs, frame)
            follow_rows(node.op_type, inputs, results, frame.builder)
            named = zip(node.output, results, strict=False)
            frame.values.update({name: result for name, result in named if name})
            if frame.prefix is not None:
                self._name(node, results, frame.prefix)

    def _name(self, node: NodeProto, results: Sequence[Maybe], prefix: str) -> None:
        unique = bool(prefix) or node.name in self._unique
        for output, result in zip(node.output, results, strict=False):
            if isinstance(result, fx.Node) and output:
                single = len(node.output) == 1 and node.name and unique
                name = prefix + (node.name if single else output)
                if prefix and name in self.layers:
                    name = prefix + output
                self.layers[name] = result.name
                if not prefix:
                    self.origins[name] = output

    def _node(self, node: NodeProto, inputs: list[Maybe], frame: Frame) -> Sequence[Maybe]:
        domain = _domain(node.domain)
        attributes = self._attributes(node.attribute, frame.given)
        name = node.name if node.name in self._unique else next(filter(None, node.output), "")
        version = frame.versions.get(domain, 1)
        call = Call(
            operator=node.op_type,
            domain=domain,
            opset=version,
            attributes=attributes,
            outputs=tuple(node.output),
            name=name,
            builder=frame.builder,
            subgraphs=Subgraphs(self, frame, name),
            faithful=self.faithful,
            straight_through=self.straight_through,
        )
        if (domain, node.op_type) in self.functions:
            function = self.functions[domain, node.op_type]
            return self._expand(function, inputs, attributes, frame)
        try:
            shape = host.evaluate(call, inputs)
            if shape is not None:
                return [shape]
            implementation = find(domain, node.op_type, version)
            if implementation is not None:
                return _outputs(implementation(call, *inputs))
        except _SENSELESS as error:
            raise InvalidModel(
                f"model: the inputs or attributes of {name!r} ({node.op_type}) make no sense"
            ) from error
        body = schema_function(call, node, inputs)
        if body is None:
            raise Unlowerable(
                f"the operator {node.op_type} (domain {domain or 'ai.onnx'}, opset {version}) "
                "is not supported"
            )
        return self._expand(body.function, inputs, {**body.defaults, **attributes}, frame)

    def _attributes(
        self, protos: Sequence[AttributeProto], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for proto in protos:
            if proto.ref_attr_name:
                if proto.ref_attr_name in given:
                    found[proto.name] = given[proto.ref_attr_name]
                continue
            value = onnx.helper.get_attribute_value(proto)
            if proto.type == AttributeProto.TENSOR:
                value = self._constant(to_tensor(value))
            elif proto.type == AttributeProto.STRING:
                value = value.decode(errors="replace")
            elif proto.type == AttributeProto.STRINGS:
                value = [item.decode(errors="replace") for item in value]
            found[proto.name] = value
        return found

    def _expand(
        self,
        function: FunctionProto,
        inputs: Sequence[Maybe],
        attributes: Mapping[str, Any],
        frame: Frame,
    ) -> Sequence[Maybe]:
        given = {**self._attributes(function.attribute_proto, {}), **attributes}
        values: dict[str, Maybe] = {"": None}
        values |= dict.fromkeys(function.input)
        values |= dict(zip(function.input, inputs, strict=False))
        versions = _versions(function.opset_import)
        inside = Frame(frame.builder, values, versions, given, frame.depth + 1, None)
        self.walk(function.node, inside)
        return [values.get(name) for name in function.output]


def _outputs(result: Output) -> Sequence[Maybe]:
    if result is None or isinstance(result, Tensor | fx.Node | Numbers | Listed):
        return [result]
    return result


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _versions(imports: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {_domain(item.domain): item.version for item in imports}
