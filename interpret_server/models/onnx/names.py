"""Names layers after the modules of the PyTorch code that a file was exported from.

The dynamo exporter of torch writes the modules around each node into the node's metadata, the
older one into the node's name. Nodes that tell neither keep the names they have.
"""

import ast
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import GraphProto, NodeProto

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_LONGEST, _LONGEST_NAME = 10_000, 1_000  # characters; longer ones name no modules
_DEEPEST = 64  # modules inside each other


_TORCH = {"MatMul": "matmul", "Gemm": "linear", "ReduceMean": "mean", "ReduceSum": "sum"}


@dataclass(frozen=True)
class _Place:
    """Where in the code a node comes from.

    Args:
        calls: of the modules around it, outermost first: a key for each call, and its path.
        operator: what it computes there.
        step: nodes of one step belong to one operator of the code.
        part: what the node alone computes.
    """

    calls: tuple[tuple[str, str], ...]
    operator: str
    step: str
    part: str


@dataclass
class _Call:
    path: str
    nested: bool = False
    members: list[str] = field(default_factory=list)


def by_modules(
    graph: GraphProto, layers: Mapping[str, str], origins: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Layers by module path, and the file's own names of their values.

    `layer1.0.relu` is what a module gives, `layer1.0.relu:1` what its second call gives,
    `layer1.0.add` what an operator of no module of its own gives; a container has the value of its
    last part.

    Args:
        graph: of the file.
        layers: layer name -> FX node name, in order of execution.
        origins: layer name -> the file's own name of that value, where it has one.
    """
    places = _places(graph)
    if not places:
        return dict(layers), dict(origins)
    values = {origins[name]: name for name in layers if name in origins}
    told = {value: places[value] for value in values if value in places}
    calls = _calls(told)
    names = _operators(told)
    aliases: dict[str, list[str]] = {}
    outside = _Users(graph, places)
    for key, call in reversed(calls.items()):  # inner containers first
        output = outside.last_used(key, call.members)
        if call.nested:
            aliases.setdefault(output, []).append(call.path)
        else:
            names[output] = call.path
    return _distinct(layers, origins, names, aliases)


def _distinct(
    layers: Mapping[str, str],
    origins: Mapping[str, str],
    names: Mapping[str, str],
    aliases: Mapping[str, Sequence[str]],
) -> tuple[dict[str, str], dict[str, str]]:
    renamed: dict[str, str] = {}
    sources: dict[str, str] = {}
    repeated: Counter[str] = Counter()
    for layer, node in layers.items():
        value = origins.get(layer)
        own = names.get(value, layer) if value is not None else layer
        for wanted in (own, *aliases.get(value or "", ())):
            name = wanted
            while name in renamed:
                repeated[wanted] += 1
                name = f"{wanted}:{repeated[wanted]}"
            renamed[name] = node
            if value is not None:
                sources[name] = value
    return renamed, sources


def _places(graph: GraphProto) -> dict[str, _Place]:
    """Where each value comes from, as far as the file tells."""
    places: dict[str, _Place] = {}
    told = [_told(node) for node in graph.node]
    walk = _Walk({path for item in told if item for path in item.modules[:-1]})
    legacy = _Legacy(graph)
    for node, item in zip(graph.node, told, strict=True):
        place = walk.place(node, item) if item else legacy.place(node)
        if place is not None:
            places |= {output: place for output in node.output if output}
    return places


@dataclass(frozen=True)
class _Told:
    """What the dynamo exporter tells of a node.

    Args:
        modules: paths of those around it, outermost first.
        builtin: whether the innermost is one of torch's own.
        target: what is called, `aten.add.Tensor` say.
        step: of the exported program; several nodes may belong to one.
    """

    modules: tuple[str, ...]
    builtin: bool
    target: str
    step: str


def _told(node: NodeProto) -> _Told | None:
    entries = {item.key: item.value for item in node.metadata_props}
    scopes, classes = _strings(entries.get(_SCOPES)), _strings(entries.get(_CLASSES))
    if not scopes or len(scopes) != len(classes) or len(scopes) > _DEEPEST:
        return None
    around = [path for path in scopes[:-1] if path]
    builtin = len(classes) > 1 and classes[-2].startswith("torch.nn.")
    return _Told(tuple(around), builtin, classes[-1], scopes[-1])


class _Walk:
    """Follows the dynamo exporter's metadata, which do not tell one call of a module from another.

    A module that is left and entered again is called again; and so is one of torch's own modules
    that repeats the only operator it has had.

    Args:
        containers: paths of modules with modules inside.
    """

    def __init__(self, containers: Collection[str]) -> None:
        self._containers = containers
        self._open: list[tuple[str, str]] = []
        self._count = 0
        self._targets: set[str] = set()
        self._step = ""

    def place(self, node: NodeProto, told: _Told) -> _Place:
        """The place of the next node."""
        shared = 0
        for (_, path), wanted in zip(self._open, told.modules, strict=False):
            if path != wanted:
                break
            shared += 1
        entered = shared < len(told.modules)
        repeats = self._targets == {told.target} and self._step != told.step
        if shared == len(told.modules) == len(self._open) and repeats and self._is_single(told):
            shared, entered = shared - 1, True
        if entered or shared < len(self._open):
            self._targets = set() if entered else {""}
        del self._open[shared:]
        for path in told.modules[shared:]:
            self._count += 1
            self._open.append((f"{path} {self._count}", path))
        self._targets.add(told.target)
        self._step = told.step
        calls = tuple(self._open)
        step = f"{told.step} {calls[-1][0] if calls else ''}"
        return _Place(calls, _operator(told.target), step, _words(node.op_type))

    def _is_single(self, told: _Told) -> bool:
        return told.builtin and told.modules[-1] not in self._containers


class _Legacy:
    """Parses names such as `/layer1/layer1.0/relu_1/Relu`, the second call of `layer1.0.relu`."""

    def __init__(self, graph: GraphProto) -> None:
        scopes = {node.name.rpartition("/")[0] for node in graph.node if _is_path(node.name)}
        self._scopes = {
            "/".join(parts[: depth + 1])
            for parts in (scope.split("/") for scope in scopes)
            for depth in range(1, len(parts))
        }
        self._weights = {tensor.name.rpartition(".")[0] for tensor in graph.initializer}

    def place(self, node: NodeProto) -> _Place | None:
        scope, _, last = node.name.rpartition("/")
        operator = re.fullmatch(r"(\w+?)(_\d+)?", last)
        if not _is_path(node.name) or operator is None or operator[1] != node.op_type:
            return None
        calls: list[tuple[str, str]] = []
        path, previous, key = "", "", ""
        for part in scope.split("/")[1:]:
            outer, key = key, f"{key}/{part}"
            if not part:
                return None
            if previous and part.startswith(f"{previous}."):
                path = path[: len(path) - len(previous)] + part
            else:
                path = f"{path}.{part}" if path else part
            previous = part
            base = self._called(outer, part, path)
            calls.append((key, path[: len(path) - len(part)] + base))
            path = calls[-1][1]
            previous = base
        return _Place(tuple(calls), _words(node.op_type), node.name, "")

    def _called(self, outer: str, part: str, path: str) -> str:
        """A module's own name, without the number of its call."""
        found = re.fullmatch(r"(.+)_(\d+)", part)
        if found is None or path in self._weights:
            return part
        base, count = found[1], int(found[2])
        earlier = [base, *(f"{base}_{index}" for index in range(1, min(count, 1000)))]
        return base if all(f"{outer}/{name}" in self._scopes for name in earlier) else part


def _is_path(name: str) -> bool:
    return name[:1] == "/" and len(name) <= _LONGEST_NAME and name.count("/") < _DEEPEST


def _strings(told: str | None) -> list[str]:
    if not told or len(told) > _LONGEST:
        return []
    try:
        value = ast.literal_eval(told)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value if texts else []


def _operator(target: str) -> str:
    """`add` for `aten.add.Tensor`."""
    parts = target.split(".")
    name = (parts[1] if len(parts) > 2 else parts[-1]).strip("_")
    return "batch_norm" if "batch_norm" in name else name or "value"


def _words(operator: str) -> str:
    """`layer_normalization` for `LayerNormalization`, and torch's word where that is another."""
    if operator in _TORCH:
        return _TORCH[operator]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", operator).lower()


def _calls(places: Mapping[str, _Place]) -> dict[str, _Call]:
    calls: dict[str, _Call] = {}
    for value, place in places.items():
        for depth, (key, path) in enumerate(place.calls):
            call = calls.setdefault(key, _Call(path))
            call.members.append(value)
            call.nested |= depth < len(place.calls) - 1
    return calls


def _operators(places: Mapping[str, _Place]) -> dict[str, str]:
    """Names of operators in their modules; the last value of an operator has its name."""
    last = {place.step: value for value, place in places.items()}
    names = {}
    for value, place in places.items():
        scope = f"{place.calls[-1][1]}." if place.calls else ""
        part = "" if last[place.step] == value else f".{place.part}"
        names[value] = f"{scope}{place.operator}{part}"
    return names


class _Users:
    """Who uses which value."""

    def __init__(self, graph: GraphProto, places: Mapping[str, _Place]) -> None:
        self._calls: dict[str, list[frozenset[str]]] = {}
        for node in graph.node:
            place = next((places[output] for output in node.output if output in places), None)
            around = frozenset(key for key, _ in place.calls) if place else frozenset()
            for value in node.input:
                self._calls.setdefault(value, []).append(around)
        for item in graph.output:
            self._calls.setdefault(item.name, []).append(frozenset())

    def last_used(self, call: str, members: Sequence[str]) -> str:
        """The last value of a call that is used outside of it."""
        for value in reversed(members):
            if any(call not in around for around in self._calls.get(value, ())):
                return value
        return members[-1]
