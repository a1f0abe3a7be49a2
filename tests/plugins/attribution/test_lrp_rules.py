"""Each rule of LRP on one layer, against the formulas written out over explicit matrices."""

import pytest
import torch
from torch import nn

from interpret_plugins.attribution.lrp import LRP
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.testing import classifier
from tests.plugins.attribution.maps import run
from tests.plugins.attribution.relevance_by_hand import (
    EPSILON,
    GAMMA,
    LOWER,
    UPPER,
    by_formula,
    matrix,
)

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(7, 5), (7,)),
    "linear_without_bias": (nn.Linear(7, 5, bias=False), (7,)),
    "linear_over_tokens": (nn.Linear(4, 3), (2, 4)),
    "conv1d": (nn.Conv1d(2, 4, 3, stride=2, padding=1), (2, 7)),
    "conv2d": (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 4)),
    "grouped": (nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), (4, 5, 5)),
    "depthwise": (nn.Conv2d(3, 3, 2, groups=3, bias=False), (3, 4, 4)),
    "reflected": (nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), (1, 4, 4)),
    "conv3d": (nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "transposed": (nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1, groups=2), (4, 3, 3)),
    "transposed1d": (nn.ConvTranspose1d(2, 3, 4, stride=2, padding=1), (2, 5)),
}
RULES = [
    "zero", "epsilon", "gamma", "alpha1_beta0", "alpha2_beta1", "alpha3_beta2", "z_plus", "w2",
    "flat", "z_box",
]  # fmt: skip
UNSUITED = {  # z_box is for convolutions; mirrored values are inputs of their own to most rules
    **{name: {"z_box"} for name in LAYERS if name.startswith("linear")},
    "reflected": set(RULES) - {"zero", "epsilon"},
}


def settings(rule: str) -> dict[str, object]:
    if rule.startswith("alpha"):
        return {"rule": "alpha_beta", "alpha": float(rule[5]), "epsilon": EPSILON}
    if rule == "z_box":
        return {"rule": "epsilon", "first_layer": "z_box"}
    return {"rule": rule, "gamma": GAMMA, "epsilon": EPSILON}


@pytest.mark.parametrize(
    ("name", "rule"),
    [(name, rule) for name in LAYERS for rule in RULES if rule not in UNSUITED.get(name, ())],
)
def test_a_layer_follows_the_formula(name: str, rule: str) -> None:
    layer, shape = LAYERS[name]
    layer = layer.double()
    w, b = matrix(layer, shape)
    model = classifier(nn.Sequential(layer, nn.Flatten()), shape, bounds=(LOWER, UPPER))
    x = torch.rand(3, *shape, dtype=torch.float64) * (UPPER - LOWER) + LOWER
    values = layer(x).detach()
    direction = torch.randn_like(values)
    index = torch.zeros(3, 0, dtype=torch.int64)
    targets = Targets(TargetKind.DIRECTION, index, "0", direction)

    result = run(LRP, model, x, targets, **settings(rule))

    seeds = (values * direction).flatten(1)
    rows = zip(x.flatten(1), seeds, strict=True)
    expected = torch.stack([by_formula(rule, w, b, a, relevance) for a, relevance in rows])
    torch.testing.assert_close(result.attributions.flatten(1), expected, rtol=1e-9, atol=1e-12)
    delta = expected.sum(1) - seeds.sum(1)
    torch.testing.assert_close(result.conservation_delta, delta, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rule", ["zero", "gamma", "alpha2_beta1", "z_plus"])
def test_batch_norm_is_merged_with_the_layer_before_it(rule: str) -> None:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean):
            value.copy_(torch.randn(3))
        norm.running_var.copy_(torch.rand(3) + 0.5)
    layer = nn.Conv2d(2, 3, 3).double()
    network = nn.Sequential(layer, norm, nn.Flatten()).eval()
    w, b = matrix(network, (2, 4, 4))
    model = classifier(network, (2, 4, 4))
    x = torch.rand(2, 2, 4, 4, dtype=torch.float64)
    labels = torch.tensor([3, 8])
    seeds = torch.zeros(2, 12, dtype=torch.float64)
    seeds[[0, 1], labels] = network(x).detach()[[0, 1], labels]
    expected = [by_formula(rule, w, b, a, r) for a, r in zip(x.flatten(1), seeds, strict=True)]
    result = run(LRP, model, x, Targets.classes(labels), **settings(rule))
    torch.testing.assert_close(result.attributions.flatten(1), torch.stack(expected))


def test_a_batch_norm_before_the_layers_passes_relevance_unchanged() -> None:
    norm = nn.BatchNorm1d(4).double()
    norm.running_mean.copy_(torch.arange(4.0))
    last = nn.Linear(4, 3).double()
    x = torch.rand(2, 4, dtype=torch.float64)
    targets = Targets.classes(torch.tensor([2, 0]))
    whole = classifier(nn.Sequential(norm, last).eval(), (4,))
    alone = classifier(last, (4,))
    found = run(LRP, whole, x, targets, rule="epsilon").attributions
    normalised = norm.eval()(x).detach()
    expected = run(LRP, alone, normalised, targets, rule="epsilon").attributions
    torch.testing.assert_close(found, expected)
