"""LRP on whole networks: by hand, Captum, identities, file forms, refusals."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from interpret_plugins.attribution.lrp import LRP
from interpret_server.errors import FailedPrecondition, MissingCapability
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Capability
from interpret_server.testing import classifier
from tests.plugins.attribution.maps import Recorder, run
from tests.plugins.attribution.relevance_by_hand import (
    EPSILON,
    GAMMA,
    LOWER,
    UPPER,
    by_formula,
    matrix,
)
from tests.plugins.attribution.transformers import FORMS, load

SHAPE = (3, 8, 8)
LABELS = torch.tensor([0, 2, 1])


class Network(nn.Module):
    """Batch norm, grouped convolution, pooling, residual connection, concatenation."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(4) if bias else nn.Identity()
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=bias)
        self.last = nn.Linear(32, 3, bias=bias)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        low = functional.max_pool2d(self.relu(self.norm(self.first(x))), 2)
        high = functional.relu(self.second(low))
        joined = torch.cat([low + high, high], 1)
        return self.last(torch.flatten(functional.avg_pool2d(joined, 2), 1))


def network(bias: bool = True) -> Network:
    torch.manual_seed(2)
    module = Network(bias).eval().requires_grad_(False)
    if bias:
        for value in (module.norm.weight, module.norm.bias, module.norm.running_mean):
            value.copy_(torch.rand(4) + 0.2)
        module.norm.running_var.copy_(torch.rand(4) + 0.5)
    return module


def by_hand(module: Network, x: Tensor, label: int, rules: tuple[str, str, str]) -> Tensor:
    """One image's relevances, from the logit back; rules of first, other and linear layers."""
    first, other, dense = rules
    before = module.relu(module.norm(module.first(x[None])))
    low, where = functional.max_pool2d(before, 2, return_indices=True)
    high = module.relu(module.second(low))
    total = low + high
    pool = nn.AvgPool2d(2)
    joined = torch.cat([total, high], 1)
    pooled = pool(joined).flatten()

    def back(layer: nn.Module, a: Tensor, rule: str, relevance: Tensor) -> Tensor:
        w, b = matrix(layer, tuple(a.shape[1:]))
        return by_formula(rule, w, b, a.flatten(), relevance.flatten()).reshape(a.shape)

    relevance = functional.one_hot(torch.tensor(label), 3) * module(x[None])[0]
    relevance = back(module.last, pooled[None], dense, relevance)
    relevance = back(pool, joined, "epsilon", relevance)
    at_sum, at_high = relevance[:, :4], relevance[:, 4:]
    share = at_sum / (total + EPSILON)  # no value is negative
    at_high = at_high + high * share
    at_low = low * share + back(module.second, low, other, at_high)
    at_first = functional.max_unpool2d(at_low, where, 2)
    return back(nn.Sequential(module.first, module.norm), x[None], first, at_first)[0]


@pytest.mark.parametrize(
    ("rule", "first", "rules"),
    [
        ("epsilon_plus_flat", "as_named", ("flat", "z_plus", "epsilon")),
        ("epsilon_plus", "as_named", ("z_plus", "z_plus", "epsilon")),
        ("epsilon_gamma_box", "as_named", ("z_box", "gamma", "epsilon")),
        ("epsilon_gamma_box", "as_others", ("gamma", "gamma", "epsilon")),
        ("epsilon_alpha2_beta1", "as_named", ("alpha2_beta1", "alpha2_beta1", "epsilon")),
        ("epsilon_alpha2_beta1_flat", "w2", ("w2", "alpha2_beta1", "epsilon")),
        ("epsilon", "as_named", ("epsilon", "epsilon", "epsilon")),
        ("gamma", "flat", ("flat", "gamma", "gamma")),
    ],
)
def test_a_network_equals_the_rules_by_hand(
    rule: str, first: str, rules: tuple[str, str, str]
) -> None:
    module = network().double()
    model = classifier(module, SHAPE, bounds=(LOWER, UPPER))
    x = torch.rand(3, *SHAPE, dtype=torch.float64) * (UPPER - LOWER) + LOWER
    settings = {"rule": rule, "first_layer": first, "gamma": GAMMA, "epsilon": EPSILON}
    result = run(LRP, model, x, Targets.classes(LABELS), **settings)
    expected = [
        by_hand(module, one, int(label), rules) for one, label in zip(x, LABELS, strict=True)
    ]
    torch.testing.assert_close(result.attributions, torch.stack(expected), rtol=1e-9, atol=1e-12)
    chosen = module(x).gather(1, LABELS[:, None])[:, 0]
    delta = torch.stack(expected).flatten(1).sum(1) - chosen
    torch.testing.assert_close(result.conservation_delta, delta, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.logits, module(x))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["epsilon_plus_flat", "epsilon_gamma_box", "epsilon"])
