"""The coalitions that stand for all follow the Shapley kernel; regression from sums is exact."""

import itertools
import math

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from torch import Tensor

from interpret_plugins.attribution.coalitions import ShapleyKernel, coin_flips, combination
from interpret_plugins.attribution.regression import Moments


@pytest.mark.parametrize(("items", "size"), [(1, 1), (5, 1), (6, 3), (7, 5), (4, 4)])
def test_combinations_are_counted_in_their_order(items: int, size: int) -> None:
    expected = [list(chosen) for chosen in itertools.combinations(range(items), size)]
    ranks = range(math.comb(items, size))
    assert [combination(items, size, rank) for rank in ranks] == expected


def kernel(features: int, size: int) -> float:
    """The weight of a coalition of a size, all of them summing to 1."""

    def weight(size: int) -> float:
        return 1 / (math.comb(features, size) * size * (features - size))

    total = sum(math.comb(features, other) * weight(other) for other in range(1, features))
    return weight(size) / total


@pytest.mark.parametrize("features", range(2, 9))
def test_all_coalitions_are_taken_once_where_the_budget_allows(features: int) -> None:
    whole = ShapleyKernel(features, 2**features - 2)
    assert whole.complete
    assert whole.count == 2**features - 2
    drawn, weights = everything(whole)
    assert len({tuple(row) for row in drawn.tolist()}) == whole.count
    expected = [kernel(features, int(size)) for size in drawn.sum(1)]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))
    assert not ShapleyKernel(features, max(0, 2**features - 3)).complete


def everything(kernel: ShapleyKernel, seed: int = 5) -> tuple[Tensor, Tensor]:
    numbers = torch.arange(kernel.count)
    return kernel.draw(seed, numbers), kernel.weights(numbers)


@pytest.mark.parametrize(("features", "samples"), [(9, 100), (12, 701), (15, 120), (40, 2000)])
def test_sizes_have_the_weight_of_the_kernel(features: int, samples: int) -> None:
    some = ShapleyKernel(features, samples)
    assert some.count == samples
    drawn, weights = everything(some)
    assert float(weights.sum()) == pytest.approx(1)
    sizes = drawn.sum(1)
    assert 1 <= int(sizes.min()) <= int(sizes.max()) < features
    pairs = samples // 2
    assert torch.equal(drawn[: 2 * pairs : 2], ~drawn[1 : 2 * pairs : 2])
    for size in (1, features - 1):  # whole, for these budgets
        assert int((sizes == size).sum()) == features
        assert float(weights[sizes == size][0]) == pytest.approx(kernel(features, size))


def test_what_is_drawn_follows_the_kernel_in_sizes_and_features() -> None:
    samples = 40_000
    drawn, weights = everything(ShapleyKernel(30, samples))
    by_size = torch.zeros(30, dtype=torch.float64).index_add(0, drawn.sum(1), weights)
    expected = [0.0] + [math.comb(30, size) * kernel(30, size) for size in range(1, 30)]
    error = torch.tensor(expected).sqrt() / math.sqrt(samples / 2)
    away = (by_size - torch.tensor(expected, dtype=torch.float64)).abs()
    assert bool((away <= 5 * error).all())
    shares = weights @ drawn.double()
    assert float((shares - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(samples)


def test_coalitions_depend_on_seed_and_number_alone() -> None:
    several = coin_flips(20, 3, torch.tensor([4, 9, 11]))
    assert torch.equal(several[1:2], coin_flips(20, 3, torch.tensor([9])))
    assert not torch.equal(several[1:2], coin_flips(20, 4, torch.tensor([9])))
    some = ShapleyKernel(20, 100)
    assert torch.equal(some.draw(3, torch.arange(100))[70:], some.draw(3, torch.arange(70, 100)))
    assert not torch.equal(some.draw(3, torch.arange(100)), some.draw(4, torch.arange(100)))


def samples(features: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    z = torch.rand(count, features, generator=source) < 0.5
    y = torch.randn(count, generator=source, dtype=torch.float64) + z.double().sum(1)
    return z, y, torch.rand(count, generator=source, dtype=torch.float64)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 30.0])
def test_regression_from_sums_equals_that_of_a_library(penalty: float) -> None:
    z, y, weights = samples(6, 50)
    moments = Moments(6, torch.device("cpu"))
    for part in (slice(0, 20), slice(20, 50)):
        moments.add(z[part], y[part], weights[part])
    fit = moments.ridge(penalty)
    peer = Ridge(alpha=penalty).fit(z.double().numpy(), y.numpy(), weights.numpy())
    torch.testing.assert_close(fit.coefficients, torch.from_numpy(peer.coef_))
    assert fit.intercept == pytest.approx(float(peer.intercept_))
    predicted = peer.predict(z.double().numpy())
    expected = r2_score(y.numpy(), predicted, sample_weight=weights.numpy())
    assert fit.score == pytest.approx(expected)


def test_regression_on_some_features_leaves_the_others_zero() -> None:
    z, y, weights = samples(6, 50)
    moments = Moments(6, torch.device("cpu"))
    moments.add(z, y, weights)
    fit = moments.ridge(0.5, torch.tensor([4, 1]))
    peer = Ridge(alpha=0.5).fit(z[:, [1, 4]].double().numpy(), y.numpy(), weights.numpy())
    torch.testing.assert_close(fit.coefficients[[1, 4]], torch.from_numpy(peer.coef_))
    assert not fit.coefficients[[0, 2, 3, 5]].any()


def test_a_constrained_sum_is_kept_and_what_is_open_is_shared_evenly() -> None:
    moments = Moments(4, torch.device("cpu"))
    z = torch.tensor([[True, False, False, False], [False, True, True, True]])
    moments.add(z, torch.tensor([1.0, 5.0]).double(), torch.ones(2).double())
    values, determined = moments.constrained(torch.tensor(7.0).double())
    assert not determined
    torch.testing.assert_close(values, torch.tensor([1.5, 5.5 / 3, 5.5 / 3, 5.5 / 3]).double())
