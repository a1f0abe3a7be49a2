"""R-hat and effective sample size against a plain re-implementation and known processes."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from torch import Tensor

from interpret_plugins.synthesis.diagnostics import LARGEST, effective_sample_size, r_hat

Array = NDArray[np.float64]


def _autoregressive(chains: int, draws: int, phi: float, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    values = np.empty((chains, draws))
    values[:, 0] = rng.normal(size=chains) / (1 - phi**2) ** 0.5
    for draw in range(1, draws):
        values[:, draw] = phi * values[:, draw - 1] + rng.normal(size=chains)
    return values


def _halves(values: Array) -> Array:
    half = values.shape[1] // 2
    return np.concatenate([values[:, :half], values[:, -half:]])


def _scores(values: Array) -> Array:
    ranks = rankdata(values).reshape(values.shape)
    scores: Array = norm.ppf((ranks - 0.375) / (values.size + 0.25))
    return scores


def _plain_r_hat(values: Array) -> float:
    found = []
    halves = _halves(values)
    for traces in (halves, abs(halves - np.sort(halves, axis=None)[(halves.size - 1) // 2])):
        z = _scores(traces)
        n = z.shape[1]
        between, within = n * z.mean(1).var(ddof=1), z.var(1, ddof=1).mean()
        found.append((((n - 1) / n * within + between / n) / within) ** 0.5)
    return float(max(found))


def _plain_size(values: Array) -> float:
    z = _scores(_halves(values))
    m, n = z.shape
    centred = z - z.mean(1, keepdims=True)
    covariance = [
        np.mean([(c[: n - lag] * c[lag:]).sum() / n for c in centred]) for lag in range(n)
    ]
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + z.mean(1).var(ddof=1)
    rho = [1.0] + [1 - (within - c) / total for c in covariance[1:]]
    time, smallest = -1.0, np.inf
    for pair in range(n // 2):
        both = rho[2 * pair] + rho[2 * pair + 1]
        if both <= 0:
            break
        smallest = min(smallest, both)
        time += 2 * smallest
    return float(m * n / max(time, 1 / np.log10(m * n)))


@pytest.mark.parametrize(("chains", "draws", "phi"), [(4, 60, 0.5), (1, 101, 0.9), (3, 40, -0.6)])
def test_both_are_those_of_the_paper(chains: int, draws: int, phi: float) -> None:
    values = _autoregressive(chains, draws, phi)
    values[0, 5] = values[0, 4]  # a refused step
    traces = torch.tensor(values)
    assert r_hat(traces).item() == pytest.approx(_plain_r_hat(values))
    assert effective_sample_size(traces).item() == pytest.approx(_plain_size(values))


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_size_of_an_autoregressive_process(phi: float) -> None:
    values = torch.tensor(_autoregressive(4, 4000, phi))
    expected = 16000 * (1 - phi) / (1 + phi)
    assert effective_sample_size(values).item() == pytest.approx(expected, rel=0.2)
    assert r_hat(values) < 1.01


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x * 3], ids=["place", "spread"])
def test_a_chain_of_its_own_shows(change: object) -> None:
    values = torch.tensor(_autoregressive(4, 500, 0.2))
    values[0] = change(values[0])  # type: ignore[operator]
    assert r_hat(values) > 1.02


def test_a_drifting_chain_shows_by_its_halves() -> None:
    values = torch.tensor(_autoregressive(1, 500, 0.2)) + torch.linspace(0, 3, 500)
    assert r_hat(values) > 1.1


def test_chains_that_never_moved_are_one_draw() -> None:
    stuck: Tensor = torch.ones(2, 3, 20, dtype=torch.float64)
    assert effective_sample_size(stuck).tolist() == [1.0, 1.0]
    assert r_hat(stuck).tolist() == [LARGEST, LARGEST]


def test_quantities_are_independent() -> None:
    both = torch.tensor(np.stack([_autoregressive(2, 50, 0.3), _autoregressive(2, 50, 0.8, 1)]))
    torch.testing.assert_close(r_hat(both)[1], r_hat(both[1]))
    torch.testing.assert_close(effective_sample_size(both)[1], effective_sample_size(both[1]))
