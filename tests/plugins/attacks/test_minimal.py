"""Attacks that look for the smallest change: FAB and DeepFool."""

from typing import Any

import pytest
import torch
from attack_networks import network, predicted
from torch import Tensor, nn

from interpret_plugins.attacks.attack import AttackResult
from interpret_plugins.attacks.deepfool import DeepFool
from interpret_plugins.attacks.fab import FAB
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job, Plugin
from interpret_server.testing import classifier

SIZE = 12
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}
CASES = [(FAB, "linf"), (FAB, "l2"), (FAB, "l1"), (DeepFool, "linf"), (DeepFool, "l2")]
Attacker = type[Plugin[Any, AttackResult]]


def attack(
    plugin: Attacker, model: Classifier, x: Tensor, labels: Tensor, **params: Any
) -> AttackResult:
    tensors = params.pop("tensors", {})
    made = plugin.params_type.model_validate(params)
    plugin().check(model, made)
    seeds = params.pop("seeds", tuple(range(len(x))))
    return plugin().run(model, Batch(x, Targets.classes(labels), seeds, tensors), made, Job())


def linear(bounds: tuple[float, float] = (-100.0, 100.0)) -> tuple[Classifier, Tensor]:
    """Three classes with logits 0, w.x + 0.3 and a distant third."""
    weight = torch.linspace(-1.0, 2.0, SIZE, dtype=torch.float64) + 0.05
    layer = nn.Linear(SIZE, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight, 0.1 * weight.flip(0)]))
        layer.bias.copy_(torch.tensor([0.0, 0.3, -30.0]))
    return classifier(layer, (SIZE,), bounds=bounds), weight


@pytest.mark.parametrize(("plugin", "norm"), CASES)
@pytest.mark.parametrize("targeted", [False, True])
def test_the_change_is_the_distance_to_the_boundary_of_a_linear_model(
    plugin: Attacker, norm: str, targeted: bool
) -> None:
    model, weight = linear()
    x = torch.randn(5, SIZE, dtype=torch.float64)
    score = x @ weight + 0.3
    side = (score > 0).long()
    labels = 1 - side if targeted else side
    result = attack(plugin, model, x, labels, norm=norm, targeted=targeted)
    expected = score.abs() / torch.linalg.vector_norm(weight, ord=DUAL[norm])
    if plugin is DeepFool:
        expected = expected * 1.02
    assert result.success.all()
    found = getattr(result, f"distance_{norm}")
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)
    assert (found >= expected * (1 - 1e-6)).all()


@pytest.mark.parametrize(("plugin", "norm"), CASES)
def test_successes_are_what_the_returned_tensor_is_predicted_as(
    plugin: Attacker, norm: str
) -> None:
    model, x = network(), torch.rand(8, 1, 8, 8)
    labels = predicted(model, x)
    labels[0] = (labels[0] + 1) % 5
    result = attack(plugin, model, x, labels, norm=norm)
    assert torch.equal(result.success, predicted(model, result.adversarial) != labels)
    assert result.success.all()
    assert torch.equal(result.adversarial[0], x[0])
    assert result.initially_correct.tolist() == [0] + [1] * 7
    assert (result.adversarial >= 0).all()
    assert (result.adversarial <= 1).all()


