"""Intervals, tests and quantiles of reports; SciPy is imported where it is used.

Figures are rounded to ten digits, so that a report does not depend on the last bits of a library.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

LEVEL = 0.95
_DIGITS = 10


class Interval(NamedTuple):
    """Of a proportion, or of a difference between two."""

    low: float
    high: float


class Pairs(NamedTuple):
    """The same samples under two models: how many stand."""

    both: int
    first: int  # alone
    second: int  # alone
    neither: int

    @property
    def total(self) -> int:
        """All samples."""
        return sum(self)


def rounded(value: float) -> float:
    """To ten significant digits."""
    return float(f"{value:.{_DIGITS}g}")


def share(count: int, total: int) -> float | None:
    """A proportion; None of nothing."""
    return rounded(count / total) if total else None


def clopper_pearson(count: int, total: int, level: float = LEVEL) -> Interval:
    """The exact interval of a proportion (Clopper and Pearson 1934); [0, 1] of nothing.

    Its ends are quantiles of beta distributions: B(tail; k, n-k+1) and B(1-tail; k+1, n-k).
    """
    from scipy.stats import beta

    tail = (1 - level) / 2
    low = float(beta.ppf(tail, count, total - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, total - count)) if count < total else 1.0
    return Interval(rounded(low), rounded(high))


def wilson(count: int, total: int, level: float = LEVEL) -> Interval:
    """The score interval of a proportion (Wilson 1927); [0, 1] of nothing."""
    if not total:
        return Interval(0.0, 1.0)
    z = _normal_quantile(level)
    p = count / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total**2))
    low = 0.0 if count == 0 else middle - half
    high = 1.0 if count == total else middle + half
    return Interval(low, high)


def paired_difference(pairs: Pairs, level: float = LEVEL) -> Interval:
    """The interval of second minus first on the same samples (Newcombe 1998, paired, method 10).

    Wilson's intervals of both, joined by the correlation phi of the two, whose numerator
    `both * neither - first * second` is reduced by n/2, to zero at least, where it is positive.
    """
    total = pairs.total
    if not total:
        return Interval(-1.0, 1.0)
    one, two = pairs.both + pairs.first, pairs.both + pairs.second
    product = one * (total - one) * two * (total - two)
    cross = float(pairs.both * pairs.neither - pairs.first * pairs.second)
    if cross > 0:
        cross = max(cross - total / 2, 0.0)
    return _joined(one, total, two, total, cross / math.sqrt(product) if product else 0.0, level)


def difference(
    first: int, first_total: int, second: int, second_total: int, level: float = LEVEL
) -> Interval:
    """The interval of second minus first on other samples (Newcombe 1998, unpaired, method 10)."""
    if not first_total or not second_total:
        return Interval(-1.0, 1.0)
    return _joined(first, first_total, second, second_total, 0.0, level)


def mcnemar(pairs: Pairs) -> float:
    """The exact two-sided p of McNemar's test, a sign test on what stands under one alone."""
    from scipy.stats import binom

    unlike = pairs.first + pairs.second
    if not unlike:
        return 1.0
    less = min(pairs.first, pairs.second)
    return rounded(min(1.0, 2 * float(binom.cdf(less, unlike, 0.5))))


def fisher(first: int, first_total: int, second: int, second_total: int) -> float:
    """The two-sided p of Fisher's exact test on two proportions."""
    from scipy.stats import fisher_exact

    table = [[first, first_total - first], [second, second_total - second]]
    return rounded(float(fisher_exact(table)[1]))


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for how many there are (Holm 1979), in the same order."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = rounded(largest)
    return adjusted


def quantile(known: Sequence[float], unknown: int, q: float) -> float | None:
    """A quantile where some values are only known to be larger than all that may come out.

    By linear interpolation between order statistics, as `numpy.quantile`; the unknown values stand
    last, and where one of them would take part there is no answer.

    Args:
        known: in any order.
        unknown: how many more there are.
        q: in [0, 1].
    """
    total = len(known) + unknown
    if not total:
        return None
    ordered = sorted(known)
    position = q * (total - 1)
    below = math.floor(position)
    weight = position - below
    last = below + (1 if weight else 0)
    if last >= len(ordered):
        return None
    return rounded(ordered[below] + weight * (ordered[last] - ordered[below]))


def _joined(
    first: int, first_total: int, second: int, second_total: int, phi: float, level: float
) -> Interval:
    one, two = first / first_total, second / second_total
    low_one, high_one = wilson(first, first_total, level)
    low_two, high_two = wilson(second, second_total, level)
    under, over = two - low_two, high_one - one
    below = math.sqrt(max(0.0, under**2 - 2 * phi * under * over + over**2))
    up, down = high_two - two, one - low_one
    above = math.sqrt(max(0.0, up**2 - 2 * phi * up * down + down**2))
    change = two - one
    return Interval(rounded(max(-1.0, change - below)), rounded(min(1.0, change + above)))


@lru_cache(maxsize=4)
def _normal_quantile(level: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(0.5 + level / 2))
