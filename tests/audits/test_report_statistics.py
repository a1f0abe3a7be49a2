"""Intervals and tests against sums of probabilities, figures as published, and NumPy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interpret_server.audits.report import statistics
from interpret_server.audits.report.statistics import Pairs


def binomial(k: int, n: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


@pytest.mark.parametrize(("count", "total"), [(0, 7), (3, 7), (7, 7), (50, 90)])
def test_each_end_leaves_a_fortieth(count, total):
    low, high = statistics.clopper_pearson(count, total)
    if count:
        above = sum(binomial(k, total, low) for k in range(count, total + 1))
        assert above == pytest.approx(0.025, rel=1e-7)
    else:
        assert low == 0
    if count < total:
        below = sum(binomial(k, total, high) for k in range(count + 1))
        assert below == pytest.approx(0.025, rel=1e-7)
    else:
        assert high == 1


def test_intervals_of_nothing():
    assert statistics.clopper_pearson(0, 0) == (0, 1)
    assert statistics.wilson(0, 0) == (0, 1)
    assert statistics.difference(0, 0, 1, 2) == (-1, 1)
    assert statistics.paired_difference(Pairs(0, 0, 0, 0)) == (-1, 1)
    assert statistics.share(0, 0) is None


def test_wilson_solves_its_quadratic():
    for bound in statistics.wilson(7, 20):
        z = abs(bound - 0.35) / math.sqrt(bound * (1 - bound) / 20)
        assert z == pytest.approx(1.959963985, rel=1e-8)


def test_newcombes_interval_as_published():
    # Newcombe 1998, Statistics in Medicine 17, 873-890, table II, method 10: 56/70 and 48/80.
    low, high = statistics.difference(48, 80, 56, 70)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_the_paired_interval_covers_the_truth():
    both, first, second = 0.6, 0.1, 0.05
    truth, total, covered = second - first, 16, 0.0
    for a, b, c in itertools.product(range(total + 1), repeat=3):
        d = total - a - b - c
        if d < 0:
            continue
        weight = math.comb(total, a) * math.comb(total - a, b) * math.comb(total - a - b, c)
        weight *= both**a * first**b * second**c * (1 - both - first - second) ** d
        if weight > 1e-7:
            low, high = statistics.paired_difference(Pairs(a, b, c, d))
            covered += weight * (low <= truth <= high)
    assert 0.94 < covered < 0.995


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 40)] * 4).filter(any))
def test_the_paired_interval_is_symmetric_and_holds_its_estimate(counts):
    both, first, second, neither = counts
    low, high = statistics.paired_difference(Pairs(both, first, second, neither))
    change = (second - first) / sum(counts)
    assert -1 <= low <= change + 1e-9
    assert change - 1e-9 <= high <= 1
    swapped = statistics.paired_difference(Pairs(both, second, first, neither))
    assert swapped == pytest.approx((-high, -low), abs=1e-9)


def test_pairs_that_agree_make_the_interval_narrow():
    low, high = statistics.paired_difference(Pairs(60, 3, 5, 32))
    wide = statistics.difference(63, 100, 65, 100)
    assert wide[0] < low < high < wide[1]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (5, 5), (2, 9), (12, 1), (0, 6)])
def test_mcnemar_is_a_sign_test(first, second):
    unlike = first + second
    tail = sum(binomial(k, unlike, 0.5) for k in range(min(first, second) + 1))
    assert statistics.mcnemar(Pairs(30, first, second, 4)) == pytest.approx(min(1, 2 * tail))


def test_fisher_sums_the_tables_that_are_no_likelier():
    one, one_total, two, two_total = 3, 12, 9, 13

    def table(k: int) -> float:
        ways = math.comb(one_total, k) * math.comb(two_total, one + two - k)
        return ways / math.comb(one_total + two_total, one + two)

    known = [table(k) for k in range(one_total + 1) if 0 <= one + two - k <= two_total]
    expected = sum(p for p in known if p <= table(one) * (1 + 1e-9))
    assert statistics.fisher(one, one_total, two, two_total) == pytest.approx(expected)


def test_holm_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.5]) == [0.04, 0.09, 0.09, 0.5]
    assert statistics.holm([0.6, 0.9]) == [1, 1]
    assert statistics.holm([]) == []


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=9),
    st.integers(0, 6),
    st.sampled_from([0, 0.25, 0.5, 0.75, 1]),
)
def test_a_quantile_is_numpys_until_an_unknown_value_takes_part(known, unknown, q):
    total = len(known) + unknown
    position = q * (total - 1)
    found = statistics.quantile(known, unknown, q)
    if math.ceil(position) >= len(known):
        assert found is None
    else:
        filled = np.array(known + [2.0] * unknown)
        assert found == pytest.approx(np.quantile(filled, q), rel=1e-9)


def test_a_quantile_of_nothing_is_unknown():
    assert statistics.quantile([], 0, 0.5) is None
    assert statistics.quantile([], 3, 0.5) is None