@pytest.mark.parametrize(("plugin", "norm"), CASES)
def test_rows_do_not_depend_on_their_mates(plugin: Attacker, norm: str) -> None:
    model, x = network(), torch.rand(5, 1, 8, 8)
    labels = predicted(model, x)
    params: dict[str, Any] = {"norm": norm, "steps": 10}
    if plugin is FAB:
        params["restarts"] = 2
    whole = attack(plugin, model, x, labels, **params)
    for row in range(5):
        part = slice(row, row + 1)
        made = plugin.params_type.model_validate(params)
        data = Batch(x[part], Targets.classes(labels[part]), (row,))
        alone = plugin().run(model, data, made, Job())
        torch.testing.assert_close(alone.adversarial, whole.adversarial[part], rtol=0, atol=1e-4)
        assert torch.equal(alone.success, whole.success[part])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_needs_no_larger_change_than_deepfool(norm: str) -> None:
    model, x = network(), torch.rand(16, 1, 8, 8)
    labels = predicted(model, x)
    near = attack(FAB, model, x, labels, norm=norm, classes=4)
    rival = "l2" if norm == "l1" else norm
    far = attack(DeepFool, model, x, labels, norm=rival, classes=4)
    sizes = getattr(near, f"distance_{norm}"), getattr(far, f"distance_{norm}")
    assert (sizes[0] <= sizes[1] * 1.01).all()
    assert float(sizes[0].median()) < float(sizes[1].median())


def test_a_radius_ends_the_search_at_its_first_success() -> None:
    model, x = network(), torch.rand(8, 1, 8, 8)
    labels = predicted(model, x)
    free = attack(FAB, model, x, labels, norm="l2")
    radius = float(free.distance_l2.median())
    held = attack(FAB, model, x, labels, norm="l2", epsilon=radius, confirm_small_epsilon=True)
    assert torch.equal(held.success, free.distance_l2 <= radius * (1 + 1e-6))
    assert (held.distance_l2[held.success] <= radius).all()
    assert (held.queries[held.success] < free.queries[held.success]).all()


@pytest.mark.parametrize("target_classes", [0, 2])
def test_a_box_is_searched_from_its_middle(target_classes: int) -> None:
    model, weight = linear(bounds=(-1.0, 1.0))
    corner = torch.where(weight > 0, -0.5, 0.5).double()
    x = torch.zeros(1, SIZE, dtype=torch.float64)
    edge = float(corner @ weight) + 0.3
    assert edge < 0 < 0.3
    half = 0.5 * (1 + 1e-3) * 0.3 / (0.3 - edge)  # just beyond the boundary at the corner
    for factor, expected in ((1.0, True), (0.99, False)):
        size = half * factor
        tensors = {"lower": torch.full_like(x, -size), "upper": torch.full_like(x, size)}
        result = attack(
            FAB, model, x, torch.tensor([1]), target_classes=target_classes, tensors=tensors
        )
        assert bool(result.success) is expected
        assert float(result.adversarial.abs().max()) <= size


def test_fixed_values_of_a_box_stay() -> None:
    model, _ = linear(bounds=(-1.0, 1.0))
    x = torch.full((1, SIZE), 0.1, dtype=torch.float64)
    lower, upper = x - 0.5, x + 0.5
    lower[0, :3] = upper[0, :3] = 0.1
    result = attack(FAB, model, x, torch.tensor([1]), tensors={"lower": lower, "upper": upper})
    assert torch.equal(result.adversarial[0, :3], x[0, :3])
    assert result.success.all()


def test_a_network_without_a_gradient_is_told() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rounded = x.flatten(1).sum(1).round()
            return torch.stack([rounded * 0 + 2, rounded * 0 + 1], 1)

    class Heard(Job):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def warn(self, rows: Tensor, message: str) -> None:
            self.heard.append(message)

    model, job = classifier(Flat(), (4,), bounds=(0.0, 1.0)), Heard()
    data = Batch(torch.full((1, 4), 0.5), Targets.classes(torch.tensor([0])), (0,))
    result = FAB().run(model, data, FAB.params_type(steps=3), job)
    assert not result.success.any()
    assert any("zero gradient" in message for message in job.heard)


def test_targets_by_rank_contradict_a_target() -> None:
    model, _ = linear()
    with pytest.raises(InvalidRequest, match="target_classes"):
        attack(
            FAB, model, torch.zeros(1, SIZE, dtype=torch.float64), torch.tensor([0]),
            targeted=True, target_classes=2,
        )  # fmt: skip