def test_files_equal_the_eager_module(form: str, rule: str, tmp_path: Path) -> None:
    eager = classifier(network().double(), SHAPE, bounds=(0, 1))
    model = load(network(), form, tmp_path, SHAPE)
    x, targets = torch.rand(3, *SHAPE), Targets.classes(LABELS)
    expected = run(LRP, eager, x.double(), targets, rule=rule, epsilon=1e-3)
    result = run(LRP, model, x, targets, rule=rule, epsilon=1e-3)
    largest = float(expected.attributions.abs().max())
    torch.testing.assert_close(
        result.attributions.double(), expected.attributions, rtol=0, atol=1e-5 * largest
    )


def test_without_biases_the_rule_zero_is_input_times_gradient() -> None:
    model = classifier(network(bias=False).double(), SHAPE)
    x, targets = torch.rand(3, *SHAPE, dtype=torch.float64), Targets.classes(LABELS)
    result = run(LRP, model, x, targets, rule="zero")
    expected = x * model.gradient(x, targets).inputs
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(result.attributions, expected, rtol=1e-9, atol=1e-13)
    close = run(LRP, model, x, targets, rule="epsilon", epsilon=1e-12).attributions
    torch.testing.assert_close(close, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rule", ["zero", "gamma", "epsilon_plus", "epsilon_plus_flat"])
def test_without_biases_relevance_is_conserved(rule: str) -> None:
    model = classifier(network(bias=False).double(), SHAPE)
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    result = run(LRP, model, x, Targets.classes(LABELS), rule=rule, epsilon=1e-12)
    assert float(result.conservation_delta.abs().max()) < 1e-8
    assert float(result.attributions.flatten(1).sum(1).abs().max()) > 1e-3


def test_a_unit_inside_the_network_starts_from_its_value() -> None:
    module = network(bias=False).double()
    model = classifier(module, SHAPE)
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    channel = Targets(TargetKind.CHANNEL, torch.tensor([[1], [0], [3]]), "second")
    result = run(LRP, model, x, channel, rule="zero")
    values, _ = model.objective(x, channel)
    torch.testing.assert_close(result.attributions.flatten(1).sum(1), values.detach())
    assert result.logits is None


def sequential(bias: bool) -> nn.Sequential:
    """What Captum's rules are defined on: layers in a row, none of them used twice."""
    torch.manual_seed(4)
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=bias), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(6, 9, bias=bias), nn.ReLU(), nn.Linear(9, 3, bias=False),
    ).double().eval().requires_grad_(False)  # fmt: skip
    module[-1].weight.abs_()  # Captum's gamma rule is for outputs above zero
    return module


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "alpha_beta"])
def test_equals_captum_on_an_eager_module_of_layers_in_a_row(rule: str) -> None:
    from captum.attr import LRP as CaptumLRP
    from captum.attr._utils import lrp_rules

    made = {
        "epsilon": lambda: lrp_rules.EpsilonRule(1e-9),
        "gamma": lambda: lrp_rules.GammaRule(0.25),
        "alpha_beta": lrp_rules.Alpha1_Beta0_Rule,
    }[rule]
    module = sequential(bias=rule == "epsilon")  # which Captum leaves as they are in other rules
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1])
    assert bool((module(x) > 0).all())
    peer: Any = copy.deepcopy(module)
    for layer in peer:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.rule = made()
        elif isinstance(layer, nn.Flatten | nn.MaxPool2d):
            layer.rule = lrp_rules.EpsilonRule(1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum announces its hooks
        expected = CaptumLRP(peer).attribute(x.clone().requires_grad_(), target=labels)
    settings = {"rule": rule, "gamma": 0.25, "alpha": 1.0, "epsilon": 1e-9}
    found = run(LRP, classifier(module, SHAPE), x, Targets.classes(labels), **settings)
    torch.testing.assert_close(found.attributions, expected.detach(), rtol=1e-6, atol=1e-9)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.last, self.relu, self.relu2 = nn.Linear(5, 3, bias=False), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        return self.last(x + self.relu2(self.second(x)))


def test_captum_counts_a_residual_connection_twice_and_lrp_shares_it() -> None:
    from captum.attr import LRP as CaptumLRP

    torch.manual_seed(6)
    module = Residual().double().requires_grad_(False)
    x = torch.rand(3, 6, dtype=torch.float64)
    values = module(x).gather(1, LABELS[:, None])[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum announces its hooks
        peer = CaptumLRP(copy.deepcopy(module)).attribute(x.clone().requires_grad_(), target=LABELS)
    assert not torch.allclose(peer.detach().sum(1), values, rtol=0.1)
    found = run(LRP, classifier(module, (6,)), x, Targets.classes(LABELS), rule="zero")
    torch.testing.assert_close(found.attributions.sum(1), values)


class Squeezed(nn.Module):
    """A gate (Hu et al. 2018), and an activation that is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 4)
        self.last = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x * torch.sigmoid(x)
        gate = torch.sigmoid(self.gate(x.mean((2, 3))))
        return self.last((x * gate[:, :, None, None]).mean((2, 3)))


def test_a_gate_gets_nothing_or_half() -> None:
    module = Squeezed().double().eval()
    model = classifier(module, SHAPE)
    x, targets = torch.rand(2, *SHAPE, dtype=torch.float64), Targets.classes(LABELS[:2])
    signal = run(LRP, model, x, targets, rule="zero")
    assert float(signal.conservation_delta.abs().max()) < 1e-9

    first = module.first(x)
    swished = functional.silu(first)
    gate = torch.sigmoid(module.gate(swished.mean((2, 3))))[:, :, None, None]
    weights = module.last.weight[LABELS[:2], :, None, None] / first[0, 0].numel()
    at_first = (weights * swished * gate).detach()
    values = first.detach()
    expected = [
        by_formula("zero", *matrix(module.first, SHAPE), one.flatten(), relevance.flatten())
        for one, relevance in zip(x, at_first, strict=True)
    ]
    assert values.shape == at_first.shape
    torch.testing.assert_close(signal.attributions.flatten(1), torch.stack(expected))
    half = run(LRP, model, x, targets, rule="zero", products="uniform")
    assert not torch.allclose(half.attributions, signal.attributions)


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.logcumsumexp(self.first(x), 1))


def test_an_operator_without_a_rule_is_refused_by_name_before_anything_runs() -> None:
    model = classifier(Sorted(), (6,))
    with pytest.raises(FailedPrecondition, match=r"logcumsumexp.*layer 'logcumsumexp'"):
        run(LRP, model, torch.rand(1, 6), Targets.classes(LABELS[:1]))


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.fft.rfft(x).abs())


def test_complex_values_are_refused_and_not_passed_by() -> None:
    model = classifier(Spectrum(), (6,))
    with pytest.raises(FailedPrecondition, match="fft_rfft"):
        run(LRP, model, torch.rand(1, 6), Targets.classes(LABELS[:1]))


def test_the_parts_of_a_norm_share_by_their_squares() -> None:
    class Length(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.vector_norm(x, dim=2)

    x = torch.randn(2, 3, 4, dtype=torch.float64)
    module = Length()
    module.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    found = run(LRP, classifier(module, (3, 4)), x, Targets.classes(LABELS[:2]), rule="zero")
    for row, label in enumerate(LABELS[:2].tolist()):
        part = x[row, label]
        torch.testing.assert_close(found.attributions[row, label], part**2 / part.norm())


def test_z_box_is_refused_where_the_bounds_are_unknown() -> None:
    targets = Targets.classes(LABELS[:1])
    unbounded = classifier(network(), SHAPE, bounds=None)
    with pytest.raises(FailedPrecondition, match="bounds"):
        run(LRP, unbounded, torch.rand(1, *SHAPE), targets, rule="epsilon_gamma_box")
    late = classifier(nn.Sequential(nn.Tanh(), nn.Conv2d(3, 1, 8), nn.Flatten()), SHAPE)
    with pytest.raises(FailedPrecondition, match=r"layer '1'.*z_box"):
        run(LRP, late, torch.rand(1, *SHAPE), Targets.classes(LABELS[:1]), rule="epsilon_gamma_box")


def test_sums_near_zero_are_warned_about() -> None:
    module = nn.Linear(2, 2).double().requires_grad_(False)
    module.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    module.bias.copy_(torch.tensor([1e-4 - 2, 1.0]))
    network = nn.Sequential(module, nn.Linear(2, 1).double(), nn.Flatten())
    network[1].weight.data.fill_(1.0)
    network[1].bias.data.fill_(-3.0)
    job, x = Recorder(), torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    targets = Targets.classes(torch.tensor([1, 1]))
    found = run(LRP, classifier(network, (2,)), x, targets, job, rule="zero")
    assert abs(float(found.conservation_delta[0])) > 100 * abs(float(found.logits[0, 1]))
    assert [rows for rows, _ in job.warned] == [[True, False]]


class Chosen(nn.Module):
    """Takes another path for some inputs, which no graph holds."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 3.0):
            return self.last(x * 2)
        return self.last(x)


def test_a_model_without_a_graph_lacks_what_is_required(tmp_path: Path) -> None:
    model = load(Chosen().eval(), "scripted", tmp_path, (6,))
    assert not LRP.requires <= model.capabilities
    assert "cannot be read" in model.lacking[Capability.LAYERS]
    assert issubclass(MissingCapability, FailedPrecondition)


def test_a_target_of_zero_is_warned_about() -> None:
    module = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    module[0].weight.data.abs_().neg_()
    job = Recorder()
    result = run(
        LRP, classifier(module, (4,)), torch.rand(2, 4), Targets.classes(LABELS[[0, 2]]), job
    )
    assert not result.attributions.any()
    assert [rows for rows, _ in job.warned] == [[True, True]]
