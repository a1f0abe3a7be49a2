"""Shapley values of one row, from the scores of all coalitions or along random orders."""

from abc import ABC, abstractmethod
from math import comb

import torch
from torch import Tensor

from interpret_server.noise import generator

from .coalitions import Scored

_ROUNDINGS = 8  # by which a difference of two scores may be wrong


class ShapleyValues(ABC):
    """An estimate that grows with the coalitions that were scored; number 0 is the empty one.

    Args:
        features: M.

    Attributes:
        count: of coalitions that are needed; the whole one is not among them.
        base: the score of the empty coalition; there once it was added.
        values: `(M,)` float64, the estimate.
        error: `(M,)` float64, its standard error; 0 where that is lost in the scores' rounding.
    """

    count: int
    base: Tensor

    def __init__(self, features: int, device: torch.device) -> None:
        self._features = features
        self.values = torch.zeros(features, dtype=torch.float64, device=device)
        self.error = torch.zeros_like(self.values)

    @abstractmethod
    def draw(self, numbers: Tensor) -> Tensor:
        """The coalitions of these numbers `(P,)`, `(P, M)` bool."""

    @abstractmethod
    def add(self, scored: Scored, whole: Tensor) -> bool:
        """Take the next coalitions into account.

        Args:
            scored: that follow on those before.
            whole: the score of the input.

        Returns:
            Whether there is an estimate.
        """


class Exact(ShapleyValues):
    """From all coalitions: the sum of each one's score times its weight (Shapley 1953)."""

    def __init__(self, features: int, device: torch.device) -> None:
        super().__init__(features, device)
        self.count = max(1, 2**features - 1)

    def draw(self, numbers: Tensor) -> Tensor:
        return (numbers.unsqueeze(1) >> torch.arange(self._features)) & 1 > 0

    def add(self, scored: Scored, whole: Tensor) -> bool:
        if not scored.numbers[0]:
            self.base = scored.scores[0]
            self.values += (whole - self.base) / max(1, self._features)
        # Kept features gain by a coalition of size s what the others lose, each by its weight.
        weights = [1 / comb(self._features - 1, size) for size in range(self._features)]
        known = self.values.new_tensor([0.0, *weights, 0.0]) / max(1, self._features)
        sizes = scored.kept.sum(1)
        shares = torch.where(scored.kept, known[sizes, None], -known[sizes + 1, None])
        self.values += (scored.scores - self.base) @ shares
        return int(scored.numbers[-1]) == self.count - 1


class Sampled(ShapleyValues):
    """From random orders; each feature gets the change of the score at its turn.

    Args:
        features: M, at least 2.
        permutations: orders; of pairs that are each other's reverse, where `antithetic`.
        antithetic: whether the orders are such pairs, whose means are what is independent.
        seed: of the row.
        like: has the device of the values and the precision of the scores.
    """

    def __init__(
        self, features: int, permutations: int, antithetic: bool, seed: int, like: Tensor
    ) -> None:
        super().__init__(features, like.device)
        self.count = 1 + permutations * (features - 1)
        self._orders, self._seed = 2 if antithetic else 1, seed  # orders of a draw
        self._waiting = self.values.new_zeros(0)
        self._done = 0
        self._spread = torch.zeros_like(self.values)  # squared distances from the mean
        self._rounding = self.values.new_zeros(())
        self._precision = _ROUNDINGS * torch.finfo(like.dtype).eps

    def orders(self, drawn: int) -> Tensor:
        """The orders of a draw, `(1 or 2, M)` int64: the features in the order of their turns."""
        order = torch.randperm(self._features, generator=generator(self._seed, drawn))
        return torch.stack([order, order.flip(0)][: self._orders])

    def draw(self, numbers: Tensor) -> Tensor:
        permutation = torch.div(numbers - 1, self._features - 1, rounding_mode="floor")
        kept = torch.zeros(len(numbers), self._features, dtype=torch.bool)
        for found in sorted(set(permutation.clamp(min=0).tolist())):
            drawn, place = divmod(found, self._orders)
            turns = self.orders(drawn)[place].argsort()
            mine = permutation == found
            shown = 1 + (numbers[mine] - 1) % (self._features - 1)
            kept[mine] = turns < shown.unsqueeze(1)
        return kept

    def add(self, scored: Scored, whole: Tensor) -> bool:
        scores = scored.scores
        if not scored.numbers[0]:
            self.base, scores = scores[0], scores[1:]
        largest = scored.scores.abs().max().maximum(whole.abs())
        self._rounding = self._rounding.maximum(self._precision * largest)
        self._waiting = torch.cat([self._waiting, scores])
        length = self._features - 1
        while len(self._waiting) >= self._orders * length:
            scores = self._waiting[: self._orders * length].reshape(self._orders, length)
            self._waiting = self._waiting[self._orders * length :]
            ends = scores.new_ones(self._orders, 1)
            changes = torch.cat([ends * self.base, scores, ends * whole], 1).diff(dim=1)
            orders = self.orders(self._done).to(changes.device)
            self._include(torch.zeros_like(changes).scatter(1, orders, changes).mean(0))
        return self._done > 0

    def _include(self, values: Tensor) -> None:
        self._done += 1
        away = values - self.values
        self.values = self.values + away / self._done
        self._spread += away * (values - self.values)
        if self._done > 1:
            error = (self._spread / (self._done * (self._done - 1))).sqrt()
            self.error = error * (error > self._rounding)
