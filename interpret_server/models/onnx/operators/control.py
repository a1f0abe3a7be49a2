"""If, Loop and Scan: inlined where the file decides them, else modules that hold their bodies."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from onnx import GraphProto
from torch import Tensor, fx

from ....errors import InvalidModel
from ..call import Call
from ..looping import MAX_TRIPS, Branch, Loop, Scan, ScanRows, as_decided
from ..registry import operator
from ..subgraph import Body, examples_of, joined, same
from ..values import UNKNOWN, Examples, Maybe, Numbers, Output, Value

_MAX_UNROLLED = 64  # steps
_MAX_UNROLLED_NODES = 2000
_TRIALS = 3


@operator("If")
def branch(call: Call, condition: Value) -> Output:
    graphs = [call.attributes["then_branch"], call.attributes["else_branch"]]
    if isinstance(condition, Tensor) and condition.numel() == 1:
        return call.subgraphs.inline(graphs[not bool(condition)])
    bodies = [call.subgraphs.body(graph) for graph in graphs]
    decision = condition
    if isinstance(condition, Numbers):
        decision = cast(fx.Node, condition.items[0])
        told = _told(decision)
        if told is not None and not (_alike(*bodies) and _declared_alike(*graphs)):
            results = call.subgraphs.inline(graphs[not told])
            return [call.function(as_decided, x, decision, told, kind="if") for x in results]
    else:
        call.builder.decides = True
    captured = list(dict.fromkeys(node for body in bodies for node in body.captured))
    picks = [[captured.index(node) for node in body.captured] for body in bodies]
    module = Branch(bodies[0].module, bodies[1].module, *picks)
    count = min(len(body.outputs) for body in bodies)
    pairs = [joined(bodies[0].examples[i], bodies[1].examples[i]) for i in range(count)]
    return _emit(call, module, [decision, *captured], pairs)


def _told(decision: fx.Node) -> bool | None:
    """A condition on sizes, where it holds under both witnesses or under none."""
    first, second = decision.meta.get("examples", UNKNOWN)
    return bool(first) if first is not None and first == second else None


def _alike(a: Body, b: Body) -> bool:
    """Whether the outputs of two branches have the same number of axes."""
    pairs = list(zip(a.examples, b.examples, strict=False))
    return all(
        x[0].dim() == y[0].dim()
        for x, y in pairs
        if isinstance(x[0], Tensor) and isinstance(y[0], Tensor)
    )


def _declared_alike(a: GraphProto, b: GraphProto) -> bool:
    types = [
        (x.type.tensor_type, y.type.tensor_type) for x, y in zip(a.output, b.output, strict=False)
    ]
    return all(
        len(x.shape.dim) == len(y.shape.dim)
        for x, y in types
        if x.HasField("shape") and y.HasField("shape")
    )


def _emit(call: Call, module: Any, inputs: Sequence[Any], pairs: Sequence[Examples]) -> list[Value]:
    examples = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    result = call.module(module, *inputs, examples=examples)
    return call.items_of(result, len(pairs), call.kind)


@operator("Loop")
def loop(call: Call, count: Maybe = None, condition: Maybe = None, *carried: Value) -> Output:
    graph: GraphProto = call.attributes["body"]
    if not len(carried) + 2 == len(graph.input) <= len(graph.output) + 1:
        raise InvalidModel(
            f"model: the body of {call.name!r} has inputs or outputs that do not fit"
        )
    total = _literal(count)
    if isinstance(condition, Tensor):
        if not bool(condition):
            total = 0
        condition = None
    if total is not None and condition is None and total * len(graph.node) <= _MAX_UNROLLED_NODES:
        results = _unrolled(call, graph, total, carried) if 0 < total <= _MAX_UNROLLED else None
        if results is not None:
            return results
    steps: Examples = (0, 1)
    always = torch.tensor(True)
    body, pairs = _settled(call, graph, (steps, always), carried, (), first=1)
    goes_on = body.outputs[0]
    conditional = not isinstance(goes_on, Tensor)
    if isinstance(goes_on, Tensor) and not bool(goes_on):
        total = min(1, total if total is not None else 1)
    if total is None and count is None and condition is None and not conditional:
        raise InvalidModel(f"model: the loop {call.name!r} never ends")
    if total is not None and total > MAX_TRIPS and not conditional:
        raise InvalidModel(
            f"model: the loop {call.name!r} runs {total} times; at most {MAX_TRIPS} are accepted"
        )
    limit = total if total is not None else _number(count)
    by_data = (isinstance(item, fx.Node) for item in (goes_on, count, condition))
    call.builder.decides |= any(by_data)
    elements = body.examples[1 + len(carried) :]
    module = Loop(
        body.module,
        len(carried),
        [_empty(pair) for pair in elements],
        conditional=conditional,
        trips=call.builder.trips,
        outermost=call.builder.outer is None,
    )
    inputs = [limit, _number(condition), list(carried), list(body.captured)]
    outputs = [*pairs, *(_stacked(pair, total, 0) for pair in elements)]
    return _emit(call, module, inputs, outputs)


def _literal(count: Maybe) -> int | None:
    if not isinstance(count, Tensor):
        return None
    if count.numel() != 1:
        raise InvalidModel("model: the number of a loop's steps is no single number")
    return max(int(count), 0)


def _number(value: Maybe) -> Any:
    """What a module is given for a number: a Python one, a node that gives one, or a tensor."""
    return value.items[0] if isinstance(value, Numbers) else value


def _unrolled(
    call: Call, graph: GraphProto, total: int, carried: Sequence[Value]
) -> list[Value] | None:
    """The outputs of a loop whose steps become nodes of the graph; None if data may end it."""
    state, found = list(carried), []
    for step in range(total):
        inputs = [torch.tensor(step), torch.tensor(True), *state]
        goes_on, *results = call.subgraphs.inline(graph, inputs, f"{step}.")
        if not isinstance(goes_on, Tensor):
            return None
        state = results[: len(carried)]
        found.append(results[len(carried) :])
        if not bool(goes_on):
            break
    return [*state, *(_stack(call, items, 0) for items in zip(*found, strict=True))]


def _stack(call: Call, items: Sequence[Value], axis: int) -> Value:
    return call.function(torch.stack, list(items), axis, kind="stack")


def _settled(
    call: Call,
    graph: GraphProto,
    before: Sequence[Examples | Tensor],
    carried: Sequence[Value],
    after: Sequence[Examples],
    *,
    first: int,
    rows: bool = False,
) -> tuple[Body, list[Examples]]:
    """The body of a loop, and examples of its carried values that hold at every step.

    Args:
        before: inputs before the carried values.
        after: inputs after them.
        first: position of the first carried value among the outputs.
        rows: the body sees one row at a time.
    """
    pairs = [examples_of(call.builder, value) for value in carried]
    if rows:
        pairs = [_sliced(pair, 0) for pair in pairs]
    for trial in range(_TRIALS):
        inputs = [*before, *pairs, *after]
        body = call.subgraphs.body(graph, inputs, free_batch=trial == 0)
        results = body.examples[first : first + len(carried)]
        wider = [joined(*both) for both in zip(pairs, results, strict=True)]
        if all(same(*both) for both in zip(pairs, wider, strict=True)):
            return body, pairs
        pairs = wider
    pairs = [UNKNOWN] * len(carried)
    return call.subgraphs.body(graph, [*before, *pairs, *after], free_batch=False), pairs


def _empty(pair: Examples) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type of one step's output; sizes that are not known count as 0."""
    first, second = pair
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return (), torch.float32
    sizes = zip(first.shape, second.shape, strict=True)
    return tuple(a if a == b else 0 for a, b in sizes), first.dtype


