"""Makes a batch size that a program fixes free, where running it at another size proves it right.

Every node runs at two batch sizes side by side, so that the axis along which a value grows is its
batch axis. Sizes written into reshapes, and constants made for the fixed batch, are made to follow
it; the result must give each row what the program gives it in a batch of its own size.
"""

import itertools
import math
import operator
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..verification import difference, tolerance

_aten = torch.ops.aten
_RESHAPES = frozenset(
    {
        _aten.view.default,
        _aten.reshape.default,
        _aten._unsafe_view.default,
        _aten._reshape_alias.default,
        _aten.view_copy.default,
    }
)
_EXPANDS = frozenset({_aten.expand.default, _aten.expand_copy.default})
_TIMES = 3
_ATTEMPTS, _SECONDS = 24, 60.0
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, AttributeError)
_LARGEST = 1 << 26  # elements of an input at the larger size

Pair = tuple[Any, Any]  # one node's value at the fixed size and at the larger one


def free_batch(network: fx.GraphModule, rows: int, examples: Sequence[Tensor]) -> bool | None:
    """Let a graph take any number of rows, in place; layers keep their names.

    Args:
        network: of inputs with `rows` rows each, where axis 0 has that size.
        rows: the fixed batch size.
        examples: inputs of that size, whose elements vary.

    Returns:
        True where sizes were made free, None where they were free already, and False where the
        graph is not proven right and was left as it is.
    """
    batched = [x.dim() > 0 and len(x) == rows for x in examples]
    if not any(batched) or sum(x.numel() for x in examples) * _TIMES > _LARGEST:
        return False
    larger = [_varied(x, rows * _TIMES) if b else x for x, b in zip(examples, batched, strict=True)]
    pairs = list(zip(examples, larger, strict=True))
    choices = _Choices()
    end = time.monotonic() + _SECONDS
    for _ in range(_ATTEMPTS):
        if time.monotonic() > end:
            return False
        trial = _copy(network)
        freeing = _Freeing(trial, rows, pairs, choices)
        try:
            with torch.no_grad():
                freeing.run()
                trial.graph.lint()
                trial.recompile()
                if _same_rows(network, trial, larger, batched, rows):
                    if not freeing.changed:
                        return None
                    network.graph = trial.graph
                    network.recompile()
                    return True
        except _FAILURES:
            pass
        if not choices.revise(freeing.made):
            return False
    return False


def _copy(network: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(network.graph, copies))
    return fx.GraphModule(network, graph)


class _Choices:
    """Which of several sizes of a reshape holds the batch, where more than one may.

    Reshapes between the same shapes are decided alike.
    """

    def __init__(self) -> None:
        self._index: dict[Any, int] = {}
        self._count: dict[Any, int] = {}

    def take(self, key: Any, candidates: Sequence[int]) -> int:
        """One of the candidates, the first until it is revised."""
        self._count[key] = len(candidates)
        return candidates[self._index.setdefault(key, 0)]

    def revise(self, made: Sequence[Any]) -> bool:
        """Take the next candidate of the latest decision that has one; whether there is any."""
        for key in reversed(made):
            if self._index[key] + 1 < self._count[key]:
                self._index[key] += 1
                return True
            self._index[key] = 0
        return False


def _varied(x: Tensor, rows: int) -> Tensor:
    noise = torch.Generator().manual_seed(1)
    shape = (rows, *x.shape[1:])
    if x.is_floating_point():
        return torch.rand(shape, generator=noise, dtype=torch.float64).to(x.dtype)
    return x[:1].expand(shape) * torch.randint(0, 2, shape, generator=noise).to(x.dtype)


def _same_rows(
    network: fx.GraphModule,
    trial: fx.GraphModule,
    inputs: Sequence[Tensor],
    batched: Sequence[bool],
    rows: int,
) -> bool:
    """Whether a trial gives each row what the network gives it in groups of `rows`."""
    together = _leaves(trial(*inputs))
    parts = [
        _leaves(network(*_rows(inputs, batched, start, rows)))
        for start in range(0, rows * _TIMES, rows)
    ]
    alone = _leaves(trial(*_rows(inputs, batched, 0, 1))) if rows > 1 else parts[0]
    for index, value in enumerate(together):
        expected = torch.cat([part[index] for part in parts])
        pairs = ((value, expected), (alone[index], expected[: len(alone[index])]))
        for ours, reference in pairs:
            if difference(ours, reference).relative > tolerance(reference.dtype):
                return False
    return True


def _rows(inputs: Sequence[Tensor], batched: Sequence[bool], start: int, rows: int) -> list[Tensor]:
    return [x[start : start + rows] if b else x for x, b in zip(inputs, batched, strict=True)]


