"""What exporters write around recurrent layers, taken out where it changes nothing.

ONNX states the first state of every layer, often zeros that are computed anew at each call, and has
the directions of a layer's output on an axis of their own, which the next layer joins again. It has
no layers of several levels, so that each level is a call of its own.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from .draft import Draft, function_name

_OPERATORS = frozenset(("lstm", "gru", "rnn_tanh", "rnn_relu"))
_ZEROS = frozenset(("zeros", "zeros_like", "new_zeros", "zero_state"))
_KEEP_ZEROS = frozenset((
    "initial_state", "expand_to", "expand", "slice_along", "slice", "narrow", "select",
    "permute", "transpose", "squeeze", "unsqueeze", "contiguous",
))  # fmt: skip


class Stacked(nn.Module):
    """Recurrent layers of one kind, each on the output of the one before, in one call.

    Args:
        layers: of one level each, time first, without dropout; the weights stay theirs.
    """

    def __init__(self, layers: Sequence[nn.RNNBase]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The last layer's `(steps, N, directions * hidden)` for `(steps, N, width)`."""
        layers: list[Any] = list(self.layers)
        first, count = layers[0], len(layers)
        weights = [weight for layer in layers for weight in layer._flat_weights]
        settings = (first.bias, count, 0.0, x.is_cuda, first.bidirectional, False)
        return from_zeros(first.mode.lower(), x, weights, *settings)[:1]


def from_zeros(
    operator: str, x: Tensor, weights: Sequence[Tensor], *settings: Any
) -> tuple[Tensor, ...]:
    """A recurrent operator with first states of zeros.

    Args:
        operator: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`.
        x: `(N, steps, width)` or `(steps, N, width)`.
        weights: of all levels, as torch lists them.
        settings: whether there are biases, the number of levels, dropout, training, whether there
            are two directions, and whether rows come first.
    """
    _, levels, _, _, both, rows_first = settings
    rows, hidden = x.shape[0 if rows_first else 1], weights[1].shape[1]
    zeros = x.new_zeros(levels * (2 if both else 1), rows, hidden)
    states = (zeros, zeros) if operator == "lstm" else zeros
    values: tuple[Tensor, ...] = getattr(torch, operator)(x, states, weights, *settings)
    return values


def simplify_recurrence(draft: Draft) -> None:
    """Leave first states of zeros to the layers, read their outputs as they are, and stack them."""
    for node in list(draft.graph.nodes):
        if isinstance(draft.module(node), nn.RNNBase) and len(node.args) == 2 and not node.kwargs:
            _omit_zeros(draft, node)
        elif function_name(node) == "recurrent" and len(node.args) == 11 and not node.kwargs:
            _begin_at_zeros(draft, node)
        elif function_name(node) == "by_direction" and len(node.args) == 2:
            _read_joined(draft, node)
    draft.prune()
    for node in list(draft.graph.nodes):
        _stack(draft, node)
    draft.prune()


def _layers(draft: Draft, node: fx.Node) -> list[Any]:
    """The layers that a node calls, where they can be stacked: on one input, for their output."""
    module = draft.module(node)
    layers = list(module.layers) if isinstance(module, Stacked) else [module]
    alone = len(node.args) == 1 and not node.kwargs
    if not alone or any(_item(user) != 0 for user in node.users):
        return []
    return layers if all(map(_is_level, layers)) else []


def _is_level(layer: Any) -> bool:
    return (
        isinstance(layer, nn.RNNBase)
        and (layer.num_layers, layer.proj_size, layer.dropout) == (1, 0, 0.0)
        and not layer.batch_first
    )


def _item(node: fx.Node) -> Any:
    """Which item of another node's values a node picks."""
    picks = function_name(node) in ("item_at", "getitem") and len(node.args) == 2
    return node.args[1] if picks else None


def _stack(draft: Draft, node: fx.Node) -> None:
    """Run a layer and the one whose output alone it reads as one."""
    layers = _layers(draft, node)
    source = cast(Any, node.args[0]) if layers else None
    if not isinstance(source, fx.Node) or len(source.users) != 1 or _item(source) != 0:
        return
    below = cast(fx.Node, source.args[0])
    others = _layers(draft, below)
    if not others or len(below.users) != 1 or len(draft.shape(source) or ()) != 3:
        return
    every, first = [*others, *layers], layers[0]
    traits = {(part.mode, part.hidden_size, part.bidirectional, part.bias) for part in every}
    if len(traits) > 1 or first.input_size != first.hidden_size * (1 + first.bidirectional):
        return
    node.args = below.args
    draft.put(node, (node.name, f"on {len(others)} levels"), partial(Stacked, every))


def _omit_zeros(draft: Draft, node: fx.Node) -> None:
    x, states = cast(Any, node.args)
    given = states if isinstance(states, (list, tuple)) else (states,)
    constants: list[Tensor] = []
    if all(_is_zero(draft, state, constants) and _is_alike(draft, state, x) for state in given):
        node.args = (x,)
        draft.copied.extend(constants)


