"""Integrated gradients: closed forms, completeness, Captum, baselines, warnings."""

from collections.abc import Iterator

import pytest
import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from torch import Tensor, nn

from interpret_plugins.attribution.integrated_gradients import (
    IntegratedGradients,
    IntegratedGradientsParams,
    IntegratedGradientsResult,
)
from interpret_plugins.attribution.quadrature import Quadrature, nodes
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier

RULES = list(Quadrature)


class Recorder(Job):
    """Remembers steps and warnings."""

    def __init__(self, max_rows: int = 64) -> None:
        self.max_rows = max_rows
        self.steps: list[int] = []
        self.warnings: list[tuple[list[bool], str]] = []

    def track(self, total: int) -> Iterator[int]:
        self.steps.append(total)
        yield from range(total)

    def warn(self, rows: Tensor, message: str) -> None:
        self.warnings.append((rows.tolist(), message))


def run(
    model: Classifier,
    x: Tensor,
    targets: Targets,
    job: Job | None = None,
    start: Tensor | None = None,
    **params: object,
) -> IntegratedGradientsResult:
    made = IntegratedGradientsParams.model_validate(params)
    plugin = IntegratedGradients()
    plugin.check(model, made)
    tensors = {} if start is None else {"baseline": start}
    return plugin.run(model, Batch(x, targets, (0,) * len(x), tensors), made, job or Job())


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.Tanh(),
        nn.Linear(8, 3),
    ).double()


class Quadratic(nn.Module):
    """Class k scores `x' A_k x + b_k' x`."""

    def __init__(self) -> None:
        super().__init__()
        self.forms = nn.Parameter(torch.randn(3, 5, 5, dtype=torch.float64))
        self.slopes = nn.Parameter(torch.randn(3, 5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ni,kij,nj->nk", x, self.forms, x) + x @ self.slopes.T


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [2, 7, 50])
def test_a_linear_classifier_is_attributed_exactly_by_any_rule(rule: str, steps: int) -> None:
    layer = nn.Linear(6, 3).double()
    x, base = torch.rand(2, 4, 6, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 2])
    result = run(
        classifier(layer, (6,)),
        x,
        Targets.classes(labels),
        start=base,
        quadrature=rule,
        steps=steps,
    )
    torch.testing.assert_close(result.attributions, layer.weight[labels] * (x - base))
    torch.testing.assert_close(result.logits, layer(x))
    assert result.convergence_delta.abs().max() < 1e-12


@pytest.mark.parametrize(
    ("rule", "steps"), [("gauss_legendre", 1), ("riemann_midpoint", 1), ("trapezoid", 2)]
)
def test_a_quadratic_network_is_attributed_exactly_with_the_fewest_steps(
    rule: str, steps: int
) -> None:
    module = Quadratic()
    x, base = torch.randn(2, 3, 5, dtype=torch.float64)
    labels = torch.tensor([1, 0, 2])
    forms = module.forms[labels] + module.forms[labels].transpose(1, 2)
    slope = torch.einsum("nij,nj->ni", forms, (x + base) / 2) + module.slopes[labels]
    found = run(
        classifier(module, (5,)),
        x,
        Targets.classes(labels),
        start=base,
        quadrature=rule,
        steps=steps,
    )
    torch.testing.assert_close(found.attributions, ((x - base) * slope).detach())


def test_gauss_legendre_is_exact_for_the_highest_degree() -> None:
    for steps in (1, 3, 6):
        points, weights = (torch.tensor(v, dtype=torch.float64) for v in nodes(RULES[0], steps))
        for degree in range(2 * steps):
            found = float((points**degree * weights).sum())
            assert found == pytest.approx(1 / (degree + 1), abs=1e-14)
        missed = float((points ** (2 * steps) * weights).sum())
        assert missed != pytest.approx(1 / (2 * steps + 1), abs=1e-9)


