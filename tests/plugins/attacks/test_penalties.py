"""Minimal changes by penalties and shrinking radii: C&W, EAD, DDN, penalised Adam; JSMA."""

from typing import Any

import pytest
import torch
from attack_networks import network, predicted
from torch import Tensor, nn

from interpret_plugins.attacks.attack import AttackResult
from interpret_plugins.attacks.brendel_bethge import BrendelBethge
from interpret_plugins.attacks.carlini_wagner import CarliniWagner
from interpret_plugins.attacks.ddn import DDN
from interpret_plugins.attacks.ead import EAD
from interpret_plugins.attacks.jsma import JSMA
from interpret_plugins.attacks.penalty_adam import PenaltyAdam
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job, Plugin
from interpret_server.testing import classifier

SIZE = 12
FIRM = {"initial_constant": 0.1}
Attacker = type[Plugin[Any, AttackResult]]
FEW: list[tuple[Attacker, dict[str, Any]]] = [
    (CarliniWagner, {"norm": "l2", "steps": 25, "rounds": 3, "initial_constant": 10.0}),
    (CarliniWagner, {"norm": "linf", "steps": 25, "rounds": 10, "initial_constant": 1.0}),
    (CarliniWagner, {"norm": "l0", "steps": 25, "rounds": 10, "initial_constant": 10.0}),
    (EAD, {"steps": 25, "rounds": 3, "initial_constant": 10.0}),
    (DDN, {"steps": 40}),
    (PenaltyAdam, {"steps": 60, "penalty": 0.1}),
    (JSMA, {}),
]
STARTED: list[tuple[Attacker, dict[str, Any]]] = [(BrendelBethge, {"norm": "l2", "steps": 20})]


def attack(
    plugin: Attacker,
    model: Classifier,
    x: Tensor,
    labels: Tensor,
    seeds: tuple[int, ...] | None = None,
    job: Job | None = None,
    **params: Any,
) -> AttackResult:
    made = plugin.params_type.model_validate(params)
    plugin().check(model, made)
    data = Batch(x, Targets.classes(labels), seeds or tuple(range(len(x))))
    return plugin().run(model, data, made, job or Job())


def linear(bounds: tuple[float, float] = (-4.0, 4.0)) -> tuple[Classifier, Tensor]:
    """Two logits that differ by w.x + 0.3."""
    weight = torch.linspace(-1.0, 2.0, SIZE, dtype=torch.float64) + 0.05
    layer = nn.Linear(SIZE, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-weight, weight]) / 2)
        layer.bias.copy_(torch.tensor([-0.15, 0.15]))
    return classifier(layer, (SIZE,), bounds=bounds), weight


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("plugin", "norm", "tolerance", "params"),
    [
        (CarliniWagner, "l2", 0.03, {"steps": 100, "learning_rate": 0.03, **FIRM}),
        (CarliniWagner, "linf", 0.2, {"steps": 100, "learning_rate": 0.03, **FIRM}),
        (EAD, "l2", 0.03, {"steps": 100, "beta": 0, "rule": "l2", **FIRM}),
        (EAD, "l1", 0.1, {"steps": 100, "rule": "l1", **FIRM}),
        (DDN, "l2", 0.02, {"steps": 150, "gamma": 0.02, "initial_radius": 0.25}),
        # Adam's first steps are alike in all values: short of optimal in L2.
        (PenaltyAdam, "l2", 0.35, {"learning_rate": 2e-3, "steps": 200, "penalty": 0.1}),
    ],
)
def test_the_change_is_the_distance_to_the_boundary_of_a_linear_model(
    plugin: Attacker, norm: str, tolerance: float, params: dict[str, Any], targeted: bool
) -> None:
    model, weight = linear()
    x = torch.randn(8, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x.clamp(-2, 2)
    x = x[(x @ weight + 0.3).abs() > 1][:4]
    score = x @ weight + 0.3
    side = (score > 0).long()
    labels = 1 - side if targeted else side
    if plugin is CarliniWagner:
        params = {**params, "norm": norm}
    result = attack(plugin, model, x, labels, targeted=targeted, **params)
    dual = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}[norm]
    expected = score.abs() / torch.linalg.vector_norm(weight, ord=dual)
    found = getattr(result, f"distance_{norm}")
    assert result.success.all()
    assert (found >= expected * (1 - 1e-6)).all()
    assert (found <= expected * (1 + tolerance)).all(), found / expected


