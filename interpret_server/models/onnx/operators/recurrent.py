"""RNN, LSTM and GRU: torch's own layers where they compute the same, else step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....errors import InvalidModel
from ..call import Call
from ..registry import operator
from ..values import Maybe, Output, Value
from .cells import (
    CELLS,
    Activation,
    Cell,
    Recurrence,
    activations,
    backwards,
    initial_state,
    misfit,
    running,
    zero_state,
)
from .convolution import frozen

_REVERSE = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


@dataclass(frozen=True)
class _Layer:
    """The attributes of a node.

    Args:
        reverse: whether each direction runs backwards.
        activations: of each direction.
    """

    cell: Cell
    reverse: tuple[bool, ...]
    activations: tuple[tuple[Activation, ...], ...]
    clip: float | None
    coupled: bool
    linear_first: bool

    @classmethod
    def of(cls, call: Call) -> "_Layer":
        cell = CELLS[call.operator]
        direction = call.text("direction", "forward").lower()
        if direction not in _REVERSE:
            raise InvalidModel(f"model: {cell.name} has the unknown direction {direction!r}")
        reverse = _REVERSE[direction]
        names = call.attributes.get("activations") or cell.activations * len(reverse)
        given = [call.attributes.get(f"activation_{which}") or () for which in ("alpha", "beta")]
        try:
            functions = activations(names, *given)
        except ValueError as error:
            raise InvalidModel(f"model: {error}") from error
        width = len(cell.activations)
        if len(functions) != width * len(reverse):
            raise InvalidModel(
                f"model: {cell.name} names {len(functions)} activations, not {width * len(reverse)}"
            )
        return cls(
            cell,
            reverse,
            tuple(functions[i : i + width] for i in range(0, len(functions), width)),
            call.real("clip", 0.0) or None,
            bool(call.integer("input_forget")),
            bool(call.integer("linear_before_reset")),
        )

    @property
    def nonlinearity(self) -> str | None:
        """What torch's layer calls the activations, or None where it has not these."""
        found = {tuple(item.name for item in functions) for functions in self.activations}
        if found == {("relu",)}:
            return "relu"
        return "tanh" if found == {self.cell.activations} else None

    @property
    def plain(self) -> bool:
        """Whether torch has this layer."""
        return (
            self.nonlinearity is not None
            and self.clip is None
            and not self.coupled
            and (self.linear_first or self.cell.name != "GRU")
        )


@operator(*CELLS)
def recurrent(
    call: Call,
    x: Value,
    w: Value,
    r: Value,
    b: Maybe = None,
    lengths: Maybe = None,
    h: Maybe = None,
    c: Maybe = None,
    peepholes: Maybe = None,
) -> Output:
    layer, batch_first = _Layer.of(call), bool(call.integer("layout"))
    if batch_first:
        x = _swapped(call, x)
        h, c = (None if item is None else _swapped(call, item) for item in (h, c))
    h, c, peepholes = _one_row(h), _one_row(c), _nonzero(peepholes)
    inputs = (x, w, r, b, lengths, h, c, peepholes)
    _check(call, layer, inputs)
    lengths = inputs[4] if not _all_steps(call, x, lengths) else None
    weights = w, r, b
    cell_wanted = len(call.outputs) > 2 and bool(call.outputs[2])
    results: Sequence[Value]
    if (
        layer.plain
        and peepholes is None
        and (lengths is None or not cell_wanted)
        and all(item is None or isinstance(item, Tensor) for item in weights)
    ):
        results = _by_torch(call, layer, x, weights, lengths, h, c)
    else:
        results = _step_by_step(call, layer, (x, w, r, b, lengths, h, c, peepholes))
    if not batch_first:
        return results
    y, *last = results
    return [
        call.function(torch.permute, y, (2, 0, 1, 3), kind="permute"),
        *(_swapped(call, item) for item in last),
    ]


def _swapped(call: Call, x: Value) -> Value:
    return call.function(torch.transpose, x, 0, 1, kind="transpose")


def _nonzero(x: Maybe) -> Maybe:
    """None for constant zeros, which are what an input that is left out means."""
    return None if isinstance(x, Tensor) and not x.any() else x


def _one_row(state: Maybe) -> Maybe:
    """A constant first state that is the same for all rows, as that of one row."""
    state = _nonzero(state)
    if isinstance(state, Tensor) and state.dim() == 3 and (state == state[:, :1]).all():
        return state[:, :1]
    return state


def _all_steps(call: Call, x: Value, lengths: Maybe) -> bool:
    shape = call.shape(x)
    if lengths is None or not isinstance(lengths, Tensor) or not shape or shape[0] is None:
        return lengths is None
    return bool(torch.all(lengths == shape[0]))


def _check(call: Call, layer: _Layer, inputs: Sequence[Maybe]) -> None:
    shapes = {
        name: call.shape(value)
        for name, value in zip(_INPUTS, inputs, strict=True)
        if value is not None
    }
    problem = misfit(layer.cell, len(layer.reverse), shapes)
    recurrent = shapes.get("R")
    hidden = recurrent[2] if recurrent and len(recurrent) == 3 else None
    if problem is None and hidden is not None and call.integer("hidden_size", hidden) != hidden:
        problem = f"{layer.cell.name} has {hidden} hidden units, not hidden_size"
    if problem is not None:
        raise InvalidModel(f"model: {problem}")


def _step_by_step(call: Call, layer: _Layer, inputs: Sequence[Maybe]) -> list[Value]:
    module = Recurrence(
        layer.cell,
        layer.activations,
        layer.reverse,
        clip=layer.clip,
        coupled=layer.coupled,
        linear_first=layer.linear_first,
    )
    results = call.module(module, *inputs, examine=module.examine)
    return call.items_of(results, 3 if layer.cell.name == "LSTM" else 2)


