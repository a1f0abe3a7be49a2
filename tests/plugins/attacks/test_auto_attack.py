"""AutoAttack: which attacks run, on which rows, and what it claims."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interpret_plugins.attacks.auto_attack import AutoAttack, AutoAttackParams, AutoAttackResult
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier

SIZE = 8
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}
FAST: dict[str, Any] = {"steps": 20, "queries": 100, "confirm_small_epsilon": True}


def linear(classes: int = 2) -> tuple[Classifier, Tensor]:
    """The boundary between classes 0 and 1 is `w.x + 0.2 = 0`; others are far."""
    weight = torch.linspace(-1.0, 2.0, SIZE, dtype=torch.float64) + 0.05
    layer = nn.Linear(SIZE, classes, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[1] = weight
        layer.bias.fill_(-30.0)
        layer.bias[:2] = torch.tensor([0.0, 0.2])
    return classifier(layer, (SIZE,), bounds=(-100.0, 100.0)), weight


def attack(
    model: Classifier, x: Tensor, labels: Tensor, job: Job | None = None, **params: Any
) -> AutoAttackResult:
    tensors = params.pop("tensors", {})
    made = AutoAttackParams.model_validate(FAST | params)
    AutoAttack().check(model, made)
    batch = Batch(x, Targets.classes(labels), tuple(range(len(x))), tensors)
    return AutoAttack().run(model, batch, made, job or Job())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [2, 3, 4, 12])
def test_a_linear_model_is_won_exactly_beyond_its_distance(norm: str, classes: int) -> None:
    model, weight = linear(classes)
    x = torch.randn(2, SIZE, dtype=torch.float64)
    score = x @ weight + 0.2
    distance = score.abs() / torch.linalg.vector_norm(weight, ord=DUAL[norm])
    labels = (score > 0).long()
    for row in range(len(x)):
        part = slice(row, row + 1)
        for factor, expected in ((0.99, False), (1.02, True)):
            epsilon = float(distance[row]) * factor
            found = attack(model, x[part], labels[part], norm=norm, epsilon=epsilon)
            assert bool(found.success) is expected
            assert (int(found.won_by) >= 0) is expected


@pytest.mark.parametrize("version", ["standard", "plus", "random"])
def test_progress_adds_up_to_what_was_announced(version: str) -> None:
    class Counting(Job):
        total = done = 0

        def track(self, total: int) -> Any:
            self.total += total
            for step in super().track(total):
                self.done += 1
                yield step

    model, weight = linear(5)
    x = torch.randn(1, SIZE, dtype=torch.float64)
    labels = (x @ weight + 0.2 > 0).long()
    job = Counting()
    found = attack(model, x, labels, job, version=version, epsilon=1e-3)
    assert not found.success.any()
    assert 0 < job.done <= job.total


def test_later_attacks_see_only_rows_that_are_still_open() -> None:
    model, weight = linear()
    x = torch.stack([0.01 * weight, 5 * weight])
    found = attack(model, x, torch.ones(2, dtype=torch.int64), epsilon=0.5)
    assert found.success.tolist() == [True, False]
    assert found.won_by.tolist() == [0, -1]
    assert found.queries[0] < found.queries[1]


def test_a_row_that_is_wrong_to_begin_with_is_nobodys_win() -> None:
    model, weight = linear()
    found = attack(model, (5 * weight)[None], torch.zeros(1, dtype=torch.int64), epsilon=0.1)
    assert found.success.tolist() == [True]
    assert found.initially_correct.tolist() == [0]
    assert found.won_by.tolist() == [-1]


@pytest.mark.parametrize(
    "stage", ["apgd_cross_entropy", "apgd_dlr", "apgd_targeted", "fab", "fab_targeted", "square"]
)
def test_every_member_takes_a_box(stage: str) -> None:
    model, weight = linear(5)
    x = torch.zeros(1, SIZE, dtype=torch.float64)
    need = 0.2 / float(weight.abs().sum())
    for factor, expected in ((0.98, False), (1.1, True)):
        half = need * factor
        tensors = {"lower": torch.full_like(x, -half), "upper": torch.full_like(x, half)}
        found = attack(model, x, torch.tensor([1]), attacks=[stage], queries=2000, tensors=tensors)
        assert bool(found.success) is expected
        assert float(found.adversarial.abs().max()) <= half


def test_a_target_is_reached() -> None:
    model, weight = linear(4)
    x = (-0.1 * weight)[None]
    found = attack(model, x, torch.tensor([1]), targeted=True, epsilon=1.0)
    assert found.success.tolist() == [True]
    assert int(found.adversarial_logits.argmax()) == 1


def test_averaged_passes_are_counted() -> None:
    model, weight = linear(3)
    x = (5 * weight)[None]
    found = attack(model, x, torch.tensor([1]), version="random", epsilon=1e-3, steps=4, restarts=1)
    # Twice 5 points of 20 gradients, the input, the check of what is returned, and 4 looks at
    # whether gradients hide the way of a row that was not won.
    assert int(found.queries) == 2 * 5 * 20 * 2 + 2 + 4
