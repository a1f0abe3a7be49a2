"""Which part of a picture's network sees a window of it, and at what cost."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F

from .draft import Observed, attribute, function_name, writes
from .pooling import halve, max_pool2d, settings

Pair = tuple[int, int]

_POINTWISE_MODULES = frozenset((
    nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU,
    nn.Mish, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus,
    nn.Identity,
))  # fmt: skip
_POINTWISE = frozenset((
    "add", "sub", "mul", "div", "truediv", "minimum", "maximum", "clamp", "sigmoid", "tanh", "relu",
    "relu_", "hardtanh_", "enter", "leave", "contiguous",
))  # fmt: skip
_BY_CHANNEL = frozenset(("cat", "concat", "flip"))
_SMALL = 1.5  # times the work in whole values, that in pieces takes
_LIGHT = 40.0  # multiplications in the time in which a value is read and written


@dataclass(frozen=True)
class Local:
    """A node whose values depend on windows of those before it; by axis, rows and columns.

    Args:
        sources: what it reads.
        run: from pieces of these to a piece of it, without padding.
        kernel, stride, padding, dilation: of the windows.
        fill: what lies beyond the ends of what it reads; None where no window reaches there.
    """

    sources: tuple[fx.Node, ...]
    run: Callable[[Mapping[fx.Node, Tensor]], Tensor]
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    fill: float | None = None


@dataclass(frozen=True)
class Piece:
    """For `first` positions of a last value: positions `step * first + shift` and `length` on."""

    step: Pair
    shift: Pair
    length: Pair

    def before(self, local: Local) -> "Piece":
        """What a node has to read for this piece of it."""
        axes = range(2)
        return Piece(
            _pair(self.step[a] * local.stride[a] for a in axes),
            _pair(self.shift[a] * local.stride[a] - local.padding[a] for a in axes),
            _pair(
                (self.length[a] - 1) * local.stride[a]
                + local.dilation[a] * (local.kernel[a] - 1)
                + 1
                for a in axes
            ),
        )

    def joined(self, other: "Piece") -> "Piece | None":
        """The smallest piece that holds both; None where their steps differ."""
        if self.step != other.step:
            return None
        shift = _pair(min(self.shift[a], other.shift[a]) for a in range(2))
        ends = [
            max(part.shift[a] + part.length[a] for part in (self, other)) - shift[a]
            for a in range(2)
        ]
        return Piece(self.step, shift, _pair(ends))


def _pair(values: Iterator[int] | Sequence[int]) -> Pair:
    first, second = values
    return first, second


class Region:
    """A network's first nodes, as far as they are local, and what each costs.

    Args:
        graph: from `(N, C, H, W)`.
        observed: what its nodes gave, by name.
    """

    def __init__(self, graph: fx.GraphModule, observed: Mapping[str, Observed]) -> None:
        self.graph = graph
        self.modules: dict[str, Any] = dict(graph.named_modules())
        self.nodes = [node for node in graph.graph.nodes if node.op != "output"]
        self.places = {node: place for place, node in enumerate(self.nodes)}
        self.shapes = {node: observed.get(node.name, Observed()).shape for node in self.nodes}
        self.local: dict[fx.Node, Local | None] = {}
        for node in self.nodes:
            self.local[node] = self._local(node)
        self.sizes = {
            node: (shape[2], shape[3])
            for node, shape in self.shapes.items()
            if shape is not None and len(shape) == 4
        }
        self.cost = {node: self._cost(node) for node in self.nodes}
        self.cuts = list(self._cuts())

    def known(self, node: fx.Node) -> Local:
        """How a local node is computed."""
        local = self.local[node]
        assert local is not None
        return local

    def pieces(self, cut: fx.Node, length: Pair) -> dict[fx.Node, Piece] | None:
        """What is needed of every node for so much of the cut, the picture first.

        None where two ways lead to a node at different steps.
        """
        found = {cut: Piece((1, 1), (0, 0), length)}
        for node in reversed(self.nodes[: self.places[cut] + 1]):
            local = self.local[node]
            if node not in found or local is None:
                continue
            for source in local.sources:
                need: Piece | None = found[node].before(local)
                if source in found:
                    assert need is not None
                    need = found[source].joined(need)
                if need is None:
                    return None
                found[source] = need
        return {node: found[node] for node in self.nodes if node in found}

    def price(self, cut: fx.Node, pieces: Mapping[fx.Node, Piece]) -> float:
        """Multiplications for a row by way of these pieces, over those of the whole network."""
        total = sum(self.cost.values())
        spent = sum(self.cost[node] for node in self.nodes[self.places[cut] + 1 :])
        spent += _LIGHT * math.prod((self.shapes[cut] or (1,))[1:])
        for node, piece in pieces.items():
            share = math.prod(piece.length) / math.prod(self.sizes[node])
            spent += _SMALL * self.cost[node] * share
        return spent / max(total, 1.0)

    def _cuts(self) -> Iterator[fx.Node]:
        """Local nodes that hide all earlier ones from the later, and that nothing writes to."""
        last = {  # that reads each node
            node: max((self.places.get(user, len(self.nodes)) for user in node.users), default=-1)
            for node in self.nodes
            if node.op != "get_attr"
        }
        seen_until = -1  # by nodes after it, of all but the node itself
        for place, node in enumerate(self.nodes):
            hides = seen_until <= place and last.get(node, -1) > place
            seen_until = max(seen_until, last.get(node, -1))
            local = self.local[node] is not None and node.op != "placeholder"
            if hides and local and not any(map(writes, node.users)):
                yield node

    def _cost(self, node: fx.Node) -> float:
        shape = self.shapes[node]
        if shape is None or node.op in ("placeholder", "get_attr"):
            return 0.0
        values = math.prod(shape[1:])
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d):
            return float(values * module.weight[0].numel())
        if isinstance(module, nn.Linear):
            return float(values * module.in_features)
        return _LIGHT * values

    def _local(self, node: fx.Node) -> Local | None:
        shape = self.shapes[node]
        if node.op == "placeholder":
            return Local((), lambda found: found[node])
        if shape is None or len(shape) != 4:
            return None
        sources = [each for each in node.all_input_nodes if each.op != "get_attr"]
        if not sources or any(self.local.get(each) is None for each in sources):
            return None
        if node.op == "call_module":
            return self._of_module(node, sources)
        if node.op != "call_function":
            return None
        return self._of_function(node, sources)

    def _of_module(self, node: fx.Node, sources: list[fx.Node]) -> Local | None:
        module = self.modules[str(node.target)]
        (source,) = sources
        if type(module) in _POINTWISE_MODULES and not module.training:
            return Local((source,), lambda found: module(found[source]))
        if isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                return None
            return Local(
                (source,),
                lambda found: F.conv2d(
                    found[source], module.weight, module.bias, module.stride, 0,
                    module.dilation, module.groups,
                ),
                _pair(module.kernel_size), _pair(module.stride),
                _pair(module.padding), _pair(module.dilation),
                fill=0.0 if any(module.padding) else None,
            )  # fmt: skip
        if isinstance(module, nn.MaxPool2d) and not module.return_indices:
            *parts, ceil = settings(module)
            return _max_pool(source, *map(_both, parts), ceil=ceil)
        if isinstance(module, nn.AvgPool2d) and module.count_include_pad and not module.ceil_mode:
            kernel, stride = _both(module.kernel_size), _both(module.stride)
            divisor = module.divisor_override
            return Local(
                (source,),
                lambda found: F.avg_pool2d(
                    found[source], kernel, stride, divisor_override=divisor
                ),
                kernel, stride, _both(module.padding),
                fill=0.0 if any(_both(module.padding)) else None,
            )  # fmt: skip
        return None

    def _of_function(self, node: fx.Node, sources: list[fx.Node]) -> Local | None:
        name = function_name(node)
        if node.target is halve:
            return Local((sources[0],), lambda found: halve(found[sources[0]]), (2, 2), (2, 2))
        if node.target is max_pool2d and not node.kwargs:
            kernel, stride, padding, dilation = (_both(part) for part in node.args[1:5])
            return _max_pool(sources[0], kernel, stride, padding, dilation, ceil=bool(node.args[5]))
        alike = all(self._even(each) for each in node.all_input_nodes)
        sizes = {(self.shapes[each] or ())[-2:] for each in (node, *sources)}
        if not alike or len(sizes) != 1:
            return None
        if name in _BY_CHANNEL:
            axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            axes = axes if isinstance(axes, list | tuple) else [axes]
            if any(axis not in (1, -3) for axis in axes):
                return None
        elif name not in _POINTWISE:
            return None
        target: Any = node.target

        def run(found: Mapping[fx.Node, Tensor]) -> Tensor:
            def value(each: fx.Node) -> Any:
                return found[each] if each in found else attribute(self.graph, str(each.target))

            given: Tensor = target(*map_arg(node.args, value), **map_arg(node.kwargs, value))
            return given

        return Local(tuple(sources), run)

    def _even(self, node: fx.Node) -> bool:
        """Whether a node is no constant, or one that is the same at all positions."""
        if node.op != "get_attr":
            return True
        constant = attribute(self.graph, str(node.target))
        return isinstance(constant, Tensor) and (
            constant.dim() == 0 or (constant.dim() >= 2 and constant.shape[-2:] == (1, 1))
        )


def _both(value: Any) -> Pair:
    return _pair(value) if isinstance(value, list | tuple) else (value, value)


def _max_pool(
    source: fx.Node, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, *, ceil: bool
) -> Local:
    return Local(
        (source,),
        lambda found: F.max_pool2d(found[source], kernel, stride, 0, dilation),
        kernel, stride, padding, dilation, fill=-torch.inf if ceil or any(padding) else None,
    )  # fmt: skip


def parts(region: Region, cut: fx.Node) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The network up to a cut, and from there on."""
    place = region.places[cut]
    first, last = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in region.nodes[: place + 1]:
        copies[node] = first.node_copy(node, lambda each: copies[each])
    first.output(copies[cut])
    copies = {cut: last.placeholder("x")}
    for node in region.nodes:
        if node.op == "get_attr":
            copies[node] = last.node_copy(node)
    for node in region.nodes[place + 1 :]:
        if node.op != "get_attr":
            copies[node] = last.node_copy(node, lambda each: copies[each])
    result: Any = region.graph.graph.output_node().args[0]
    last.output(map_arg(result, lambda each: copies[each]))
    for graph in (first, last):
        graph.eliminate_dead_code(lambda node: node.op != "get_attr" or bool(node.users))
    return fx.GraphModule(region.graph, first), fx.GraphModule(region.graph, last)
