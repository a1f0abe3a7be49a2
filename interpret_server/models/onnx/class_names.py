"""The names of the classes, as converters of scikit-learn and its like keep them in a file."""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

_LISTS = ("classlabels_strings", "classlabels_int64s", "classlabels_ints")
_RENAMES = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "ZipMap"})
_MOST = 1 << 16  # nodes and names that are looked at

ClassNames = tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True)
class NamedOutput:
    """What a file tells of an output's classes.

    Args:
        names: of the classes, in the order of the scores.
        winners: the output holds the winner's name, rather than scores.
    """

    names: ClassNames
    winners: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """The names as text."""
        return tuple(map(str, self.names))

    @property
    def counted(self) -> bool:
        """Whether the names are the positions."""
        return self.names == tuple(range(len(self.names)))


def as_numbers(value: Any, named: NamedOutput | None) -> Any:
    """An output of onnxruntime as an array: the winners' positions, or scores in their order.

    Args:
        value: an array, also of strings, or a list of dictionaries from names to scores.
        named: what the file tells of that output; a name that is not listed counts as -1.
    """
    if isinstance(value, list):
        keys = list(value[0]) if value else []
        if named is not None and {*keys} == {*named.names}:
            keys = list(named.names)
        return np.array([[row[key] for key in keys] for row in value], dtype=np.float32)
    is_text = value.dtype.kind in "OUS"
    if not is_text and (named is None or not named.winners):
        return value
    places = {} if named is None else {name: place for place, name in enumerate(named.names)}
    found = [places.get(item, -1) for item in value.reshape(-1).tolist()]
    return np.array(found, dtype=np.int64).reshape(value.shape)


def named_outputs(model: ModelProto) -> Mapping[str, NamedOutput]:
    """The outputs whose classes have names in the file, by the output's name.

    The names are those of the nearest node before the output that lists any.
    """
    makers = {name: node for node in model.graph.node for name in node.output if name}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, NamedOutput] = {}
    for output in model.graph.output:
        named = _named(output.name, makers, stored)
        if named is not None:
            found[output.name] = named
    return found


def are_picked(names: TensorProto, graph: GraphProto) -> bool:
    """Whether stored texts are a list of classes that a graph does nothing with but index."""
    users = [node for node in graph.node if names.name in node.input]
    return len(names.string_data) == math.prod(names.dims) and all(
        node.op_type == "ArrayFeatureExtractor" and node.input[0] == names.name for node in users
    )


def _named(
    output: str, makers: Mapping[str, NodeProto], stored: Mapping[str, TensorProto]
) -> NamedOutput | None:
    direct = True  # nothing but casts and reshapes so far
    for name in _before(output, makers):
        node = makers[name]
        if node.op_type == "ArrayFeatureExtractor" and direct and node.input[0] in stored:
            return _of(_stored(stored[node.input[0]]), True)
        if node.op_type == "LabelEncoder" and direct and (names := _encoded(node)):
            return _of(names, True)
        if names := _listed(node):
            winners = direct and node.op_type != "ZipMap" and name == node.output[0]
            return _of(names, winners)
        direct = direct and node.op_type in _RENAMES
    return None


def _of(names: ClassNames, winners: bool) -> NamedOutput | None:
    return NamedOutput(names, winners) if 0 < len(names) <= _MOST else None


def _before(output: str, makers: Mapping[str, NodeProto]) -> Iterator[str]:
    """The computed values that an output depends on, near ones first."""
    pending, seen = deque([output]), {output}
    while pending and len(seen) < _MOST:
        name = pending.popleft()
        if name not in makers:
            continue
        yield name
        fresh = {source: None for source in makers[name].input if source not in seen}
        seen.update(fresh)
        pending.extend(fresh)


def _encoded(node: NodeProto) -> ClassNames:
    """The names that a winner's position is replaced by."""
    lists = {item.name: item for item in node.attribute}
    keys, values = lists.get("keys_int64s"), lists.get("values_strings")
    if keys is None or values is None or list(keys.ints) != list(range(len(values.strings))):
        return ()
    return tuple(value.decode(errors="replace") for value in values.strings)


def _listed(node: NodeProto) -> ClassNames:
    lists = {item.name: item for item in node.attribute if item.name in _LISTS}
    for name in _LISTS:
        if name in lists:
            item = lists[name]
            if item.type == AttributeProto.STRINGS:
                return tuple(value.decode(errors="replace") for value in item.strings)
            return tuple(item.ints)
    return ()


def _stored(tensor: TensorProto) -> ClassNames:
    if tensor.data_type == TensorProto.STRING:
        return tuple(value.decode(errors="replace") for value in tensor.string_data)
    if tensor.data_type in (TensorProto.INT32, TensorProto.INT64):
        return tuple(int(value) for value in numpy_helper.to_array(tensor).reshape(-1))
    return ()
