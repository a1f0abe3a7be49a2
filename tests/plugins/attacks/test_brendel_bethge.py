"""The Brendel & Bethge attack, and the steps that it takes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attack_networks import network, predicted
from scipy.optimize import minimize
from torch import Tensor, nn

from interpret_plugins.attacks.attack import AttackResult
from interpret_plugins.attacks.brendel_bethge import BrendelBethge
from interpret_plugins.attacks.decisions import NO_START, USELESS_START
from interpret_plugins.attacks.fab import FAB
from interpret_plugins.attacks.norms import NormName
from interpret_plugins.attacks.trust_region import Step, nearest_step
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job, Plugin
from interpret_server.testing import classifier

SIZE = 12
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}
ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}
NORMS: list[NormName] = ["l2", "l1", "linf", "l0"]


class _Told(Job):
    def __init__(self) -> None:
        self.told: dict[str, list[bool]] = {}

    def warn(self, rows: Tensor, message: str) -> None:
        self.told[message] = rows.tolist()


def attack(
    model: Classifier,
    x: Tensor,
    labels: Tensor,
    *,
    plugin: type[Plugin[Any, Any]] = BrendelBethge,
    start: Tensor | None = None,
    seeds: tuple[int, ...] | None = None,
    job: Job | None = None,
    **params: Any,
) -> AttackResult:
    made = plugin.params_type.model_validate(params)
    plugin().check(model, made)
    tensors = {} if start is None else {"start": start}
    batch = Batch(x, Targets.classes(labels), seeds or tuple(range(len(x))), tensors)
    result: AttackResult = plugin().run(model, batch, made, job or Job())
    return result


def linear() -> tuple[Classifier, Tensor]:
    """Two classes with logits 0 and w.x + 0.3."""
    weight = torch.linspace(-1.0, 2.0, SIZE, dtype=torch.float64) + 0.05
    layer = nn.Linear(SIZE, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
        layer.bias.copy_(torch.tensor([0.0, 0.3]))
    return classifier(layer, (SIZE,), bounds=(-10.0, 10.0)), weight


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("targeted", [False, True])
def test_the_change_is_the_distance_to_the_boundary_of_a_linear_model(
    norm: str, targeted: bool
) -> None:
    model, weight = linear()
    x = torch.randn(6, SIZE, dtype=torch.float64)
    score = x @ weight + 0.3
    side = (score > 0).long()
    labels = 1 - side if targeted else side
    result = attack(model, x, labels, norm=norm, targeted=targeted)
    expected = score.abs() / torch.linalg.vector_norm(weight, ord=DUAL[norm])
    assert result.success.all()
    found = getattr(result, f"distance_{norm}")
    torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-3)
    assert (found >= expected * (1 - 1e-6)).all()


def test_in_l0_hardly_more_values_move_than_a_linear_model_needs() -> None:
    model, weight = linear()
    x = torch.randn(6, SIZE, dtype=torch.float64)
    score = x @ weight + 0.3
    push = torch.where(score > 0, -1.0, 1.0).unsqueeze(1)
    gains = ((10 * (push * weight).sign() - x) * push * weight).sort(1, descending=True).values
    needed = 1 + (gains.cumsum(1) <= score.abs().unsqueeze(1)).sum(1)
    result = attack(model, x, (score > 0).long(), norm="l0")
    assert result.success.all()
    assert (result.distance_l0 >= needed).all()
    assert (result.distance_l0 <= needed + 1).all()


@pytest.mark.parametrize("norm", NORMS)
def test_success_is_what_the_returned_tensor_is_predicted_as(norm: str) -> None:
    model, x = network(), torch.rand(8, 1, 8, 8)
    labels = predicted(model, x)
    labels[0] = (labels[0] + 1) % 5
    result = attack(model, x, labels, norm=norm)
    assert torch.equal(result.success, predicted(model, result.adversarial) != labels)
    assert result.success.all()
    assert torch.equal(result.adversarial[0], x[0])
    assert float(result.adversarial.min()) >= 0
    assert float(result.adversarial.max()) <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_rows_do_not_depend_on_their_mates(norm: str) -> None:
    model, x = network(), torch.rand(4, 1, 8, 8)
    labels = predicted(model, x)
    whole = attack(model, x, labels, norm=norm, steps=10)
    for row in range(4):
        part = slice(row, row + 1)
        alone = attack(model, x[part], labels[part], norm=norm, steps=10, seeds=(row,))
        name = f"distance_{norm}"
        torch.testing.assert_close(
            getattr(alone, name), getattr(whole, name)[part], rtol=1e-3, atol=0
        )
        assert torch.equal(alone.queries, whole.queries[part])


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
def test_the_change_is_about_as_small_as_that_of_fab(norm: str) -> None:
    model, x = network(), torch.rand(16, 1, 8, 8)
    labels = predicted(model, x)
    mine = getattr(attack(model, x, labels, norm=norm), f"distance_{norm}")
    theirs = getattr(attack(model, x, labels, plugin=FAB, norm=norm), f"distance_{norm}")
    assert float(mine.median()) < 1.1 * float(theirs.median())


def test_a_given_start_is_used_and_a_useless_one_is_told_of() -> None:
    model, x = network(), torch.rand(6, 1, 8, 8)
    labels = predicted(model, x)
    far = attack(model, x, labels, norm="l2", steps=1)
    start = far.adversarial.clone()
    start[0] = x[0]
    job = _Told()
    result = attack(model, x, labels, start=start, tries=0, job=job)
    assert result.success.tolist() == [False] + [True] * 5
    assert job.told[USELESS_START] == [True] + [False] * 5
    assert job.told[NO_START] == [True] + [False] * 5
    assert torch.equal(result.adversarial[0], x[0])
    assert (result.distance_l2[1:] <= far.distance_l2[1:]).all()
    assert attack(model, x, labels, start=start).success.all()


def test_queries_count_the_start_the_way_to_the_boundary_and_the_steps() -> None:
    model, x = network(), torch.rand(3, 1, 8, 8)
    labels = predicted(model, x)
    start = attack(model, x, labels, steps=1).adversarial
    result = attack(model, x, labels, start=start, steps=7)
    assert result.queries.tolist() == [1 + 1 + 10 + 2 * 7 + 1 + 1] * 3


class _Step:
    """One problem in float64, and what it is worth to a general solver."""

    def __init__(self, norm: NormName, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.norm, x0 = norm, draw.uniform(0, 1, 6)
        x = np.clip(x0 + draw.uniform(-0.5, 0.5, 6), 0, 1)
        self.back, self.normal = x0 - x, draw.normal(size=6)
        self.lower, self.upper = -x, 1 - x
        self.gain, self.radius = 0.05, 0.3

    def cost(self, step: np.ndarray) -> float:
        return float(np.linalg.norm(self.back - step, ORDER[self.norm]))

    def found(self) -> np.ndarray:
        def rows(value: np.ndarray) -> Tensor:
            return torch.from_numpy(value).unsqueeze(0)

        one = Step(
            rows(self.back), rows(self.normal), torch.tensor([self.gain]).double(),
            rows(self.lower), rows(self.upper), torch.tensor([self.radius]).double(),
        )  # fmt: skip
        return nearest_step(self.norm, one)[0].numpy()

    def least(self) -> float:
        """By SLSQP, with a slack per value, or one for all in Linf, in place of the norm."""
        count = {"l2": 0, "l1": 6, "linf": 1}[self.norm]

        def value(z: np.ndarray) -> float:
            if not count:
                return float(((self.back - z) ** 2).sum())
            return float(z[6:].sum())

        holds = [
            {"type": "ineq", "fun": lambda z: self.normal @ z[:6] - self.gain},
            {"type": "ineq", "fun": lambda z: self.radius**2 - z[:6] @ z[:6]},
        ]
        if count:
            holds += [
                {"type": "ineq", "fun": lambda z: z[6:] - (self.back - z[:6])},
                {"type": "ineq", "fun": lambda z: z[6:] + (self.back - z[:6])},
            ]
        bounds = [*zip(self.lower, self.upper, strict=True), *[(0, 2)] * count]
        shortest = self.gain * self.normal / (self.normal @ self.normal)
        begin = np.concatenate([shortest, np.full(count, 1.0)])
        best = minimize(
            value, begin, method="SLSQP", bounds=bounds, constraints=holds,
            options={"maxiter": 500, "ftol": 1e-12},
        )  # fmt: skip
        assert all((np.asarray(item["fun"](best.x)) > -1e-6).all() for item in holds)
        return self.cost(best.x[:6])


@pytest.mark.parametrize("norm", ["l2", "l1", "linf"])
@pytest.mark.parametrize("seed", range(8))
def test_a_step_is_as_good_as_a_general_solver_finds(norm: NormName, seed: int) -> None:
    problem = _Step(norm, seed)
    step = problem.found()
    assert np.linalg.norm(step) <= problem.radius * (1 + 1e-6)
    assert problem.normal @ step >= problem.gain * (1 - 1e-5)
    assert (step >= problem.lower).all()
    assert (step <= problem.upper).all()
    assert problem.cost(step) <= problem.least() * 1.01


def test_a_step_that_cannot_gain_enough_goes_as_far_as_it_may() -> None:
    back, normal = torch.zeros(1, 4), torch.ones(1, 4)
    lower, upper = torch.full((1, 4), -1.0), torch.full((1, 4), 1.0)
    one = Step(back, normal, torch.tensor([100.0]), lower, upper, torch.tensor([0.5]))
    torch.testing.assert_close(nearest_step("l2", one), torch.full((1, 4), 0.25))


@pytest.mark.shared_data
def test_it_finds_far_smaller_changes_in_l1_where_gradients_vanish_at_the_input(
    shared_data: Path,
) -> None:
    manifest = Manifest.model_validate({"shape": (1, 28, 28), "bounds": (0, 1)})
    path = shared_data / "models/mnist/advertorch_lenet5_adv.pt"
    model = load_classifier("net", path, manifest, device=torch.device("cpu")).classifier
    file = np.load(shared_data / "images/mnist_test.npz")
    x = torch.from_numpy(file["x"][:10].astype("float32") / 255).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(file["y"][:10].astype("int64"))
    mine = attack(model, x, labels, norm="l1", steps=100)
    theirs = attack(model, x, labels, plugin=FAB, norm="l1", steps=16)
    assert mine.success.all()
    assert float(mine.distance_l1.median()) < 0.5 * float(theirs.distance_l1.median())
