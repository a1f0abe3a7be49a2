"""Projections onto a hyperplane within a box, against general solvers and by their conditions."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from interpret_plugins.attacks.hyperplanes import reach
from interpret_plugins.attacks.norms import NORMS, NormName

SIZE = 9


def problem(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = torch.rand(1, SIZE, dtype=torch.float64)
        normal = torch.randn(1, SIZE, dtype=torch.float64)
        normal[0, 0] = 0
        lower, upper = torch.zeros_like(x), torch.ones_like(x)
        room = torch.where(normal > 0, upper - x, lower - x)
        farthest = (normal * room).sum(1)
        return x, normal, farthest * float(torch.rand(())), lower, upper


def best_linf(x: Tensor, w: Tensor, change: Tensor, lower: Tensor, upper: Tensor) -> float:
    """By linear programming in the change and its largest value."""
    ones = np.ones((SIZE, 1))
    bounds = [
        (float(low), float(high)) for low, high in zip((lower - x)[0], (upper - x)[0], strict=True)
    ]
    solved = linprog(
        [0] * SIZE + [1],
        A_ub=np.block([[np.eye(SIZE), -ones], [-np.eye(SIZE), -ones]]),
        b_ub=np.zeros(2 * SIZE),
        A_eq=[[*w[0].tolist(), 0]],
        b_eq=change.numpy(),
        bounds=[*bounds, (0, None)],
    )
    return float(solved.fun)


def best_l1(x: Tensor, w: Tensor, change: Tensor, lower: Tensor, upper: Tensor) -> float:
    """By linear programming in the increases and the decreases."""
    up = [(0, float(room)) for room in (upper - x)[0]]
    down = [(0, float(room)) for room in (x - lower)[0]]
    solved = linprog(
        [1] * 2 * SIZE,
        A_eq=[[*w[0].tolist(), *(-w[0]).tolist()]],
        b_eq=change.numpy(),
        bounds=up + down,
    )
    return float(solved.fun)


def best_l2(x: Tensor, w: Tensor, change: Tensor, lower: Tensor, upper: Tensor) -> float:
    solved = minimize(
        lambda delta: float(np.square(delta).sum()),
        np.zeros(SIZE),
        jac=lambda delta: 2 * delta,
        bounds=list(zip((lower - x)[0].tolist(), (upper - x)[0].tolist(), strict=True)),
        constraints={"type": "eq", "fun": lambda delta: float(w[0].numpy() @ delta - change)},
        tol=1e-14,
    )
    return float(np.sqrt(solved.fun))


BEST = {"linf": best_linf, "l2": best_l2, "l1": best_l1}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("seed", range(12))
def test_the_nearest_point_is_as_near_as_a_solver_finds(norm: NormName, seed: int) -> None:
    x, normal, change, lower, upper = problem(seed)
    found = reach(norm, x, normal, change, lower, upper)
    torch.testing.assert_close((normal * (found - x)).sum(1), change)
    assert ((found >= lower) & (found <= upper)).all()
    expected = BEST[norm](x, normal, change, lower, upper)
    assert float(NORMS[norm].size(found - x)) == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_plane_beyond_the_box_gives_the_corner_that_comes_closest(norm: NormName) -> None:
    x, normal, _, lower, upper = problem(0)
    found = reach(norm, x, normal, torch.tensor([1e3], dtype=torch.float64), lower, upper)
    moved = normal != 0
    corner = torch.where(normal > 0, upper, lower)
    torch.testing.assert_close(found[moved], corner[moved])


def test_distances_in_linf_are_measured_by_the_scale() -> None:
    x, normal, change, lower, upper = problem(3)
    scale = torch.linspace(0.5, 2, SIZE, dtype=torch.float64).unsqueeze(0)
    found = reach("linf", x, normal, change, lower, upper, scale)
    torch.testing.assert_close((normal * (found - x)).sum(1), change)
    units = ((found - x) / scale).abs()
    free = (found > lower) & (found < upper) & (normal != 0)
    torch.testing.assert_close(units[free], units.amax().expand(int(free.sum())))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rows_are_independent(norm: NormName) -> None:
    parts = [problem(seed) for seed in range(4)]
    together = reach(norm, *(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    for row, part in enumerate(parts):
        torch.testing.assert_close(together[row : row + 1], reach(norm, *part))