def _begin_at_zeros(draft: Draft, node: fx.Node) -> None:
    """As `_omit_zeros`, for the operator of an archive on sequences of one length."""
    operator, overload, x, states, weights, biases, levels, dropout, _, both, first = cast(
        Any, node.args
    )
    given = states if isinstance(states, (list, tuple)) else (states,)
    constants: list[Tensor] = []
    recurrent = draft.constant(weights[1]) if isinstance(weights, list) else None
    if operator not in _OPERATORS or overload != "input" or recurrent is None:
        return
    gates = {"lstm": 4, "gru": 3}.get(operator, 1)
    if tuple(recurrent.shape) != (gates * recurrent.shape[-1], recurrent.shape[-1]):
        return  # an LSTM whose output is projected
    if len(draft.shape(x) or ()) == 3 and all(
        _is_zero(draft, state, constants) and _is_alike(draft, state, x) for state in given
    ):
        settings = (biases, levels, dropout, False, both, first)
        node.target, node.args = from_zeros, (operator, x, weights, *settings)
        draft.copied.extend(constants)


def _is_alike(draft: Draft, state: fx.Node, x: fx.Node) -> bool:
    """Whether both have one data type; a layer refuses others."""
    seen = draft.observed.get(state), draft.observed.get(x)
    return seen[0] is not None and seen[1] is not None and seen[0].dtype == seen[1].dtype


def _is_zero(draft: Draft, node: Any, constants: list[Tensor]) -> bool:
    """Whether a node gives zeros whatever the input is."""
    constant = draft.constant(node)
    if constant is not None:
        constants.append(constant)
        return not bool(constant.any())
    if not isinstance(node, fx.Node):
        return False
    name = function_name(node)
    if name == "filled":
        return bool(node.args[1] == 0)
    return name in _ZEROS or (name in _KEEP_ZEROS and _is_zero(draft, node.args[0], constants))


def _read_joined(draft: Draft, node: fx.Node) -> None:
    """Let the readers of `(steps, directions, N, hidden)` read `(steps, N, directions * hidden)`.

    Those that only join the directions again, or ask for a size that both have.
    """
    joined, directions = cast(Any, node.args)
    for user in _sizes_first(node):
        name, rest = function_name(user), list(user.args[1:])
        if name == "size":
            _ask_size(user, joined, {0: 0, 2: 1})
        elif name == "squeeze" and directions == 1 and rest in ([1], [(1,)], [[1]]):
            draft.bypass(user, joined)
        elif name == "permute" and len(rest) == 1 and list(cast(Any, rest[0])) == [0, 2, 1, 3]:
            for reader in _sizes_first(user):
                _read_reshaped(draft, reader, joined)


def _sizes_first(node: fx.Node) -> list[fx.Node]:
    """The readers of a node, those before the others that ask for a size."""
    return sorted(node.users, key=lambda reader: function_name(reader) != "size")


def _read_reshaped(draft: Draft, reader: fx.Node, joined: fx.Node) -> None:
    """Let a reader of `(steps, N, directions, hidden)` read the same elements of three axes."""
    name, rest = function_name(reader), list(reader.args[1:])
    if name == "size":
        _ask_size(reader, joined, {0: 0, 1: 1})
    elif len(rest) == 1 and isinstance(rest[0], (list, tuple)):
        kept = [axis for axis, size in enumerate(rest[0]) if size == 0 and name != "reshape"]
        if name == "reshape" or (name == "reshape_with_zeros" and set(kept) <= {0, 1}):
            reader.args = (joined, *rest)
            if _keeps_shape(draft, joined, rest[0], kept):
                draft.bypass(reader, joined)


def _keeps_shape(draft: Draft, joined: fx.Node, sizes: Sequence[Any], kept: Sequence[int]) -> bool:
    """Whether a reshape to these sizes can only give the shape that is there.

    A layer's output always has the same width, so that one size more leaves no choice.
    """
    shape = draft.shape(joined)
    if shape is None or not len(shape) == len(sizes) == 3 or sizes[2] not in (-1, shape[2]):
        return False
    own = [axis in kept or _is_size(sizes[axis], joined, axis) for axis in (0, 1)]
    return all(own) or (any(own) and sizes[2] != -1)


def _is_size(value: Any, source: fx.Node, axis: int) -> bool:
    return (
        isinstance(value, fx.Node)
        and function_name(value) == "size"
        and (value.args == (source, axis))
    )


def _ask_size(node: fx.Node, other: fx.Node, same: dict[int, int]) -> None:
    """Let a node ask for the size of another value, along the axis that has it."""
    if len(node.args) == 2 and node.args[1] in same:
        node.args = (other, same[cast(int, node.args[1])])
