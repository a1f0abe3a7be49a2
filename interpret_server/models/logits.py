"""Which output of a file holds the classes, and the logits behind it."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import InvalidRequest, ModelRejected
from .manifest import OutputKind, OutputSpec
from .recording import record

# Operators that keep every value of a classifier's output and may only rearrange its axes.
_SHAPE_ONLY = frozenset(
    {
        "identity", "reshape", "view", "flatten", "squeeze", "unsqueeze", "cast", "to", "dropout",
        "contiguous", "clone", "detach", "permute", "transpose", "alias", "type_as", "float",
    }
)  # fmt: skip
_JOINS = ("concat", "cat", "stack", "hstack")
_SHIFTS = _SHAPE_ONLY | {"sub", "rsub", "neg", "add"}
_RANKS = frozenset({"topk", "sort"})


@dataclass(frozen=True)
class Recovered:
    """What a graph's last operators told.

    Args:
        source: what the logits were recovered from: `logits`, `softmax`, `log_softmax`, `sigmoid`
            or `argmax`; `logits` where nothing was cut.
        notes: one sentence each.
    """

    source: str
    notes: tuple[str, ...] = ()


def leaves(outputs: Any, names: Sequence[str] = ()) -> list[tuple[str, Any]]:
    """The tensors (or FX nodes) among a file's outputs, each with its name.

    Args:
        outputs: a tensor, or tuples, lists and dictionaries of them.
        names: the file's own names; without them a dictionary's keys and positions are joined
            by dots.
    """
    found = list(_walk(outputs, ""))
    if len(names) == len(found):
        return [(name, value) for name, (_, value) in zip(names, found, strict=True)]
    return found


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor | fx.Node):
        yield path or "output", value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _walk(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _walk(item, f"{path}.{index}" if path else str(index))


def width(value: Tensor, rows: int, kind: OutputKind | None = None) -> int | None:
    """How many numbers each row of an output has along its one axis that may be longer than 1.

    None where the output has several such axes, or not `rows` rows. An output of one row may have
    dropped its batch axis. Values that are no scores of classes may have any number of axes.
    """
    shape = tuple(value.shape)
    if not shape:
        return 1 if rows == 1 else None
    if shape[0] != rows:
        return shape[0] if len(shape) == 1 and rows == 1 else None
    if (sum(size > 1 for size in shape[1:]) > 1 and kind is not OutputKind.VALUES) or 0 in shape:
        return None
    return value.numel() // rows


def choose_output(outputs: Sequence[tuple[str, Tensor]], spec: OutputSpec, rows: int) -> int:
    """The position of the output with the classes.

    Args:
        outputs: every output's name and its values for some rows.
        spec: the manifest's word.
        rows: how many rows the values have.

    Raises:
        InvalidRequest: the manifest names an output that is not there, or must name one.
        ModelRejected: the output is no `(N, K)` scores.
    """
    listed = ", ".join(f"{name!r} {list(value.shape)}" for name, value in outputs) or "none"
    if spec.name is not None:
        chosen = [index for index, (name, _) in enumerate(outputs) if name == spec.name]
        if len(chosen) != 1:
            raise InvalidRequest.field("manifest.output.name", f"the file's outputs are {listed}")
        if spec.index is not None and spec.index != chosen[0]:
            raise InvalidRequest.field(
                "manifest.output.index", f"{spec.name!r} is at position {chosen[0]}"
            )
    elif spec.index is not None:
        if spec.index >= len(outputs):
            raise InvalidRequest.field("manifest.output.index", f"the file's outputs are {listed}")
        chosen = [spec.index]
    elif len(outputs) == 1:
        chosen = [0]
    else:
        chosen = [
            index
            for index, (_, value) in enumerate(outputs)
            if value.is_floating_point() and (width(value, rows, spec.kind) or 0) > 1
        ]
        if len(chosen) > 1:  # what many training codes return beside features and probabilities
            chosen = [i for i in chosen if outputs[i][0].split(".")[-1] == "logits"]
        if len(chosen) != 1:
            raise InvalidRequest.field(
                "manifest.output.name",
                f"say which output holds the classes, by name or by index; there are {listed}",
            )
    name, value = outputs[chosen[0]]
    if spec.kind is OutputKind.VALUES and not value.is_floating_point():
        raise ModelRejected(f"the output {name!r} holds integers, and no values")
    if width(value, rows, spec.kind) is None:
        raise ModelRejected(
            f"the output {name!r} has shape {list(value.shape)} for {rows} input rows; a "
            "classifier's gives one number per class and row, the rows first (sequences of scores, "
            "masks and boxes are not served; a network that is no classifier needs "
            'output.kind = "values")'
        )
    return chosen[0]


def keep_output(graph: fx.GraphModule, node: fx.Node) -> None:
    """Make `node` the graph's only output and drop what it does not need."""
    last = graph.graph.output_node()
    last.args = (node,)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()