@pytest.mark.parametrize(("plugin", "params"), [FEW[2], FEW[6]])
def test_as_few_values_change_as_a_linear_model_needs(
    plugin: Attacker, params: dict[str, Any]
) -> None:
    model, weight = linear((-1.0, 1.0))
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, SIZE, dtype=torch.float64, generator=generator) * 2 - 1
    score = x @ weight + 0.3
    sign = score.sign().unsqueeze(1)
    gains = (weight * (-sign * weight.sign() - x)).mul(-sign).sort(1, descending=True).values
    fewest = (gains.cumsum(1) < score.abs().unsqueeze(1)).sum(1) + 1
    many = {"steps": 60, "rounds": 25, "learning_rate": 0.05} if plugin is CarliniWagner else {}
    labels = (score > 0).long()
    ways = [{"theta": 1.0}, {"theta": -1.0}] if plugin is JSMA else [{}]
    results = [attack(plugin, model, x, labels, **{**params, **many, **way}) for way in ways]
    for result in results:
        assert (result.distance_l0[result.success] >= fewest[result.success]).all()
    if plugin is CarliniWagner:
        assert results[0].success.all()
        assert (results[0].distance_l0 <= fewest + 1).all()
    else:
        assert (results[0].success | results[1].success).any()


@pytest.mark.parametrize(("plugin", "params"), [*FEW, *STARTED])
def test_success_is_what_the_returned_tensor_is_predicted_as(
    plugin: Attacker, params: dict[str, Any]
) -> None:
    bounds = (-20.0, 235.0)
    model = network(bounds)
    x = torch.rand(8, 1, 8, 8) * (bounds[1] - bounds[0]) + bounds[0]
    labels = predicted(model, x)
    labels[0] = (labels[0] + 1) % 5
    result = attack(plugin, model, x, labels, **params)
    assert torch.equal(result.success, predicted(model, result.adversarial) != labels)
    assert int(result.success.sum()) > 4
    assert torch.equal(result.adversarial[0], x[0])
    assert result.initially_correct.tolist() == [0] + [1] * 7
    assert bounds[0] <= float(result.adversarial.min())
    assert float(result.adversarial.max()) <= bounds[1]


@pytest.mark.parametrize(("plugin", "params"), [*FEW, *STARTED])
def test_rows_do_not_depend_on_their_mates(plugin: Attacker, params: dict[str, Any]) -> None:
    model = network()
    model.module.double()
    model.dtype = torch.float64
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    labels = predicted(model, x)
    whole = attack(plugin, model, x, labels, **params)
    for row in (1, 4):
        part = slice(row, row + 1)
        alone = attack(plugin, model, x[part], labels[part], (row,), **params)
        torch.testing.assert_close(alone.adversarial, whole.adversarial[part])
        assert torch.equal(alone.queries, whole.queries[part])


@pytest.mark.parametrize(("plugin", "params"), [*FEW, *STARTED])
def test_a_class_can_be_reached(plugin: Attacker, params: dict[str, Any]) -> None:
    model, x = network(), torch.rand(8, 1, 8, 8)
    labels = model(x).topk(2).indices[:, 1]
    result = attack(plugin, model, x, labels, targeted=True, **params)
    assert torch.equal(result.success, predicted(model, result.adversarial) == labels)
    assert int(result.success.sum()) > 1


@pytest.mark.parametrize("plugin", [CarliniWagner, EAD])
def test_confidence_is_a_margin_of_logits(plugin: Attacker) -> None:
    model, x = network(), torch.rand(8, 1, 8, 8)
    labels = predicted(model, x)
    params = {"steps": 100, "rounds": 3, "initial_constant": 100.0}
    sure = attack(plugin, model, x, labels, confidence=0.05, **params)
    own = sure.adversarial_logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    margin = sure.adversarial_logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1) - own
    assert sure.success.all()
    assert (margin >= 0.05 - 1e-5).all()


@pytest.mark.parametrize(("plugin", "params"), FEW)
def test_a_gradient_of_zero_is_warned_about(plugin: Attacker, params: dict[str, Any]) -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1, keepdim=True)
            return torch.cat([total.round() + 3, total * 0], 1)

    class Heard(Job):
        def __init__(self) -> None:
            self.heard: list[int] = []

        def warn(self, rows: Tensor, message: str) -> None:
            assert "zero gradient" in message
            self.heard += torch.nonzero(rows).flatten().tolist()

    model, job = classifier(Flat(), (4,), bounds=(0.0, 1.0)), Heard()
    labels = torch.zeros(2, dtype=torch.int64)
    result = attack(plugin, model, torch.full((2, 4), 0.5), labels, job=job, **params)
    assert not result.success.any()
    assert sorted(job.heard) == [0, 1]


