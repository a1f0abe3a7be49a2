"""Attacks on estimated gradients and SimBA: by scores alone, within a budget of queries."""

from typing import Any

import pytest
import torch
from attack_networks import predicted
from pydantic import ValidationError
from torch import Tensor, nn

from interpret_plugins.attacks.attack import AttackResult
from interpret_plugins.attacks.gradient_estimation import GradientEstimation
from interpret_plugins.attacks.nes import NES
from interpret_plugins.attacks.simba import SimBA
from interpret_plugins.attacks.spsa import SPSA
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job, Plugin
from interpret_server.testing import classifier

Attacker = type[Plugin[Any, AttackResult]]
CASES: list[tuple[Attacker, dict[str, Any]]] = [
    (NES, {"samples": 10, "norm": "linf"}),
    (NES, {"samples": 10, "norm": "l2"}),
    (NES, {"samples": 10, "norm": "l1"}),
    (SPSA, {"samples": 10}),
    (GradientEstimation, {"directions": 7, "norm": "linf"}),
    (GradientEstimation, {"directions": 7, "norm": "l2"}),
    (SimBA, {"basis": "pixel", "norm": "linf"}),
    (SimBA, {"basis": "dct", "norm": "l2"}),
    (SimBA, {"basis": "dct", "norm": "l1"}),
]
EPSILONS = {"linf": 0.08, "l2": 0.8, "l1": 7.0}
DUAL = {"linf": 1.0, "l2": 2.0}
SIZE = 12


