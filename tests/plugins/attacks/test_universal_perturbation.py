"""One perturbation for many inputs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interpret_plugins.attacks.random_noise import RandomNoise
from interpret_plugins.attacks.universal_perturbation import (
    UniversalPerturbation,
    UniversalPerturbationResult,
)
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier

SIZE = 12
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


class Narrow(Job):
    max_rows = 3

    def __init__(self) -> None:
        self.steps, self.warnings = 0, list[tuple[list[int], str]]()

    def track(self, total: int) -> Iterator[int]:
        for step in range(total):
            self.steps += 1
            yield step

    def warn(self, rows: Tensor, message: str) -> None:
        self.warnings.append((torch.nonzero(rows).flatten().tolist(), message))


def attack(
    model: Classifier, x: Tensor, labels: Tensor, job: Job | None = None, **params: Any
) -> UniversalPerturbationResult:
    made = UniversalPerturbation.params_type.model_validate(params)
    UniversalPerturbation().check(model, made)
    batch = Batch(x, Targets.classes(labels), tuple(range(len(x))))
    return UniversalPerturbation().run(model, batch, made, job or Job())


def linear() -> tuple[Classifier, Tensor]:
    weight = torch.linspace(-1.0, 2.0, SIZE, dtype=torch.float64) + 0.05
    layer = nn.Linear(SIZE, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
        layer.bias.zero_()
    return classifier(layer, (SIZE,), bounds=(-100.0, 100.0)), weight


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("targeted", [False, True])
def test_rows_of_one_side_of_a_linear_model_are_fooled_up_to_the_farthest(
    norm: str, targeted: bool
) -> None:
    model, weight = linear()
    x = torch.randn(40, SIZE, dtype=torch.float64)
    x = x[x @ weight > 0][:10]
    distance = (x @ weight) / torch.linalg.vector_norm(weight, ord=DUAL[norm])
    labels = torch.zeros(10) if targeted else torch.ones(10)
    for factor, expected in ((1.02, 10), (0.99, 9)):
        result = attack(
            model, x, labels.long(), norm=norm, targeted=targeted,
            epsilon=float(distance.max()) * factor, steps=150,
        )  # fmt: skip
        assert int(result.success.sum()) == expected
        assert result.fooling_rate.tolist() == [pytest.approx(expected / 10)]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_row_has_the_same_change_within_ball_and_bounds(norm: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5))
    model, x = classifier(net, (1, 8, 8)), torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        labels = model(x).argmax(1)
    labels[2] = (labels[2] + 1) % 5
    epsilon = {"linf": 0.1, "l2": 0.8, "l1": 5.0}[norm]
    job = Narrow()
    result = attack(model, x, labels, job, norm=norm, epsilon=epsilon, steps=10)
    assert job.steps == 3 * (1 + 11 + 1)
    assert (getattr(result, f"distance_{norm}") <= epsilon).all()
    expected = (x + result.perturbation).clamp(0, 1)
    torch.testing.assert_close(result.adversarial, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(model(result.adversarial).argmax(1) != labels, result.success)
    assert result.initially_correct.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    whole = attack(model, x, labels, norm=norm, epsilon=epsilon, steps=10)
    torch.testing.assert_close(whole.perturbation, result.perturbation, rtol=0, atol=1e-5)
    # A row that stands at the end gets 4 looks at whether gradients hide the way.
    spent = torch.tensor([24.0, 24, 2, 24, 24, 24, 24, 24]).double()
    assert torch.equal(result.queries, spent + 4 * ~result.success)


def test_rows_without_a_gradient_are_warned_about_by_their_place() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            gate = torch.relu(x[:, :1] - 0.5)
            return torch.cat([gate * 0 + 1, gate * 0.1 * x[:, 1:2]], 1)

    model, x = classifier(Half(), (2,)), torch.full((5, 2), 0.9)
    x[4, 0] = 0.1
    job = Narrow()
    attack(model, x, torch.zeros(5, dtype=torch.int64), job, epsilon=0.05, steps=3)
    assert [rows for rows, text in job.warnings if "zero gradient" in text] == [[4]]


@pytest.mark.shared_data
def test_it_fools_digits_that_it_was_not_made_from(shared_data: Path) -> None:
    from tests.plugins.attacks.test_real_classifiers import digits, lenet

    model = lenet(shared_data, "cln")
    x, labels = digits(shared_data, 120)
    made = attack(model, x[:60], labels[:60], epsilon=0.3, steps=15)
    with torch.no_grad():
        fresh = model((x[60:] + made.perturbation).clamp(0, 1)).argmax(1) != labels[60:]
    noise = RandomNoise().run(
        model,
        Batch(x[60:], Targets.classes(labels[60:]), tuple(range(60))),
        RandomNoise.params_type(epsilon=0.3, samples=1),
        Job(),
    )
    assert float(made.fooling_rate) > 0.5
    assert float(fresh.float().mean()) > 0.5
    assert float(noise.success.float().mean()) < 0.2
