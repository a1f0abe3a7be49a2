"""The cells of RNN, LSTM and GRU as ONNX defines them, one step at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .indexing import reverse_sequence

Sizes = Sequence[int | None]


@dataclass(frozen=True)
class Cell:
    """What distinguishes the three operators.

    Args:
        name: of the operator.
        gates: how many share one weight matrix.
        order: the position of each of torch's gates among ONNX's.
        activations: the default ones, lowercase.
        layer: torch's.
    """

    name: str
    gates: int
    order: tuple[int, ...]
    activations: tuple[str, ...]
    layer: type[nn.RNNBase]


class _Differentiable(nn.RNNBase):
    def forward(self, x: Tensor, first: Any = None) -> Any:
        """As torch's layer, for `x` of `(steps, N, width)` and first states where there are any.

        cuDNN runs the backward pass of a recurrent layer in training mode only; without dropout,
        that mode changes nothing else.
        """
        if first is None:
            zeros = x.new_zeros(1 + self.bidirectional, x.shape[1], self.hidden_size)
            first = (zeros, zeros) if self.mode == "LSTM" else zeros
        self.check_forward_args(x, first, None)
        run = getattr(torch, self.mode.lower())
        y, *last = run(
            x, first, self._flat_weights, self.bias, 1, 0.0, x.is_cuda, self.bidirectional, False
        )
        return y, tuple(last) if self.mode == "LSTM" else last[0]


class RNN(_Differentiable, nn.RNN):  # type: ignore[misc]
    """`torch.nn.RNN`, differentiable on every device."""


class LSTM(_Differentiable, nn.LSTM):  # type: ignore[misc]
    """`torch.nn.LSTM`, differentiable on every device."""


class GRU(_Differentiable, nn.GRU):  # type: ignore[misc]
    """`torch.nn.GRU`, differentiable on every device."""


CELLS: Mapping[str, Cell] = {
    "RNN": Cell("RNN", 1, (0,), ("tanh",), RNN),
    "LSTM": Cell("LSTM", 4, (0, 2, 3, 1), ("sigmoid", "tanh", "tanh"), LSTM),
    "GRU": Cell("GRU", 3, (1, 0, 2), ("sigmoid", "tanh"), GRU),
}


@dataclass(frozen=True)
class Activation:
    """An activation with its parameters; the source is the documentation of the ONNX operators."""

    name: str
    alpha: float
    beta: float

    def __call__(self, x: Tensor) -> Tensor:
        return _ACTIVATIONS[self.name](x, self.alpha, self.beta)


_ACTIVATIONS: Mapping[str, Callable[[Tensor, float, float], Tensor]] = {
    "affine": lambda x, alpha, beta: alpha * x + beta,
    "elu": lambda x, alpha, _: F.elu(x, alpha),
    "hardsigmoid": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "leakyrelu": lambda x, alpha, _: F.leaky_relu(x, alpha),
    "relu": lambda x, *_: x.relu(),
    "scaledtanh": lambda x, alpha, beta: alpha * (beta * x).tanh(),
    "sigmoid": lambda x, *_: x.sigmoid(),
    "softplus": lambda x, *_: F.softplus(x, threshold=40.0),
    "softsign": lambda x, *_: F.softsign(x),
    "tanh": lambda x, *_: x.tanh(),
    "thresholdedrelu": lambda x, alpha, _: torch.where(x >= alpha, x, 0.0),
}
_ALPHA = {
    "affine": 1.0,
    "elu": 1.0,
    "hardsigmoid": 0.2,
    "leakyrelu": 0.01,
    "scaledtanh": 1.0,
    "thresholdedrelu": 1.0,
}
_BETA = {"affine": 0.0, "hardsigmoid": 0.5, "scaledtanh": 1.0}


def activations(
    names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]
) -> tuple[Activation, ...]:
    """Activations by name, each taking the next alpha and beta if it has such parameters.

    Raises:
        ValueError: naming an activation that ONNX has not.
    """
    alpha, beta = iter(alphas), iter(betas)
    found = []
    for name in (item.lower() for item in names):
        if name not in _ACTIVATIONS:
            raise ValueError(f"the activation {name!r} is not one of a recurrent layer")
        found.append(
            Activation(
                name,
                next(alpha, _ALPHA[name]) if name in _ALPHA else 0.0,
                next(beta, _BETA[name]) if name in _BETA else 0.0,
            )
        )
    return tuple(found)


def misfit(cell: Cell, directions: int, shapes: Mapping[str, Sizes | None]) -> str | None:
    """What does not fit in the shapes of a recurrent layer's inputs, time first, or None.

    Args:
        shapes: of X, W, R, B, sequence_lens, initial_h, initial_c and P; an unknown size is None,
            and so is an unknown shape.
    """
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    x, w, r = (known.get(name) for name in "XWR")
    steps, batch, width = x if x is not None and len(x) == 3 else (None, None, None)
    hidden = r[2] if r is not None and len(r) == 3 else None
    width = w[2] if width is None and w is not None and len(w) == 3 else width
    gates = None if hidden is None else cell.gates * hidden
    wanted: dict[str, Sizes] = {
        "X": (steps, batch, width),
        "W": (directions, gates, width),
        "R": (directions, gates, hidden),
        "B": (directions, None if gates is None else 2 * gates),
        "sequence_lens": (batch,),
        "initial_h": (directions, batch, hidden),
        "initial_c": (directions, batch, hidden),
        "P": (directions, None if hidden is None else 3 * hidden),
    }
    one_row = {"sequence_lens": 0, "initial_h": 1, "initial_c": 1}
    for name, shape in known.items():
        expected = wanted[name]
        fits = len(shape) == len(expected) and all(
            None in (a, b) or a == b or (axis == one_row.get(name) and a == 1)
            for axis, (a, b) in enumerate(zip(shape, expected, strict=True))
        )
        if not fits:
            return f"{name} of {cell.name} has the shape {_told(shape)}, not {_told(expected)}"
    return None


def _told(shape: Sizes) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"


def initial_state(state: Tensor, x: Tensor, directions: int, hidden: int) -> Tensor:
    """A first state `(directions, N or 1, hidden)` for every row of `x`, `(steps, N, width)`.

    Raises:
        ValueError: it has another shape.
    """
    shape = (directions, x.shape[1], hidden)
    if state.dim() != 3 or state.shape not in (shape, (directions, 1, hidden)):
        raise ValueError(
            f"an initial state has the shape {tuple(state.shape)}, where the batch needs {shape}"
        )
    return state.expand(shape).contiguous()


def zero_state(x: Tensor, directions: int, hidden: int) -> Tensor:
    """Zeros as the first state of every row of `x`, `(steps, N, width)`."""
    return x.new_zeros(directions, x.shape[1], hidden)


def running(lengths: Tensor, x: Tensor) -> Tensor:
    """Whether each row is still running at each step, `(steps, N, 1)`."""
    steps = torch.arange(x.shape[0], device=x.device)
    return (steps[:, None] < lengths[None]).unsqueeze(-1)


class Recurrence(nn.Module):
    """A recurrent layer with everything that ONNX allows.

    Args:
        activations: of each direction.
        reverse: whether each direction runs backwards.
        clip: bounds of what activations see, or None.
        coupled: an LSTM's forget gate is one minus its input gate.
        linear_first: a GRU's reset gate acts after the recurrent product.
    """

    def __init__(
        self,
        cell: Cell,
        activations: Sequence[Sequence[Activation]],
        reverse: Sequence[bool],
        *,
        clip: float | None = None,
        coupled: bool = False,
        linear_first: bool = False,
    ) -> None:
        super().__init__()
        self.cell, self.activations, self.reverse = cell, activations, reverse
        self.clip, self.coupled, self.linear_first = clip, coupled, linear_first

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor | None = None,
        lengths: Tensor | None = None,
        h0: Tensor | None = None,
        c0: Tensor | None = None,
        peepholes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States `(steps, directions, N, hidden)`, and the last `(directions, N, hidden)`.

        Raises:
            ValueError: the shapes do not fit.
        """
        self._check(x, w, r, b, lengths, h0, c0, peepholes)
        results = [
            self._direction(
                d,
                x,
                w[d],
                r[d],
                r.new_zeros(2 * r.shape[1]) if b is None else b[d],
                lengths,
                x.new_zeros(x.shape[1], r.shape[2]) if h0 is None else h0[d],
                x.new_zeros(x.shape[1], r.shape[2]) if c0 is None else c0[d],
                r.new_zeros(3 * r.shape[2]) if peepholes is None else peepholes[d],
            )
            for d in range(len(self.reverse))
        ]
        y, h, c = zip(*results, strict=True)
        return torch.stack(y, 1), torch.stack(h), torch.stack(c)

    def examine(self, x: Tensor, w: Tensor, r: Tensor, *others: Tensor | None) -> Sequence[Tensor]:
        """The results' shapes."""
        self._check(x, w, r, *others)
        steps, batch, _ = x.shape
        directions, _, hidden = r.shape
        last = x.new_empty(directions, batch, hidden)
        return x.new_empty(steps, directions, batch, hidden), last, last

    def _check(self, *inputs: Tensor | None) -> None:
        names = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
        shapes = {
            name: tuple(value.shape)
            for name, value in zip(names, inputs, strict=False)
            if value is not None
        }
        problem = misfit(self.cell, len(self.reverse), shapes)
        if problem is not None:
            raise ValueError(problem)

    def _direction(
        self,
        direction: int,
        x: Tensor,
        w: Tensor,
        r: Tensor,
        b: Tensor,
        lengths: Tensor | None,
        h: Tensor,
        c: Tensor,
        peepholes: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        reverse = self.reverse[direction]
        batch, hidden = x.shape[1], r.shape[1]
        h, c = h.expand(batch, hidden), c.expand(batch, hidden)
        if reverse:
            x = backwards(x, lengths)
        mask = None if lengths is None else running(lengths, x)
        projected = x @ w.t() + b[: len(w)]
        recurrent = b[len(w) :]
        step = {"RNN": self._rnn, "LSTM": self._lstm, "GRU": self._gru}[self.cell.name]
        states = []
        for t, gates in enumerate(projected):
            new_h, new_c = step(self.activations[direction], gates, r, recurrent, h, c, peepholes)
            if mask is None:
                h, c = new_h, new_c
                states.append(h)
            else:
                h, c = torch.where(mask[t], new_h, h), torch.where(mask[t], new_c, c)
                states.append(torch.where(mask[t], new_h, 0.0))
        y = torch.stack(states) if states else x.new_zeros(0, batch, hidden)
        return (backwards(y, lengths) if reverse else y), h, c

    def _bounded(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def _rnn(
        self,
        functions: Sequence[Activation],
        gates: Tensor,
        r: Tensor,
        b: Tensor,
        h: Tensor,
        c: Tensor,
        peepholes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return functions[0](self._bounded(gates + h @ r.t() + b)), c

    def _lstm(
        self,
        functions: Sequence[Activation],
        gates: Tensor,
        r: Tensor,
        b: Tensor,
        h: Tensor,
        c: Tensor,
        peepholes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sigma, squash, shape = functions
        into, out, forget, content = (gates + h @ r.t() + b).chunk(4, -1)
        p_into, p_out, p_forget = peepholes.chunk(3)
        i = sigma(self._bounded(into + p_into * c))
        f = 1 - i if self.coupled else sigma(self._bounded(forget + p_forget * c))
        c = f * c + i * squash(self._bounded(content))
        o = sigma(self._bounded(out + p_out * c))
        return o * shape(c), c

    def _gru(
        self,
        functions: Sequence[Activation],
        gates: Tensor,
        r: Tensor,
        b: Tensor,
        h: Tensor,
        c: Tensor,
        peepholes: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sigma, squash = functions
        hidden = r.shape[1]
        both, content = gates[:, : 2 * hidden], gates[:, 2 * hidden :]
        z, reset = sigma(self._bounded(both + h @ r[: 2 * hidden].t() + b[: 2 * hidden])).chunk(
            2, -1
        )
        weight, bias = r[2 * hidden :], b[2 * hidden :]
        if self.linear_first:
            content = content + reset * (h @ weight.t() + bias)
        else:
            content = content + (reset * h) @ weight.t() + bias
        return (1 - z) * squash(self._bounded(content)) + z * h, c


def backwards(x: Tensor, lengths: Tensor | None) -> Tensor:
    """`(steps, N, width)` with each row's steps in reverse order."""
    return x.flip(0) if lengths is None else reverse_sequence(x, lengths, 0, 1)