def test_the_penalised_optimum_of_a_linear_loss() -> None:
    model, weight = linear((-100.0, 100.0))
    x = 20 * weight.sign().repeat(2, 1)
    params = {"loss": "margin", "penalty": 1e4, "steps": 2000, "learning_rate": 2e-4}
    result = attack(PenaltyAdam, model, x, torch.ones(2, dtype=torch.int64), **params)
    # max -w.d - lambda |d / 200|^2
    expected = -weight * 200**2 / (2 * 1e4)
    torch.testing.assert_close(result.adversarial - x, expected.expand(2, -1), rtol=0, atol=0.05)


def test_ead_with_more_beta_changes_fewer_values() -> None:
    model, x = network(), torch.rand(8, 1, 8, 8)
    labels = predicted(model, x)
    counts = []
    for beta in (1e-4, 1e-2, 5e-2):
        result = attack(EAD, model, x, labels, beta=beta, steps=100, rounds=6, initial_constant=0.1)
        assert result.success.all()
        counts.append(float(result.distance_l0.mean()))
    assert counts[0] > counts[1] > counts[2]


def test_the_smallest_change_is_no_larger_with_more_rounds() -> None:
    model, x = network(), torch.rand(8, 1, 8, 8)
    labels = predicted(model, x)
    params = {"steps": 50, "initial_constant": 100.0}
    few, many = (attack(CarliniWagner, model, x, labels, rounds=n, **params) for n in (1, 6))
    assert few.success.all()
    assert (many.distance_l2 <= few.distance_l2).all()
    assert float(many.distance_l2.mean()) < float(few.distance_l2.mean())


@pytest.mark.parametrize("targeted", [False, True])
def test_jsma_changes_the_best_of_all_pairs(targeted: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(3, 20, generator=generator, dtype=torch.float64)
    layer = nn.Linear(20, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(torch.tensor([0.0, 500.0, 0.0] if targeted else [500.0, 0.0, 0.0]))
    model = classifier(layer, (20,), bounds=(0.0, 1.0))
    x = torch.full((1, 20), 0.5, dtype=torch.float64)
    label = torch.tensor([0])
    result = attack(JSMA, model, x, label, targeted=targeted, gamma=0.1, theta=0.25)
    alpha, beta = weight[0], weight[1:].sum(0)
    if not targeted:
        alpha, beta = -alpha, -beta
    pairs = [
        (float((alpha[p] + alpha[q]) * -(beta[p] + beta[q])), {p, q})
        for p in range(20)
        for q in range(p)
        if alpha[p] + alpha[q] > 0 and beta[p] + beta[q] < 0
    ]
    changed = set((result.adversarial != x)[0].nonzero().flatten().tolist())
    assert changed == max(pairs, key=lambda pair: pair[0])[1]
    assert float(result.distance_linf) == 0.25


def test_jsma_refuses_steps_that_change_nothing_or_are_not_allowed() -> None:
    model, x = network(), torch.rand(1, 1, 8, 8)
    labels = predicted(model, x)
    with pytest.raises(InvalidRequest, match=r"params\.theta"):
        attack(JSMA, model, x, labels, theta=0.0)
    with pytest.raises(InvalidRequest, match=r"params\.gamma"):
        attack(JSMA, model, x, labels, gamma=0.02)
    few = attack(JSMA, model, x, labels, gamma=0.05)
    assert float(few.distance_l0) <= 3
    one = attack(JSMA, model, x, labels, gamma=0.02, pairs=False)
    assert float(one.distance_l0) <= 1


def test_what_ead_keeps_is_the_nearest_by_its_rule() -> None:
    model, x = network(), torch.rand(8, 1, 8, 8)
    labels = predicted(model, x)
    params = {"steps": 100, "rounds": 6, "initial_constant": 0.1}
    by_l1, by_l2 = (attack(EAD, model, x, labels, rule=rule, **params) for rule in ("l1", "l2"))
    assert (by_l1.distance_l1 < by_l2.distance_l1).all()
    assert (by_l1.distance_l2 > by_l2.distance_l2).all()