def _stacked(pair: Examples, steps: int | Sequence[int] | None, axis: int) -> Examples:
    """Examples of the outputs of all steps, along an axis of their own."""
    if not all(isinstance(item, Tensor) for item in pair):
        return UNKNOWN
    lengths = (1, 4) if steps is None else (steps, steps) if isinstance(steps, int) else steps
    first, second = (
        item.unsqueeze(axis).repeat_interleave(length, axis)
        for item, length in zip(pair, lengths, strict=True)
    )
    return first, second


def _sliced(pair: Examples, axis: int) -> Examples:
    if not all(isinstance(item, Tensor) and item.dim() and item.shape[axis] for item in pair):
        return UNKNOWN
    return pair[0].select(axis, 0), pair[1].select(axis, 0)


@operator("Scan", since=9)
def scan(call: Call, *inputs: Value) -> Output:
    graph: GraphProto = call.attributes["body"]
    count = call.integer("num_scan_inputs")
    states, scanned = _divided(call, graph, inputs, count)
    given = len(graph.output) - len(states)
    axes = call.integers("scan_input_axes") or [0] * count
    back = call.integers("scan_input_directions") or [0] * count
    out_axes = call.integers("scan_output_axes") or [0] * given
    out_back = call.integers("scan_output_directions") or [0] * given
    if not len(axes) == len(back) == count or not len(out_axes) == len(out_back) == given:
        raise InvalidModel(f"model: {call.name!r} has axes or directions that do not fit")
    shapes = [call.shape(x) for x in scanned]
    lengths = {shape[axis] for shape, axis in zip(shapes, axes, strict=True) if shape is not None}
    length = lengths.pop() if len(lengths) == 1 and None not in shapes else None
    if length and length <= _MAX_UNROLLED and length * len(graph.node) <= _MAX_UNROLLED_NODES:
        return _unrolled_scan(call, graph, length, states, scanned, axes, back, out_axes, out_back)
    pairs = [examples_of(call.builder, x) for x in scanned]
    elements = [_sliced(pair, axis) for pair, axis in zip(pairs, axes, strict=True)]
    body, carried = _settled(call, graph, (), states, elements, first=0)
    outputs = body.examples[len(states) :]
    module = Scan(
        body.module,
        axes,
        back,
        out_axes,
        out_back,
        [_empty(pair) for pair in outputs],
        trips=call.builder.trips,
        outermost=call.builder.outer is None,
    )
    steps = _lengths(pairs[0], axes[0])
    stacked = [_stacked(pair, steps, axis) for pair, axis in zip(outputs, out_axes, strict=True)]
    inner = [list(states), list(scanned), list(body.captured)]
    return _emit(call, module, inner, [*carried, *stacked])