def recover_logits(graph: fx.GraphModule, x: Tensor, kind: OutputKind | None) -> Recovered:
    """Cut a graph of one output before its softmax, log-softmax, sigmoid or argmax, in place.

    Softmax and log-softmax are cut only where they run over the class axis.

    Args:
        graph: with a single tensor as its output.
        x: an input that the graph takes.
        kind: the manifest's word; nothing is cut where it says logits or values.

    Raises:
        ModelRejected: the graph ends in a ranking of its scores.
    """
    if kind is OutputKind.VALUES:
        return Recovered("logits")
    (output,) = graph.graph.output_node().args
    assert isinstance(output, fx.Node)
    node = _through(output)
    if _is_ranked(node):
        raise ModelRejected(
            "the output holds the highest scores in descending order, which tells nothing of each "
            "class; name an output with every class's score, or export the network without the "
            "ranking at its end"
        )
    if kind is OutputKind.LOGITS:
        return Recovered("logits")
    if _kind(node) == "argmax" and (scores := _operand(node)):
        keep_output(graph, scores)
        return Recovered("argmax", recover_logits(graph, x, None).notes)
    outer, inner = _kind(node), _through(_operand(node)) if _operand(node) else None
    if inner is not None and (outer, _kind(inner)) in (("exp", "log_softmax"), ("log", "softmax")):
        if _over_classes(graph, inner, x):
            _bypass(graph, inner)
            _bypass(graph, node)
            return Recovered("softmax" if outer == "exp" else "log_softmax")
        return Recovered("logits")
    if outer in ("softmax", "log_softmax") and _over_classes(graph, node, x):
        _bypass(graph, node)
        return Recovered(outer)
    if outer in _JOINS and _open_pair(graph, node, x):
        return Recovered("softmax")
    if outer == "sigmoid":
        several = (width(record(graph, x, keep=[output]).kept[output], len(x)) or 0) > 1
        _bypass(graph, node)
        note = (
            "The file ends in one sigmoid per class; the logits are those before the sigmoids, "
            "and the probabilities that this server reports are their softmax."
        )
        return Recovered("sigmoid", (note,) if several else ())
    return Recovered("logits")


def _open_pair(graph: fx.GraphModule, pair: fx.Node, x: Tensor) -> bool:
    """Turn `[1 - p, p]`, in either order, of a sigmoid p of z into its logits `[-z / 2, z / 2]`."""
    for own in pair.all_input_nodes:
        others = [node for node in pair.all_input_nodes if node is not own]
        sigmoid = _through(own)
        if len(others) != 1 or _kind(sigmoid) != "sigmoid" or not _shifts(others[0], sigmoid):
            continue
        kept = record(graph, x, keep=[own, *others]).kept
        if not torch.equal(kept[others[0]], 1 - kept[own]):
            continue
        for node, factor in ((others[0], -0.5), (own, 0.5)):
            with graph.graph.inserting_before(pair):
                half = graph.graph.call_function(torch.mul, (own, factor))
            half.meta["kind"] = "mul"
            pair.replace_input_with(node, half)
        _bypass(graph, sigmoid)
        return True
    return False


