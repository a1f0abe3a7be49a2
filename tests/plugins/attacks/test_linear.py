"""Attacks on a linear classifier, where the worst change of the logits is known in closed form."""

import pytest
import torch
from torch import Tensor, nn

from interpret_plugins.attacks.apgd import APGD, APGDParams
from interpret_plugins.attacks.attack import AttackResult
from interpret_plugins.attacks.bim import BIM
from interpret_plugins.attacks.fgm import FGM
from interpret_plugins.attacks.fgsm import FGSM, FGSMParams
from interpret_plugins.attacks.mi_fgsm import MIFGSM
from interpret_plugins.attacks.pgd import PGD, PGDParams
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier

SIZE = 12


class Linear(nn.Module):
    """Logits (0, w.x + b): class 1 where w.x + b is positive."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.layer = nn.Linear(len(weight), 2, dtype=weight.dtype)
        with torch.no_grad():
            self.layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
            self.layer.bias.copy_(torch.tensor([0.0, bias]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def linear(
    bias: float = 0.0,
    bounds: tuple[float, float] = (-100.0, 100.0),
    dtype: torch.dtype = torch.float64,
) -> tuple[Classifier, Tensor]:
    weight = torch.linspace(-1.0, 2.0, SIZE, dtype=dtype) + 0.05
    return classifier(Linear(weight, bias), (SIZE,), bounds=bounds), weight


def batch(x: Tensor, labels: Tensor, **tensors: Tensor) -> Batch:
    return Batch(x, Targets.classes(labels), tuple(range(len(x))), tensors)


def pgd(model: Classifier, data: Batch, **params: object) -> AttackResult:
    return PGD().run(model, data, PGDParams.model_validate(params), Job())


def fgsm(model: Classifier, data: Batch, **params: object) -> AttackResult:
    return FGSM().run(model, data, FGSMParams.model_validate(params), Job())


def apgd(model: Classifier, data: Batch, **params: object) -> AttackResult:
    return APGD().run(model, data, APGDParams.model_validate(params), Job())


def bim(model: Classifier, data: Batch, **params: object) -> AttackResult:
    return BIM().run(model, data, BIM.params_type.model_validate(params), Job())


def mi_fgsm(model: Classifier, data: Batch, **params: object) -> AttackResult:
    return MIFGSM().run(model, data, MIFGSM.params_type.model_validate(params), Job())


def fgm(model: Classifier, data: Batch, **params: object) -> AttackResult:
    return FGM().run(model, data, FGM.params_type.model_validate(params), Job())


def score(logits: Tensor) -> Tensor:
    return logits[:, 1] - logits[:, 0]


DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_reaches_the_worst_change_of_a_linear_score(
    norm: str, loss: str, random_start: bool
) -> None:
    model, weight = linear(bias=50.0)
    x = torch.randn(3, SIZE, dtype=torch.float64)
    epsilon = 0.7
    result = pgd(
        model,
        batch(x, torch.ones(3, dtype=torch.int64)),
        epsilon=epsilon,
        norm=norm,
        loss=loss,
        step_size=epsilon / 2,
        random_start=random_start,
    )
    worst = epsilon * torch.linalg.vector_norm(weight, ord=DUAL[norm])
    change = score(result.logits) - score(result.adversarial_logits)
    torch.testing.assert_close(change, worst.expand(3), rtol=1e-5, atol=0)
    assert (change <= worst * (1 + 1e-12)).all()
    assert not result.success.any()


@pytest.mark.parametrize(
    ("attack", "norm"), [(fgsm, "linf"), (fgsm, "l2"), (fgm, "l2"), (fgm, "l1")]
)
def test_one_step_is_the_worst_change_of_a_linear_score(attack: object, norm: str) -> None:
    model, weight = linear(bias=50.0)
    x = torch.randn(3, SIZE, dtype=torch.float64)
    result = attack(model, batch(x, torch.ones(3, dtype=torch.int64)), epsilon=0.7, norm=norm)
    worst = 0.7 * torch.linalg.vector_norm(weight, ord=DUAL[norm])
    change = score(result.logits) - score(result.adversarial_logits)
    torch.testing.assert_close(change, worst.expand(3), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        *((attack, norm) for attack in (pgd, apgd, bim, mi_fgsm) for norm in ("linf", "l2", "l1")),
        (fgsm, "linf"),
        (fgsm, "l2"),
        (fgm, "l2"),
        (fgm, "l1"),
    ],
)
@pytest.mark.parametrize("targeted", [False, True])
def test_attacks_succeed_exactly_beyond_the_distance_to_the_boundary(
    attack: object, norm: str, targeted: bool
) -> None:
    model, weight = linear(bias=0.3)
    x = torch.randn(6, SIZE, dtype=torch.float64)
    side = (score(model(x)) > 0).long()
    labels = 1 - side if targeted else side
    distance = score(model(x)).abs() / torch.linalg.vector_norm(weight, ord=DUAL[norm])
    for row in range(len(x)):
        for factor, expected in ((0.999, False), (1.001, True)):
            epsilon = float(distance[row]) * factor
            result = attack(  # type: ignore[operator]
                model,
                batch(x[row : row + 1], labels[row : row + 1]),
                epsilon=epsilon,
                **({"step_size": epsilon / 2} if attack is pgd else {}),
                norm=norm,
                targeted=targeted,
                confirm_small_epsilon=True,
            )
            assert bool(result.success) is expected
            assert float(result.initially_correct) == 1


def test_fgm_in_l1_uses_up_the_radius_where_the_bounds_cut_the_ball() -> None:
    model, weight = linear(bias=50.0, bounds=(0.0, 1.0))
    x = torch.rand(4, SIZE, dtype=torch.float64)
    result = fgm(model, batch(x, torch.ones(4, dtype=torch.int64)), epsilon=1.5, norm="l1")
    change = score(result.logits) - score(result.adversarial_logits)
    room = torch.where(weight > 0, x, 1 - x)
    for row in range(4):
        left, best = 1.5, 0.0
        for index in weight.abs().argsort(descending=True).tolist():
            used = min(left, float(room[row, index]))
            best, left = best + used * float(weight[index].abs()), left - used
        assert float(change[row]) == pytest.approx(best, rel=1e-5)


def test_momentum_gathers_gradients_of_equal_weight() -> None:
    model, _ = linear(bias=50.0)
    x = torch.randn(2, SIZE, dtype=torch.float64)
    data = batch(x, torch.ones(2, dtype=torch.int64))
    plain = mi_fgsm(model, data, epsilon=0.7, norm="l2", decay=0.0, steps=4)
    momentum = mi_fgsm(model, data, epsilon=0.7, norm="l2", decay=1.0, steps=4)
    torch.testing.assert_close(plain.adversarial, momentum.adversarial)


@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_in_l0_changes_the_values_that_matter_most(random_start: bool) -> None:
    model, weight = linear(bias=50.0, bounds=(0.0, 1.0))
    x = torch.rand(4, SIZE, dtype=torch.float64)
    params = {"epsilon": 3, "norm": "l0", "random_start": random_start, "step_size": 1000.0}
    result = pgd(model, batch(x, torch.ones(4, dtype=torch.int64)), **params)
    gains = torch.where(weight > 0, x, 1 - x) * weight.abs()
    worst = gains.topk(3, dim=1).values.sum(1)
    change = score(result.logits) - score(result.adversarial_logits)
    assert (result.distance_l0 <= 3).all()
    # After a long step the values kept are those whose moves gain most.
    torch.testing.assert_close(change, worst, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_pgd_finds_the_optimum_where_the_bounds_cut_the_ball(norm: str) -> None:
    model, weight = linear(bias=50.0, bounds=(0.0, 1.0))
    x = torch.rand(4, SIZE, dtype=torch.float64)
    epsilon = 1.5
    result = pgd(
        model,
        batch(x, torch.ones(4, dtype=torch.int64)),
        epsilon=epsilon,
        norm=norm,
        steps=400,
        step_size=0.05,
        random_start=False,
    )
    room = torch.where(weight > 0, x, 1 - x)
    gain = weight.abs()
    for row in range(4):
        if norm == "l1":  # fractional knapsack: fill the best coordinates first
            left, best = epsilon, 0.0
            for index in gain.argsort(descending=True).tolist():
                used = min(left, float(room[row, index]))
                best, left = best + used * float(gain[index]), left - used
        else:  # scaled weights, clipped to the room; the scale by bisection
            low, high = 0.0, 1e6
            for _ in range(200):
                scale = (low + high) / 2
                delta = torch.minimum(gain * scale, room[row])
                low, high = (scale, high) if delta.norm() <= epsilon else (low, scale)
            best = float((torch.minimum(gain * low, room[row]) * gain).sum())
        change = score(result.logits)[row] - score(result.adversarial_logits)[row]
        assert float(change) == pytest.approx(best, rel=2e-3)
        assert float(change) <= best * (1 + 1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_apgd_reaches_the_worst_change_without_a_step_size(norm: str, loss: str) -> None:
    model, weight = linear(bias=50.0)
    x = torch.randn(3, SIZE, dtype=torch.float64)
    data = batch(x, torch.ones(3, dtype=torch.int64))
    result = apgd(model, data, epsilon=0.7, norm=norm, loss=loss)
    worst = 0.7 * torch.linalg.vector_norm(weight, ord=DUAL[norm])
    change = score(result.logits) - score(result.adversarial_logits)
    torch.testing.assert_close(change, worst.expand(3), rtol=1e-3, atol=0)
    assert (change <= worst * (1 + 1e-12)).all()


@pytest.mark.parametrize("attack", [pgd, apgd, fgsm, bim, mi_fgsm])
def test_a_box_is_attacked_up_to_its_corner(attack: object) -> None:
    model, weight = linear(bias=50.0)
    x = torch.randn(3, SIZE, dtype=torch.float64)
    lower, upper = x - torch.rand_like(x), x + torch.rand_like(x)
    data = batch(x, torch.ones(3, dtype=torch.int64), lower=lower, upper=upper)
    result = attack(model, data)  # type: ignore[operator]
    torch.testing.assert_close(result.adversarial, torch.where(weight > 0, lower, upper))


def test_cross_entropy_of_a_saturated_classifier_still_gives_its_direction() -> None:
    weight = torch.linspace(-1.0, 2.0, SIZE) * 100
    model = classifier(Linear(weight, 500.0), (SIZE,), bounds=(-10.0, 10.0))
    x = torch.zeros(1, SIZE)
    assert torch.softmax(model(x), 1)[0, 0] == 0
    result = pgd(model, batch(x, torch.ones(1, dtype=torch.int64)), epsilon=1.0, steps=5)
    assert result.success.all()
