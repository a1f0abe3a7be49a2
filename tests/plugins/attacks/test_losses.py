"""The losses against their published formulas, written out in float64."""

import pytest
import torch
from torch import Tensor

from interpret_plugins.attacks.losses import Goal, LossName


def logits(rows: int = 6, classes: int = 7) -> Tensor:
    return torch.randn(rows, classes, dtype=torch.float64) * 3


def labels(rows: int = 6, classes: int = 7) -> Tensor:
    return torch.arange(rows) % classes


def test_dlr_is_the_published_ratio() -> None:
    z, y = logits(), labels()
    found = Goal(y, False, "dlr").values(z)
    for row, label in zip(range(len(z)), y.tolist(), strict=True):
        ordered = z[row].sort(descending=True).values
        largest_other = max(float(v) for i, v in enumerate(z[row]) if i != label)
        ratio = -(float(z[row, label]) - largest_other) / float(ordered[0] - ordered[2])
        assert float(found[row]) == pytest.approx(ratio)


def test_dlr_towards_a_class_is_the_published_ratio() -> None:
    z, y = logits(), labels()
    towards = (y + 2) % 7
    found = Goal(y, False, "dlr", towards).values(z)
    for row in range(len(z)):
        ordered = z[row].sort(descending=True).values
        spread = float(ordered[0] - (ordered[2] + ordered[3]) / 2)
        ratio = -float(z[row, y[row]] - z[row, towards[row]]) / spread
        assert float(found[row]) == pytest.approx(ratio)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_dlr_ignores_shift_and_scale(factor: float) -> None:
    z, goal = logits(), Goal(labels(), False, "dlr")
    torch.testing.assert_close(goal.values(z * factor + 5), goal.values(z))


@pytest.mark.parametrize("targeted", [False, True])
def test_cross_entropy_grows_with_the_textbook_one(targeted: bool) -> None:
    z, y = logits(400, 7), labels(400)
    found = Goal(y, targeted).values(z)
    textbook = torch.nn.functional.cross_entropy(z, y, reduction="none")
    textbook = -textbook if targeted else textbook
    assert torch.equal(found.argsort(), textbook.argsort())


@pytest.mark.parametrize("targeted", [False, True])
def test_the_direction_of_cross_entropy_is_that_of_its_gradient(targeted: bool) -> None:
    z, y = logits(), labels()
    leaf = z.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(leaf, y, reduction="sum")
    (gradient,) = torch.autograd.grad(-loss if targeted else loss, leaf)
    found = Goal(y, targeted).by_logits(z)
    cosine = torch.nn.functional.cosine_similarity(gradient, found)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
@pytest.mark.parametrize("form", ["away", "targeted", "towards"])
def test_by_logits_is_the_derivative_of_the_values(loss: LossName, form: str) -> None:
    z, y = logits(), labels()
    towards = (y + 2) % 7 if form == "towards" else None
    goal = Goal(y, form == "targeted", loss, towards)
    leaf = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(goal.values(leaf).sum(), leaf)
    torch.testing.assert_close(goal.by_logits(z), gradient)


def test_a_tie_of_the_largest_logits_gives_a_finite_ratio() -> None:
    z = torch.tensor([[2.0, 2.0, 2.0, 2.0]])
    goal = Goal(torch.tensor([0]), False, "dlr")
    assert torch.isfinite(goal.values(z)).all()
    assert torch.isfinite(goal.by_logits(z)).all()