TARGETS = {
    "class": Targets.classes(torch.tensor([2, 0, 1])),
    "neuron": Targets(TargetKind.NEURON, torch.tensor([[1, 0, 1], [3, 2, 0], [0, 1, 1]]), "0"),
    "channel": Targets(TargetKind.CHANNEL, torch.tensor([[3], [0], [1]]), "1"),
    "layer": Targets(TargetKind.LAYER, torch.zeros(3, 0, dtype=torch.int64), "4"),
    "direction": Targets(
        TargetKind.DIRECTION,
        torch.zeros(3, 0, dtype=torch.int64),
        "5",
        torch.arange(24.0, dtype=torch.float64).reshape(3, 8),
    ),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_attributions_sum_to_the_difference_of_any_target(kind: str) -> None:
    model = classifier(network(), (2, 6, 6), bounds=(-2, 2))
    x, targets = torch.randn(3, 2, 6, 6, dtype=torch.float64), TARGETS[kind]
    result = run(model, x, targets, steps=1000, baseline="lower")
    low = torch.full_like(x, -2)
    expected = model.objective(x, targets)[0] - model.objective(low, targets)[0]
    total = result.attributions.sum((1, 2, 3))
    assert float((total - expected).abs().max() / expected.abs().max()) < 1e-3
    torch.testing.assert_close(result.convergence_delta, total - expected)
    assert (result.logits is None) == (kind != "class")


@pytest.mark.parametrize(
    ("rule", "theirs"),
    [("gauss_legendre", "gausslegendre"), ("riemann_midpoint", "riemann_middle")],
)
def test_equals_captum_on_the_eager_module(rule: str, theirs: str) -> None:
    module = network()
    x, base = torch.randn(2, 4, 2, 6, 6, dtype=torch.float64)
    labels = torch.tensor([2, 1, 0, 2])
    expected, delta = CaptumIntegratedGradients(module).attribute(
        x, base, target=labels, n_steps=20, method=theirs, return_convergence_delta=True
    )
    model = classifier(module, (2, 6, 6))
    found = run(model, x, Targets.classes(labels), start=base, quadrature=rule, steps=20)
    # Captum keeps the rule's points and weights in float32
    torch.testing.assert_close(found.attributions, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.convergence_delta, delta, rtol=1e-5, atol=1e-6)


def test_the_trapezoid_rule_is_exact_on_a_linear_network_where_captums_is_not() -> None:
    layer = nn.Linear(4, 2).double()
    x, labels = torch.rand(1, 4, dtype=torch.float64), torch.tensor([1])
    exact = layer.weight[labels].detach() * x
    theirs = CaptumIntegratedGradients(layer).attribute(
        x, target=labels, n_steps=10, method="riemann_trapezoid"
    )
    ours = run(
        classifier(layer, (4,)), x, Targets.classes(labels), quadrature="trapezoid", steps=10
    )
    torch.testing.assert_close(ours.attributions, exact)
    torch.testing.assert_close(theirs, 0.9 * exact)


@pytest.mark.parametrize(
    ("name", "value"), [("zero", 0.0), ("lower", -1.0), ("upper", 3.0), ("mean", 1.0)]
)
def test_named_baselines_are_in_the_models_bounds(name: str, value: float) -> None:
    layer = nn.Linear(5, 2).double()
    x, labels = torch.rand(2, 5, dtype=torch.float64), torch.tensor([1, 0])
    model = classifier(layer, (5,), bounds=(-1, 3))
    found = run(model, x, Targets.classes(labels), baseline=name, steps=2).attributions
    torch.testing.assert_close(found, layer.weight[labels] * (x - value))


def test_a_bound_that_is_not_stated_is_refused_as_baseline() -> None:
    model = classifier(nn.Linear(5, 2), (5,), bounds=None)
    with pytest.raises(InvalidRequest, match="lower bound") as caught:
        run(model, torch.rand(1, 5), Targets.classes(torch.tensor([0])), baseline="lower")
    assert caught.value.violations[0].field == "params.baseline"


def test_the_trapezoid_rule_refuses_a_single_step() -> None:
    model = classifier(nn.Linear(5, 2), (5,))
    targets = Targets.classes(torch.tensor([0]))
    with pytest.raises(InvalidRequest, match="at least 2") as caught:
        run(model, torch.rand(1, 5), targets, quadrature="trapezoid", steps=1)
    assert caught.value.violations[0].field == "params.steps"


@pytest.mark.parametrize(("limit", "passes"), [(1, 10), (3, 10), (8, 5), (64, 1)])
def test_a_pass_takes_as_many_points_as_fit_and_changes_nothing(limit: int, passes: int) -> None:
    module = network()
    seen: list[int] = []
    model = classifier(module, (2, 6, 6))
    x, targets = torch.rand(3, 2, 6, 6, dtype=torch.float64), TARGETS["class"]
    job = Recorder(limit)
    whole = run(model, x, targets, steps=10)
    gradient = model.gradient

    def counted(x: Tensor, *rest: object) -> object:
        seen.append(len(x))
        return gradient(x, *rest)

    model.gradient = counted
    found = run(model, x, targets, job, steps=10)
    assert job.steps == [passes + 1]
    assert (len(seen), sum(seen)) == (passes, 30)
    assert max(seen) <= max(limit, 3)
    torch.testing.assert_close(found.attributions, whole.attributions, rtol=1e-12, atol=1e-14)


def test_rows_that_miss_more_than_five_percent_are_warned_about() -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)).double()
    with torch.no_grad():
        module[0].weight.fill_(1)
        module[0].bias.copy_(torch.tensor([-0.8]))
        module[2].weight.copy_(torch.tensor([[1.0], [-1]]))
    model = classifier(module, (1,))
    x = torch.tensor([[1.0], [0.5], [0.0]], dtype=torch.float64)
    targets = Targets.classes(torch.tensor([0, 1, 0]))
    job = Recorder()
    result = run(model, x, targets, job, steps=1, quadrature="riemann_midpoint")
    messages = {message.split(":")[0]: rows for rows, message in job.warnings}
    torch.testing.assert_close(
        result.convergence_delta, torch.tensor([-0.2, 0, 0], dtype=torch.float64)
    )
    assert messages.pop("every attribution is zero") == [True, True, True]
    assert list(messages.values()) == [[True, False, False]]
    fine = Recorder()
    run(model, x[:1], targets.take(slice(0, 1)), fine, steps=200)
    assert not fine.warnings