class Counting(nn.Module):
    """Counts the rows that pass, and the most at once."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.rows, self.most = module, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows, self.most = self.rows + len(x), max(self.most, len(x))
        logits: Tensor = self.module(x)
        return logits


def network(dtype: torch.dtype = torch.float32) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 20), nn.ReLU(), nn.Linear(20, 5))
    return classifier(module.to(dtype), (3, 8, 8), input_layout="CHW")


def linear(bias: float) -> tuple[Classifier, Tensor]:
    """Logits (0, w.x + b)."""
    weight = torch.linspace(-1.0, 2.0, SIZE, dtype=torch.float64) + 0.05
    layer = nn.Linear(SIZE, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros_like(weight), weight]))
        layer.bias.copy_(torch.tensor([0.0, bias]))
    return classifier(layer, (SIZE,), bounds=(-100.0, 100.0)), weight


def attack(
    plugin: Attacker, model: Classifier, x: Tensor, labels: Tensor, **params: Any
) -> AttackResult:
    seeds = params.pop("seeds", tuple(range(len(x))))
    tensors, job = params.pop("tensors", {}), params.pop("job", Job())
    made = plugin.params_type.model_validate({"queries": 200, **params})
    return plugin().run(model, Batch(x, Targets.classes(labels), seeds, tensors), made, job)


def settings(params: dict[str, Any]) -> dict[str, Any]:
    return {**params, "epsilon": EPSILONS[params.get("norm", "linf")]}


@pytest.mark.parametrize(("plugin", "params"), CASES)
@pytest.mark.parametrize("targeted", [False, True])
def test_success_is_what_the_returned_tensor_is_predicted_as(
    plugin: Attacker, params: dict[str, Any], targeted: bool
) -> None:
    model, x = network(), torch.rand(16, 3, 8, 8)
    labels = model(x).topk(2).indices[:, int(targeted)]
    result = attack(plugin, model, x, labels, targeted=targeted, **settings(params))
    again = predicted(model, result.adversarial)
    assert torch.equal(result.success, (again == labels) if targeted else (again != labels))
    assert 1 <= int(result.success.sum())
    norm = params.get("norm", "linf")
    assert (getattr(result, f"distance_{norm}") <= EPSILONS[norm]).all()
    assert 0 <= float(result.adversarial.min()) <= float(result.adversarial.max()) <= 1


@pytest.mark.parametrize(("plugin", "params"), CASES)
def test_every_query_is_counted_and_the_budget_never_exceeded(
    plugin: Attacker, params: dict[str, Any]
) -> None:
    model, x = network(), torch.rand(6, 3, 8, 8)
    labels = predicted(model, x)
    counting = Counting(model.module.body)
    model.module.body = counting
    labels[0] = (labels[0] + 1) % 5
    for queries in (4, 6, 7, 50):
        counting.rows = 0
        result = attack(
            plugin, model, x, labels, queries=queries, **settings(params) | {"epsilon": 0.01}
        )
        assert int(result.queries.max()) <= queries
        assert int(result.queries.max()) >= queries - 4
        assert counting.rows == int(result.queries.sum())
        assert int(result.queries[0]) == 2


@pytest.mark.parametrize(("plugin", "params"), CASES)
def test_no_more_rows_than_allowed_go_through_the_model_at_once(
    plugin: Attacker, params: dict[str, Any]
) -> None:
    model, x = network(), torch.rand(4, 3, 8, 8)
    labels = predicted(model, x)
    counting = Counting(model.module.body)
    model.module.body = counting
    results = []
    for most in (4, 64):
        job, counting.most = Job(), 0
        job.max_rows = most
        results.append(attack(plugin, model, x, labels, job=job, **settings(params)))
        assert counting.most <= most
    torch.testing.assert_close(*[result.adversarial for result in results], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("plugin", "params"), CASES)
def test_a_rows_result_depends_neither_on_its_mates_nor_on_their_order(
    plugin: Attacker, params: dict[str, Any]
) -> None:
    model = network(torch.float64)
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    labels = predicted(model, x)
    few = settings(params) | {"queries": 60}
    together = attack(plugin, model, x, labels, **few)
    order = torch.tensor([4, 2, 0, 3, 1])
    shuffled = attack(plugin, model, x[order], labels[order], seeds=tuple(order.tolist()), **few)
    torch.testing.assert_close(shuffled.adversarial, together.adversarial[order])
    assert torch.equal(shuffled.queries, together.queries[order])
    for row in range(5):
        one = slice(row, row + 1)
        alone = attack(plugin, model, x[one], labels[one], seeds=(row,), **few)
        torch.testing.assert_close(alone.adversarial[0], together.adversarial[row])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_differences_along_every_value_are_the_gradient_of_a_linear_model(norm: str) -> None:
    model, weight = linear(50.0)
    x = torch.randn(3, SIZE, dtype=torch.float64)
    labels = torch.ones(3, dtype=torch.int64)
    params = {"norm": norm, "epsilon": 0.7, "step_size": 0.7, "directions": SIZE}
    result = attack(GradientEstimation, model, x, labels, queries=2 * SIZE + 4, **params)
    worst = 0.7 * torch.linalg.vector_norm(weight, ord=DUAL[norm])
    change = (result.logits - result.adversarial_logits)[:, 1]
    torch.testing.assert_close(change, worst.expand(3), rtol=1e-5, atol=0)
    assert result.queries.tolist() == [2 * SIZE + 3] * 3


def test_components_give_the_projection_of_the_gradient() -> None:
    model, weight = linear(50.0)
    x = torch.randn(2, SIZE, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(SIZE, 4, dtype=torch.float64)).Q.T
    lengths = torch.tensor([1.0, 3.0, 0.2, 1.0]).unsqueeze(1)
    result = attack(
        GradientEstimation,
        model,
        x,
        torch.ones(2, dtype=torch.int64),
        tensors={"components": (basis * lengths).expand(2, 4, SIZE)},
        norm="l2",
        epsilon=0.7,
        step_size=0.7,
        directions=3,
        queries=10,
    )
    projected = basis[:3].T @ (basis[:3] @ weight)
    expected = -0.7 * projected / projected.norm()
    torch.testing.assert_close(result.adversarial - x, expected.expand(2, -1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("components", "params", "field"),
    [
        (torch.ones(2, 3, 5), {}, "tensors.components"),
        (torch.zeros(2, 3, SIZE), {}, "tensors.components"),
        (torch.ones(2, 3, SIZE), {"directions": 4}, "params.directions"),
    ],
)
def test_components_that_do_not_fit_are_refused(
    components: Tensor, params: dict[str, Any], field: str
) -> None:
    model, _ = linear(0.0)
    x, labels = torch.zeros(2, SIZE, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(InvalidRequest) as caught:
        attack(GradientEstimation, model, x, labels, tensors={"components": components}, **params)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("plugin", "params"),
    [(NES, {"samples": 20}), (SPSA, {"samples": 20}), (GradientEstimation, {"directions": 12})],
)
def test_estimated_gradients_come_close_to_the_worst_change_of_a_linear_score(
    plugin: Attacker, params: dict[str, Any]
) -> None:
    model, weight = linear(50.0)
    x = torch.randn(3, SIZE, dtype=torch.float64)
    labels = torch.ones(3, dtype=torch.int64)
    result = attack(plugin, model, x, labels, epsilon=0.7, queries=1000, **params)
    worst = 0.7 * weight.abs().sum()
    change = (result.logits - result.adversarial_logits)[:, 1]
    assert (change <= worst * (1 + 1e-12)).all()
    assert (change >= 0.97 * worst).all()


def test_simba_takes_every_pixel_in_the_direction_that_helps() -> None:
    model, weight = linear(50.0)
    x = torch.randn(3, SIZE, dtype=torch.float64)
    labels = torch.ones(3, dtype=torch.int64)
    params = {"basis": "pixel", "norm": "linf", "epsilon": 0.7, "step_size": 0.7 / 200}
    result = attack(SimBA, model, x, labels, queries=2 * SIZE + 4, **params)
    expected = x - 0.7 * weight.sign()
    torch.testing.assert_close(result.adversarial, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_directions_are_orthonormal_and_none_comes_twice(basis: str) -> None:
    from interpret_plugins.attacks.simba import _Basis
    from interpret_plugins.attacks.windows import Grid

    grid = Grid((6, 4, 2), 2, (6, 4))
    found = _Basis(grid, (5, 6), 60, None if basis == "pixel" else 0.5)
    count = 48 if basis == "pixel" else 12
    ways = torch.stack(
        [found.directions(torch.tensor([1]), torch.tensor([turn]))[0] for turn in range(count)]
    ).flatten(1)
    torch.testing.assert_close(ways @ ways.T, torch.eye(count), rtol=0, atol=1e-6)
    if basis == "dct":  # the lowest frequencies of each channel: no sign changes beyond them
        from scipy.fft import dctn

        spectrum = dctn(ways.reshape(count, 6, 4, 2).numpy(), axes=(1, 2), norm="ortho")
        outside = torch.from_numpy(spectrum)
        outside[:, :3, :2] = 0
        assert float(outside.abs().max()) < 1e-6


@pytest.mark.parametrize("plugin", [NES, SPSA, GradientEstimation, SimBA])
def test_a_box_that_excludes_the_input_bounds_every_value(plugin: Attacker) -> None:
    model, x = network(), torch.rand(4, 3, 8, 8)
    middle = torch.rand(4, 3, 8, 8)
    lower = (middle - 0.1 * torch.rand_like(x)).clamp(0, 1)
    upper = (middle + 0.1 * torch.rand_like(x)).clamp(0, 1)
    boxes, norm = {"lower": lower, "upper": upper}, {"norm": "linf"}
    result = attack(plugin, model, x, predicted(model, middle), tensors=boxes, **norm)
    assert (result.adversarial >= lower).all()
    assert (result.adversarial <= upper).all()
    assert int(result.queries.max()) <= 200


@pytest.mark.parametrize(
    ("plugin", "params"),
    [
        (NES, {"samples": 7}),
        (NES, {"sigma": 0}),
        (NES, {"momentum": 1.0}),
        (NES, {"queries": 3}),
        (SPSA, {"norm": "l2"}),
        (SPSA, {"delta": 0}),
        (GradientEstimation, {"directions": 0}),
        (SimBA, {"basis": "pixel", "frequencies": 0.5}),
        (SimBA, {"step_size": 0}),
    ],
)
def test_parameters_out_of_range_are_refused(plugin: Attacker, params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        plugin.params_type.model_validate(params)