def _leaves(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [leaf for value in values or () for leaf in _leaves(value)]


class _Freeing:
    def __init__(
        self, network: fx.GraphModule, rows: int, inputs: Sequence[Pair], choices: _Choices
    ) -> None:
        self.network, self.rows, self.changed = network, rows, False
        self.made: list[Any] = []  # keys of the choices that were taken, the latest last
        self._choices = choices
        self._inputs = iter(inputs)
        self._pairs: dict[fx.Node, Pair] = {}
        self._modules = dict(network.named_modules())
        self._free_sizes = any(n.target is _aten.sym_size.int for n in network.graph.nodes)

    def run(self) -> None:
        for node in list(self.network.graph.nodes):
            if node.op == "placeholder":
                self._pairs[node] = next(self._inputs)
            elif node.op == "get_attr":
                value = operator.attrgetter(str(node.target))(self.network)
                self._pairs[node] = (value, value)
            elif node.op != "output":
                self._adapt(node)
                self._pairs[node] = self._computed(node)

    # Values

    def _computed(self, node: fx.Node) -> Pair:
        first = self._at(node, 0)
        try:
            second = self._at(node, 1)
        except _FAILURES:
            if not self._repeat_constants(node):
                raise
            first, second = self._at(node, 0), self._at(node, 1)
        if isinstance(first, Tensor) and _changes(first, second) > 1:
            raise ValueError("rows of the batch meet each other")
        return first, second

    def _at(self, node: fx.Node, side: int) -> Any:
        def value(item: fx.Node) -> Any:
            return self._pairs[item][side]

        args = fx.node.map_arg(node.args, value)
        kwargs = fx.node.map_arg(node.kwargs, value)
        target: Any = node.target
        function = self._modules[str(target)] if node.op == "call_module" else target
        return function(*args, **kwargs)

    def _axis(self, node: Any) -> int | None:
        """The axis along which a node's value grows with the batch."""
        if not isinstance(node, fx.Node):
            return None
        small, large = self._pairs[node]
        if not isinstance(small, Tensor) or small.dim() != large.dim():
            return None
        found = [i for i, (a, b) in enumerate(zip(small.shape, large.shape, strict=True)) if a != b]
        return found[0] if len(found) == 1 else None

    def _number(self, before: fx.Node, source: fx.Node, axis: int, times: int, over: int) -> Any:
        """A node for `source.shape[axis] * times // over`."""
        graph = self.network.graph
        with graph.inserting_before(before):
            node = graph.call_function(_aten.sym_size.int, (source, axis))
            self._pairs[node] = self._computed(node)
            for function, number in ((operator.mul, times), (operator.floordiv, over)):
                if number != 1:
                    node = graph.call_function(function, (node, number))
                    self._pairs[node] = self._computed(node)
        return node

    # Sizes

    def _adapt(self, node: fx.Node) -> None:
        if node.target in _RESHAPES:
            self._free_reshape(node)
        elif node.target in _EXPANDS:
            self._free_expand(node)

    def _free_reshape(self, node: fx.Node) -> None:
        source: Any = node.args[0]
        sizes: Any = node.args[1]
        axis = self._axis(source)
        if axis is None:
            return
        shape = self._pairs[source][0].shape
        known = [self._pairs[size][0] if isinstance(size, fx.Node) else size for size in sizes]
        rest = math.prod(size for size in known if size != -1)
        if not rest or not shape.numel():
            return
        full = [shape.numel() // rest if size == -1 else size for size in known]
        candidates = [
            place
            for place in _places(full, shape, axis, self.rows)
            if -1 not in sizes or self._follows(sizes[place], full[place], shape[axis])
        ]
        if not candidates:
            return
        key = (tuple(shape), axis, tuple(known))
        place = self._choices.take(key, candidates)
        self.made = [*(other for other in self.made if other != key), key]
        freed = list(sizes)
        if -1 in freed:
            freed[place] = self._number(node, source, axis, full[place], shape[axis])
        else:
            freed[place] = -1
        node.update_arg(1, freed)
        node.target = _aten.reshape.default  # several rows may lie in memory as one does not
        self.changed = True

    def _follows(self, size: Any, number: int, extent: int) -> bool:
        """Whether a size beside a -1 is a fixed multiple of its source's extent at all sizes."""
        if not isinstance(size, int) or size == -1:
            return False
        return not self._free_sizes or extent == self.rows or number == extent

    def _free_expand(self, node: fx.Node) -> None:
        source: Any = node.args[0]
        sizes: Any = node.args[1]
        axis = self._axis(source)
        if axis is None:
            return
        small = self._pairs[source][0]
        place = axis + len(sizes) - small.dim()
        if sizes[place] == small.shape[axis]:
            node.update_arg(1, [*sizes[:place], -1, *sizes[place + 1 :]])
            self.changed = True

    # Constants

    def _repeat_constants(self, node: fx.Node) -> bool:
        """Let constants made for the fixed batch grow like the node's other arguments."""
        grown = [
            (other, axis)
            for other in node.all_input_nodes
            if (axis := self._axis(other)) is not None
        ]
        if not grown:
            return False
        source, axis = grown[0]
        if self._pairs[source][0].shape[axis] % self.rows:
            return False
        times = self._pairs[source][0].shape[axis] // self.rows
        for constant in node.all_input_nodes:
            small, large = self._pairs[constant]
            if small is not large or not isinstance(small, Tensor):
                continue
            for place in _batch_axes(small, self.rows, self._pairs[source][0].dim(), axis):
                count = self._number(node, source, axis, 1, times)
                with self.network.graph.inserting_before(node):
                    repeated = self.network.graph.call_function(_repeated, (constant, place, count))
                repeated.meta["kind"] = "expand"
                self._pairs[repeated] = self._computed(repeated)
                node.replace_input_with(constant, repeated)
                try:
                    self._at(node, 1)
                except _FAILURES:
                    node.replace_input_with(repeated, constant)
                    continue
                self.changed = True
                return True
            if self._all_grow(node, source, axis, times):
                return True
        return False

    def _all_grow(self, node: fx.Node, source: fx.Node, axis: int, times: int) -> bool:
        """As a last try, all constants of one shape together, as the states of an LSTM are."""
        states = [
            other
            for other in node.all_input_nodes
            if isinstance(self._pairs[other][0], Tensor)
            and self._pairs[other][0] is self._pairs[other][1]
            and self._pairs[other][0].dim() == 3
            and self._pairs[other][0].shape[1] == self.rows
        ]
        for state in states:
            count = self._number(node, source, axis, 1, times)
            with self.network.graph.inserting_before(node):
                repeated = self.network.graph.call_function(_repeated, (state, 1, count))
            repeated.meta["kind"] = "expand"
            self._pairs[repeated] = self._computed(repeated)
            node.replace_input_with(state, repeated)
        if states:
            self._at(node, 1)
            self.changed = True
        return bool(states)


def _repeated(x: Tensor, axis: int, count: int) -> Tensor:
    """`count` times the first slice of `x` along an axis; counted, where that is what `x` does."""
    if x.dim() == 1 and len(x) > 1:
        return torch.arange(count, dtype=x.dtype, device=x.device)
    return x.narrow(axis, 0, 1).expand(*(count if i == axis else -1 for i in range(x.dim())))


def _batch_axes(x: Tensor, rows: int, rank: int, axis: int) -> list[int]:
    """The axes along which a constant may have been made for the batch, likely ones first."""
    if x.dim() == 1 and len(x) == rows and torch.equal(x, torch.arange(rows).to(x.dtype)):
        return [0] if rows > 1 else []
    found = []
    for place in dict.fromkeys((axis + x.dim() - rank, axis, *range(x.dim()))):
        if 0 <= place < x.dim() and x.shape[place] == rows:
            first = x.narrow(place, 0, 1)
            if torch.equal(first.expand_as(x), x):
                found.append(place)
    return found


def _changes(first: Tensor, second: Tensor) -> int:
    """Along how many axes two tensors differ in size."""
    if first.dim() != second.dim():
        return first.dim() + second.dim()
    return sum(a != b for a, b in zip(first.shape, second.shape, strict=True))


def _places(sizes: Sequence[int], shape: Sequence[int], axis: int, rows: int) -> list[int]:
    """Which sizes of a reshape may hold the batch, which lies within `axis` of `shape`.

    Of the sizes that share elements with that axis, or touch it, those that are the batch alone
    come first; then the left one where axes are merged, and the right one where one is split.
    """
    first = math.prod(shape[:axis])
    last = first * shape[axis]
    ends = list(itertools.accumulate(sizes, operator.mul))
    starts = [1, *ends[:-1]]
    touching = [
        i
        for i in range(len(sizes))
        if starts[i] <= last and ends[i] >= first and sizes[i] % rows == 0
    ]
    alone = [i for i in touching if sizes[i] == rows]
    inside = [i for i in touching if starts[i] < last and ends[i] > first]
    rest = touching if len(sizes) < len(shape) else touching[::-1]
    return list(dict.fromkeys((*alone, *inside, *rest)))