def _by_torch(
    call: Call,
    layer: _Layer,
    x: Value,
    weights: Sequence[Any],
    lengths: Maybe,
    h: Maybe,
    c: Maybe,
) -> list[Value]:
    """Both directions in one layer, unless rows are of different lengths."""
    both = tuple(range(len(layer.reverse)))
    groups = [both] if layer.reverse == (False, True) and lengths is None else [(d,) for d in both]
    parts = [_group(call, layer, group, x, weights, lengths, h, c) for group in groups]
    if len(parts) == 1:
        return parts[0]
    return [
        call.function(torch.cat, list(items), axis, kind="cat")
        for items, axis in zip(zip(*parts, strict=True), (1, 0, 0), strict=False)
    ]


def _group(
    call: Call,
    layer: _Layer,
    group: tuple[int, ...],
    x: Value,
    weights: Sequence[Any],
    lengths: Maybe,
    h: Maybe,
    c: Maybe,
) -> list[Value]:
    module = _torch_layer(layer, group, *weights)
    kind = layer.cell.name.lower()
    count, hidden = len(group), module.hidden_size
    states = [
        _state(call, state, x, group, len(layer.reverse), hidden)
        for state in ((h, c) if kind == "lstm" else (h,))
    ]
    reverse = count == 1 and layer.reverse[group[0]]
    source = call.function(backwards, x, lengths, kind="flip") if reverse else x
    first: Any = None
    if any(state is not None for state in states):
        filled = tuple(
            call.function(zero_state, x, count, hidden, kind="constant") if state is None else state
            for state in states
        )
        first = filled if kind == "lstm" else filled[0]

    def examine(x: Tensor, first: Any = None) -> Any:
        module.check_input(x, None)
        last = x.new_empty(count, x.shape[1], hidden)
        y = x.new_empty(*x.shape[:2], count * hidden)
        return y, (last, last) if kind == "lstm" else last

    arguments = (source,) if first is None else (source, first)
    y, final = call.items_of(call.module(module, *arguments, kind=kind, examine=examine), 2)
    last = call.items_of(final, 2) if kind == "lstm" else [final]
    y = call.function(by_direction, y, count, kind="permute")
    if lengths is not None:
        start = states[0] if states[0] is not None else None
        last = [call.function(last_states, y, lengths, start, kind="select")]
        y = call.function(padded_states, y, lengths, kind="where")
    if reverse:
        y = call.function(backwards_states, y, lengths, kind="flip")
    return [y, *last]


def _state(
    call: Call, state: Maybe, x: Value, group: tuple[int, ...], directions: int, hidden: int
) -> Maybe:
    if state is None:
        return None
    whole = call.function(initial_state, state, x, directions, hidden, kind="expand")
    if len(group) == directions:
        return whole
    return call.function(torch.narrow, whole, 0, group[0], 1, kind="select")


def _torch_layer(
    layer: _Layer, group: tuple[int, ...], w: Tensor, r: Tensor, b: Tensor | None
) -> nn.RNNBase:
    """Torch's layer with the weights of some directions, its gates in torch's order."""
    hidden = r.shape[2]
    options = {"nonlinearity": layer.nonlinearity} if layer.cell.name == "RNN" else {}
    build: Any = layer.cell.layer
    module: nn.RNNBase = build(
        w.shape[2],
        hidden,
        bias=b is not None,
        bidirectional=len(group) == 2,
        device="meta",
        **options,
    )

    def ordered(weight: Tensor) -> nn.Parameter:
        gates = weight.reshape(layer.cell.gates, hidden, *weight.shape[1:])
        return frozen(gates[list(layer.cell.order)].flatten(0, 1).contiguous())

    for suffix, direction in zip(("l0", "l0_reverse"), group, strict=False):
        setattr(module, f"weight_ih_{suffix}", ordered(w[direction]))
        setattr(module, f"weight_hh_{suffix}", ordered(r[direction]))
        if b is not None:
            of_input, of_state = b[direction].chunk(2)
            setattr(module, f"bias_ih_{suffix}", ordered(of_input))
            setattr(module, f"bias_hh_{suffix}", ordered(of_state))
    return module


def by_direction(y: Tensor, directions: int) -> Tensor:
    """`(steps, N, directions * hidden)` as `(steps, directions, N, hidden)`."""
    return y.reshape(*y.shape[:2], directions, -1).transpose(1, 2)


def padded_states(y: Tensor, lengths: Tensor) -> Tensor:
    """`(steps, 1, N, hidden)` with zeros after the end of each row."""
    return torch.where(running(lengths, y).unsqueeze(1), y, 0.0)


def last_states(y: Tensor, lengths: Tensor, start: Tensor | None) -> Tensor:
    """The state of `(steps, 1, N, hidden)` at the end of each row, `(1, N, hidden)`.

    A row without steps keeps its first state, zeros where `start` is None.
    """
    before = torch.zeros_like(y[0]) if start is None else start
    y = torch.cat([before.unsqueeze(0), y])
    index = lengths.to(torch.int64).clamp(0, len(y) - 1).expand(y.shape[2])
    return y[index, :, torch.arange(y.shape[2], device=y.device)].transpose(0, 1)


def backwards_states(y: Tensor, lengths: Tensor | None) -> Tensor:
    """`(steps, 1, N, hidden)` with each row's steps in reverse order."""
    return backwards(y.squeeze(1), lengths).unsqueeze(1)