def _shifts(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node only adds to another one, negates or reshapes it."""
    while node is not source:
        before = [item for item in node.all_input_nodes if item.op != "get_attr"]
        if len(before) != 1 or _kind(node) not in _SHIFTS:
            return False
        (node,) = before
    return True


def _is_ranked(node: fx.Node) -> bool:
    picked = _operand(node) if node.target is operator.getitem else None
    return bool(_RANKS & {_kind(item) for item in (node, picked) if item is not None})


def _kind(node: fx.Node) -> str:
    return str(node.meta.get("kind", ""))


def _operand(node: fx.Node) -> fx.Node | None:
    first = node.args[0] if node.args else None
    return first if isinstance(first, fx.Node) else None


def _through(node: fx.Node | None) -> Any:
    while node is not None and _kind(node) in _SHAPE_ONLY and (before := _operand(node)):
        node = before
    return node


def _over_classes(graph: fx.GraphModule, node: fx.Node, x: Tensor) -> bool:
    """Whether a softmax or log-softmax runs over the only axis besides the batch's."""
    before = _operand(node)
    if before is None:
        return False
    kept = record(graph, x, keep=[before, node]).kept
    scores, values = kept[before], kept[node]
    axes = [
        axis for axis, size in enumerate(scores.shape) if size > 1 and (axis or scores.dim() == 1)
    ]
    if len(axes) != 1 or scores.shape != values.shape:
        return False
    expected = scores.softmax(axes[0]) if _kind(node) == "softmax" else scores.log_softmax(axes[0])
    return torch.allclose(expected, values, rtol=1e-4, atol=1e-5, equal_nan=True)


def _bypass(graph: fx.GraphModule, node: fx.Node) -> None:
    before = _operand(node)
    assert before is not None
    node.replace_all_uses_with(before)
    (output,) = graph.graph.output_node().args
    assert isinstance(output, fx.Node)
    keep_output(graph, output)


def told_by_values(values: Tensor) -> tuple[str, str | None]:
    """What an output `(N, K)` holds, by its values on several inputs, and a note.

    Rows that are no less than 0 and sum to 1 are probabilities; rows whose exponentials sum to 1
    are log-probabilities; all else is logits.
    """
    values = values.double()
    if not values.isfinite().all():
        return "logits", None
    if values.shape[1] == 1:
        inside = bool(((values > 0) & (values < 1)).all())
        note = (
            "The only output lies between 0 and 1 on every input tried and is read as a logit; "
            "set output.kind to probabilities if it is one."
        )
        return "logits", note if inside else None
    told = "so it is read as such; set output.kind to say otherwise."
    if bool((values >= 0).all()) and bool(((values.sum(1) - 1).abs() < 1e-4).all()):
        return "probabilities", f"Every row of the output sums to 1 like probabilities, {told}"
    if bool((values <= 0).all()) and bool((values.logsumexp(1).abs() < 1e-4).all()):
        return "log_probabilities", f"The output is normalised like log-probabilities, {told}"
    return "logits", None


class Rows(nn.Module):
    """`(N, 1, K, 1)` and the like to `(N, K)`."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, values: Tensor) -> Tensor:
        return values.reshape(-1, self.count)


class Log(nn.Module):
    """Probabilities to their logarithms, no lower than that of the smallest normal number."""

    def forward(self, values: Tensor) -> Tensor:
        return values.clamp(min=torch.finfo(values.dtype).tiny).log()


class Decision(nn.Module):
    """The winner's index as logits: 30 for the winner, 0 for all others."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, values: Tensor) -> Tensor:
        dtype = values.dtype if values.is_floating_point() else torch.float32
        order = torch.arange(self.classes, device=values.device)
        return 30.0 * (values.detach().to(dtype).round() == order).to(dtype)


class TwoLogits(nn.Module):
    """A single logit z as the logits (0, z) of two classes."""

    def forward(self, values: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(values), values], 1)


class TwoProbabilities(nn.Module):
    """A single probability p as the probabilities (1 - p, p) of two classes."""

    def forward(self, values: Tensor) -> Tensor:
        return torch.cat([1 - values, values], 1)


def head(count: int, source: str, *, shaped: bool, classes: int = 0) -> nn.Module:
    """From a network's output to logits `(N, K)`, K being 2 where a row has one score.

    Args:
        count: numbers in a row.
        source: `probabilities`, `classes`, `values`, or anything else for scores that are logits
            already.
        shaped: the output is `(N, count)` already.
        classes: K, where the output is the winner's index.
    """
    parts: list[nn.Module] = [] if shaped else [Rows(count)]
    if source == "classes":
        parts.append(Decision(classes))
    elif source == "probabilities":
        parts += [TwoProbabilities(), Log()] if count == 1 else [Log()]
    elif count == 1 and source != "values":
        parts.append(TwoLogits())
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts) if parts else nn.Identity()
