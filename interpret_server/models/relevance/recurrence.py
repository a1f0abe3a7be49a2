"""Recurrent layers step by step, so that relevance comes back through every step.

Gates get nothing: `c_t = f c_{t-1} + i g` shares in proportion to both summands, and what comes to
`h_t = o tanh(c_t)` goes to `c_t` (Arras et al. 2017, "Explaining Recurrent Neural Network
Predictions in Sentiment Analysis", section 3). What is left of a step is linear in the input and
the state before, and follows the rule of linear layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .linear_rules import LinearRule
from .rules import proportional, relayed, unchanged, weighted

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
States = tuple[Tensor, ...]


@dataclass(frozen=True)
class RecurrentRules:
    """How relevance comes back through a step.

    Args:
        linear: the rule of what is linear in the input and the state before.
        epsilon: stabilises sums.
    """

    linear: LinearRule
    epsilon: float


def recurrent(
    rules: RecurrentRules, operator: str, overload: str, x: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    """As `torch.ops.aten.<operator>.<overload>` in evaluation mode.

    Args:
        rules: of relevance.
        operator: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`.
        overload: `input` for sequences of one length, `data` for packed ones.
        x: `(N, T, C)` or `(T, N, C)`, or the `(total, C)` of a packed sequence.
        arguments: the operator's others, in the order of its schema.
    """
    given = list(arguments)
    sizes = given.pop(0).tolist() if overload == "data" else None
    first, weights, biases, layers, _, _, both, *rows_first = given
    swapped = bool(rows_first and rows_first[0])
    if sizes is None:
        steps = list((x.transpose(0, 1) if swapped else x).unbind(0))
    else:
        steps = list(torch.split(x, sizes))
    states = tuple(first) if isinstance(first, (list, tuple)) else (first,)
    directions = 2 if both else 1
    per_layer = len(weights) // (layers * directions)
    last: list[States] = []
    for layer in range(layers):
        made = []
        for direction in range(directions):
            place = layer * directions + direction
            own = weights[place * per_layer : (place + 1) * per_layer]
            cell = _Cell(operator, own, bool(biases), rules)
            start = tuple(state[place] for state in states)
            outputs, end = _direction(cell, steps, start, backwards=direction == 1)
            made.append(outputs)
            last.append(end)
        steps = [torch.cat(parts, -1) for parts in zip(*made, strict=True)]
    ends = (torch.stack(parts) for parts in zip(*last, strict=True))
    if sizes is not None:
        return torch.cat(steps), *ends
    return torch.stack(steps, 1 if swapped else 0), *ends


def recurrent_module(
    rules: RecurrentRules, module: nn.RNNBase, x: Tensor, first: Any = None
) -> Any:
    """As a recurrent module of one layer or several, in evaluation mode."""
    operator = module.mode.lower()
    count = module.num_layers * (1 + module.bidirectional)
    if first is None:
        rows = x.shape[0 if module.batch_first else 1]
        state = x.new_zeros(count, rows, module.proj_size or module.hidden_size)
        first = (
            (state, x.new_zeros(count, rows, module.hidden_size)) if operator == "lstm" else state
        )
    settings = (module.bias, module.num_layers, 0.0, False, module.bidirectional)
    weights = [weight for names in module.all_weights for weight in names]
    y, *last = recurrent(rules, operator, "input", x, first, weights, *settings, module.batch_first)
    return y, tuple(last) if operator == "lstm" else last[0]


def _direction(
    cell: "_Cell", steps: Sequence[Tensor], start: States, *, backwards: bool
) -> tuple[list[Tensor], States]:
    """The outputs of all steps and the last states; packed steps have fewer and fewer rows."""
    order = range(len(steps))[::-1] if backwards else range(len(steps))
    states = tuple(state[: len(steps[order[0]])] for state in start)
    outputs: dict[int, Tensor] = {}
    ended: list[States] = []
    for index in order:
        rows, running = len(steps[index]), len(states[0])
        if rows > running:  # backwards, longer sequences begin later
            states = tuple(
                torch.cat([now, first[running:rows]])
                for now, first in zip(states, start, strict=True)
            )
        elif rows < running:
            ended.insert(0, tuple(state[rows:] for state in states))
            states = tuple(state[:rows] for state in states)
        states = cell(steps[index], states)
        outputs[index] = states[0]
    last = tuple(torch.cat(parts) for parts in zip(states, *ended, strict=True))
    return [outputs[index] for index in range(len(steps))], last


class _Cell:
    """One step of a recurrent layer."""

    def __init__(
        self, operator: str, weights: Sequence[Tensor], biases: bool, rules: RecurrentRules
    ) -> None:
        self.operator, self.rules = operator, rules
        w, u, *others = weights
        b, v = others[:2] if biases else (w.new_zeros(len(w)), w.new_zeros(len(u)))
        self.gates = [tuple(part.chunk(_GATES[operator])) for part in (w, u, b, v)]  # each by gate
        self.projection = others[-1] if len(others) == (3 if biases else 1) else None

    def __call__(self, x: Tensor, states: States) -> States:
        step: Callable[[Tensor, States], States] = {
            "lstm": self._lstm,
            "gru": self._gru,
        }.get(self.operator, self._plain)
        return step(x, states)

    def _plain(self, x: Tensor, states: States) -> States:
        function = torch.tanh if self.operator == "rnn_tanh" else torch.relu
        return (relayed(function, unchanged, self._both(0, x, states[0])),)

    def _lstm(self, x: Tensor, states: States) -> States:
        h, c = states
        with torch.no_grad():
            i, f, o = (torch.sigmoid(self._gate(index, x, h)) for index in (0, 1, 3))
        g = relayed(torch.tanh, unchanged, self._both(2, x, h))
        c = relayed(lambda c, g: f * c + i * g, proportional(self.rules.epsilon), c, g)
        h = relayed(lambda c: o * c.tanh(), unchanged, c)
        if self.projection is not None:
            h = self._linear(self.projection, None, h)
        return h, c

    def _gru(self, x: Tensor, states: States) -> States:
        (h,) = states
        share = proportional(self.rules.epsilon)
        with torch.no_grad():
            r, z = (torch.sigmoid(self._gate(index, x, h)) for index in (0, 1))
        w, u, b, v = (part[2] for part in self.gates)
        of_x, of_h = self._linear(w, b, x), self._linear(u, v, h)
        content = relayed(lambda of_x, of_h: of_x + r * of_h, share, of_x, of_h)
        n = relayed(torch.tanh, unchanged, content)
        return (relayed(lambda n, h: (1 - z) * n + z * h, share, n, h),)

    def _gate(self, index: int, x: Tensor, h: Tensor) -> Tensor:
        w, u, b, v = (part[index] for part in self.gates)
        return x @ w.t() + b + h @ u.t() + v

    def _both(self, index: int, x: Tensor, h: Tensor) -> Tensor:
        """What one gate's weights make of the input and the state before."""
        w, u, b, v = (part[index] for part in self.gates)
        return self._linear(torch.cat([w, u], 1), b + v, torch.cat([x, h], 1))

    def _linear(self, weight: Tensor, bias: Tensor | None, values: Tensor) -> Tensor:
        rows, columns = weight.shape
        layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        return relayed(layer, weighted(layer, self.rules.linear), values)
