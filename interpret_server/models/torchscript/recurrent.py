"""Recurrent layers and packed sequences, with the checks that PyTorch leaves out.

`aten::lstm` reads beyond a hidden state of fewer rows than the input, which corrupts memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def recurrent(operator: str, overload: str, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """`aten::<operator>.<overload>` in evaluation mode, after a look at the hidden states.

    Args:
        operator: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`.
        overload: `input` for sequences of one length, `data` for packed ones.
        x: `(N, T, C)` or `(T, N, C)`, or the `(total, C)` of a packed sequence.
        arguments: the operator's others, in the order of its schema.

    Raises:
        ValueError: a hidden state is not `(layers * directions, N, size)`.
    """
    given = list(arguments)
    sizes = given.pop(0).cpu() if overload == "data" else None
    states, weights, biases, layers, dropout, _, both, *first = given
    if sizes is not None:
        rows = int(sizes[0])
    elif x.dim() != 3:
        raise ValueError(f"aten::{operator} takes three axes, not {x.dim()}")
    else:
        rows = x.size(0 if first[0] else 1)
    _check(operator, states, weights, layers * (2 if both else 1), rows)
    function = getattr(getattr(_aten, operator), overload)
    packed = [] if sizes is None else [sizes]
    result: tuple[Tensor, ...] = function(
        x, *packed, states, weights, biases, layers, dropout, False, both, *first
    )
    return result


def _check(operator: str, states: Any, weights: Sequence[Tensor], count: int, rows: int) -> None:
    """Compare hidden states with the first layer's weights `(gates * size, projected size)`."""
    if len(weights) < 2 or weights[1].dim() != 2:
        raise ValueError(f"aten::{operator} has no weights")
    size, projected = weights[1].size(0) // GATES[operator], weights[1].size(1)
    widths = (projected, size) if operator == "lstm" else (projected,)
    given = tuple(states) if isinstance(states, (list, tuple)) else (states,)
    for state, width in zip(given, widths, strict=True):
        if tuple(state.shape) != (count, rows, width):
            raise ValueError(
                f"aten::{operator} has a hidden state of shape {list(state.shape)} where "
                f"{[count, rows, width]} is due"
            )


def pack_padded_sequence(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
    """`aten::_pack_padded_sequence`, which takes the lengths on the CPU alone."""
    packed: tuple[Tensor, Tensor] = _aten._pack_padded_sequence.default(
        x, lengths.cpu(), batch_first
    )
    return packed


def pad_packed_sequence(
    data: Tensor, batch_sizes: Tensor, batch_first: bool, padding: float, length: int
) -> tuple[Tensor, Tensor]:
    """`aten::_pad_packed_sequence`; the lengths come back on the device of the data."""
    padded, lengths = _aten._pad_packed_sequence.default(
        data, batch_sizes.cpu(), batch_first, padding, length
    )
    return padded, lengths.to(data.device)
