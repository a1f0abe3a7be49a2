"""The weight of an attack's loss against the distance, sought for each row alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

_GROWTH = 10.0
_LARGEST = 1e10


@dataclass
class Constants:
    """A bisection for the smallest weight that succeeds, for each row of a batch.

    Args:
        value: `(N,)`, to be tried next.
        low, high: `(N,)`, the largest weight that has failed and the smallest that has succeeded.

    Source: Carlini & Wagner 2017, "Towards Evaluating the Robustness of Neural Networks",
    section VI.A, and Chen et al. 2018.
    """

    value: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def begin(cls, first: Tensor) -> "Constants":
        """With the weights to be tried first, `(N,)`."""
        value = first.clone()
        return cls(value, torch.zeros_like(value), torch.full_like(value, torch.inf))

    def tried(self, rows: Tensor, won: Tensor) -> None:
        """Set the next weights of some rows, by whether their last ones have succeeded."""
        value, low, high = self.value[rows], self.low[rows], self.high[rows]
        high = torch.where(won, torch.minimum(high, value), high)
        low = torch.where(won, low, torch.maximum(low, value))
        self.low[rows], self.high[rows] = low, high
        self.value[rows] = torch.where(torch.isinf(high), value * _GROWTH, (low + high) / 2)

    def sensible(self, rows: Tensor) -> Tensor:
        """Of `rows`, those whose weights have not grown beyond all use."""
        return rows[self.value[rows] <= _LARGEST]