def _divided(
    call: Call, graph: GraphProto, inputs: Sequence[Value], count: int
) -> tuple[Sequence[Value], Sequence[Value]]:
    states, scanned = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    fits = len(graph.input) == len(inputs) and len(graph.output) >= len(states)
    if not 1 <= count <= len(inputs) or not fits:
        raise InvalidModel(
            f"model: the body of {call.name!r} has inputs or outputs that do not fit"
        )
    return states, scanned


def _lengths(pair: Examples, axis: int) -> tuple[int, int] | None:
    if not all(isinstance(item, Tensor) for item in pair):
        return None
    return pair[0].shape[axis], pair[1].shape[axis]


def _unrolled_scan(
    call: Call,
    graph: GraphProto,
    length: int,
    states: Sequence[Value],
    scanned: Sequence[Value],
    axes: Sequence[int],
    back: Sequence[int],
    out_axes: Sequence[int],
    out_back: Sequence[int],
) -> list[Value]:
    state, found = list(states), []
    for step in range(length):
        elements = [
            call.function(torch.select, x, axis, length - 1 - step if reverse else step)
            for x, axis, reverse in zip(scanned, axes, back, strict=True)
        ]
        results = call.subgraphs.inline(graph, [*state, *elements], f"{step}.")
        state = results[: len(state)]
        found.append(results[len(state) :])
    outputs = [
        _stack(call, items[::-1] if reverse else items, axis)
        for items, axis, reverse in zip(zip(*found, strict=True), out_axes, out_back, strict=True)
    ]
    return [*state, *outputs]


@operator("Scan", since=8)
def scan_rows(call: Call, lengths: Maybe, *inputs: Value) -> Output:
    """Opset 8 scans each row of a batch by itself, along the axis after the batch."""
    graph: GraphProto = call.attributes["body"]
    count = call.integer("num_scan_inputs")
    states, scanned = _divided(call, graph, inputs, count)
    back = call.integers("directions") or [0] * count
    pairs = [examples_of(call.builder, x) for x in scanned]
    elements = [_sliced(_sliced(pair, 0), 0) for pair in pairs]
    body, carried = _settled(call, graph, (), states, elements, first=0, rows=True)
    outputs = body.examples[len(states) :]
    call.builder.decides |= isinstance(lengths, fx.Node)
    module = ScanRows(
        body.module,
        back,
        [_empty(pair) for pair in outputs],
        trips=call.builder.trips,
        outermost=call.builder.outer is None,
    )
    rows, steps = _lengths(pairs[0], 0), _lengths(pairs[0], 1)
    results = [
        *(_stacked(pair, rows, 0) for pair in carried),
        *(_stacked(_stacked(pair, steps, 0), rows, 0) for pair in outputs),
    ]
    inner = [lengths, list(states), list(scanned), list(body.captured)]
    return _emit(call, module, inner, results)
