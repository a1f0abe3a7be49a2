"""Coalitions: features that are kept together while the rest is hidden, and their scores."""

from collections.abc import Callable, Iterator, Sequence
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor

from interpret_server.noise import generator
from interpret_server.plugin import Job

from .features import Features
from .perturbation import Hiding, warn_unchanged

MAX_COALITIONS = 1_000_000  # of one row


class Scored(NamedTuple):
    """Coalitions of one row that went through the model together.

    Args:
        row: whose they are.
        numbers: `(P,)` int64, which of the row's; ascending, without gaps from one to the next.
        kept: `(P, M)` bool, which of the row's features are kept.
        scores: `(P,)` float64.
    """

    row: int
    numbers: Tensor
    kept: Tensor
    scores: Tensor


def score_coalitions(
    hiding: Hiding,
    job: Job,
    features: Features,
    counts: Sequence[int],
    draw: Callable[[int, Tensor], Tensor],
) -> Iterator[Scored]:
    """Score every coalition of every row, row after row; rows that none changes are warned about.

    Args:
        hiding: scores.
        job: that it belongs to.
        features: of the rows.
        counts: coalitions of each row.
        draw: from a row and numbers `(P,)` to coalitions `(P, M)` bool, M being the row's features.
    """
    drawn: dict[int, Tensor] = {}

    def kept(rows: Tensor, numbers: Tensor) -> Tensor:
        drawn.clear()
        shares = []
        for row in sorted(set(rows.tolist())):
            drawn[row] = draw(row, numbers[rows == row].cpu()).to(rows.device)
            count, numbered = len(drawn[row]), features.numbers[row]
            known = torch.cat([drawn[row], drawn[row].new_ones(count, 1)], 1)
            place = numbered.flatten() % known.shape[1]  # -1 is the last one, which is always kept
            share = known.gather(1, place.expand(count, -1))
            shares.append(share.reshape(count, *numbered.shape))
        return torch.cat(shares)

    unchanged = torch.ones(len(features.counts), dtype=torch.bool, device=features.numbers.device)
    for done in hiding.passes(job, counts, kept):
        changed = done.rows[done.scores != hiding.before[done.rows]]
        unchanged[changed] = False
        for row, coalitions in drawn.items():
            mine = done.rows == row
            yield Scored(row, done.numbers[mine], coalitions, done.scores[mine])
    warn_unchanged(job, unchanged)


def coin_flips(features: int, seed: int, numbers: Tensor) -> Tensor:
    """Coalitions `(P, M)` bool in which every feature is kept with probability one half.

    A coalition depends on the row's seed and its number alone.
    """
    drawn = [torch.rand(features, generator=generator(seed, number)) for number in numbers.tolist()]
    return torch.stack(drawn) < 0.5


class ShapleyKernel:
    """Coalitions that stand for all, each weighted so that sums follow the Shapley kernel.

    The kernel `(M - 1) / (C(M, s) s (M - s))` is a distribution over the coalitions of 1 to M - 1
    features once it is normalised. Sizes are taken whole from the outermost, 1 and M - 1, inwards,
    while the budget has room for as many coalitions of them as their share of the kernel is worth;
    the rest is drawn from what the kernel leaves. A coalition is followed by its complement.

    Args:
        features: M.
        samples: the budget. All 2^M - 2 coalitions are taken where it allows.

    Attributes:
        count: coalitions, at most `samples`.
        complete: whether they are all that there are.
    """

    def __init__(self, features: int, samples: int) -> None:
        self._features = features
        whole = sum(1 / (size * (features - size)) for size in range(1, features))
        self._starts, self._weights = [0], []  # in pairs; of a coalition of each size taken whole
        left, share_left = samples, 1.0
        for size in range(1, features // 2 + 1):
            middle = 2 * size == features
            pairs = comb(features, size) // (2 if middle else 1)
            weight = 1 / (size * (features - size) * whole)
            share = weight * (1 if middle else 2)
            if 2 * pairs > left * min(1.0, share / share_left) * (1 + 1e-9):
                break
            self._starts.append(self._starts[-1] + pairs)
            self._weights.append(weight / comb(features, size))
            left, share_left = left - 2 * pairs, share_left - share
        taken = len(self._weights)
        self.complete = taken == features // 2
        self.count = 2 * self._starts[-1] + (0 if self.complete else left)
        self._weight_drawn = share_left / max(1, left)
        sizes = torch.arange(1, max(1, features), dtype=torch.float64)[taken : features - 1 - taken]
        self._smallest = taken + 1
        self._cumulative = (1 / (sizes * (features - sizes))).cumsum(0)

    def draw(self, seed: int, numbers: Tensor) -> Tensor:
        """`(P, M)` bool; a coalition depends on the row's seed and its number alone."""
        kept = torch.zeros(len(numbers), self._features, dtype=torch.bool)
        for place, number in enumerate(numbers.tolist()):
            pair, flipped = divmod(number, 2)
            kept[place, self._subset(seed, pair)] = True
            if flipped:
                kept[place] = ~kept[place]
        return kept

    def weights(self, numbers: Tensor) -> Tensor:
        """`(P,)` float64; over all numbers they sum to the kernel's share that was taken."""
        ends = torch.tensor(self._starts[1:]) * 2
        known = torch.tensor([*self._weights, self._weight_drawn], dtype=torch.float64)
        return known[torch.searchsorted(ends, numbers.cpu(), right=True)].to(numbers.device)

    def _subset(self, seed: int, pair: int) -> list[int]:
        for size, (start, end) in enumerate(zip(self._starts, self._starts[1:], strict=False), 1):
            if pair < end:
                return combination(self._features, size, pair - start)
        source = generator(seed, pair)
        place = torch.rand((), generator=source, dtype=torch.float64) * self._cumulative[-1]
        size = self._smallest + int(torch.searchsorted(self._cumulative, place, right=True))
        size = min(size, self._features - self._smallest)
        drawn: list[int] = torch.randperm(self._features, generator=source)[:size].tolist()
        return drawn


def combination(items: int, size: int, rank: int) -> list[int]:
    """The combination of `size` of the numbers 0 to `items` - 1 at a place of their sorted list."""
    chosen: list[int] = []
    for item in range(items):
        if len(chosen) == size:
            break
        following = comb(items - item - 1, size - len(chosen) - 1)
        if rank < following:
            chosen.append(item)
        else:
            rank -= following
    return chosen
