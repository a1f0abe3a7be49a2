"""AttnLRP against its formulas in numpy, and on files with attention of every form."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from interpret_plugins.attribution.lrp import LRP
from interpret_plugins.attribution.transformer_lrp import TransformerLRP
from interpret_server.models.targets import Targets
from interpret_server.testing import classifier
from tests.plugins.attribution.maps import run
from tests.plugins.attribution.transformers import FORMS, IMAGE, load, vision

Array = NDArray[np.float64]
TOKENS, WIDTH, CLASSES = 5, 4, 3
LABELS = torch.tensor([0, 2, 1])


class OneLayer(nn.Module):
    """`mean over tokens of softmax(q k^T / sqrt(width) + mask) v`, after layer norm."""

    def __init__(self, fused: bool, masked: bool) -> None:
        super().__init__()
        self.fused = fused
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.last = nn.Linear(WIDTH, CLASSES, bias=False)
        ones = torch.ones(TOKENS, TOKENS, dtype=torch.bool)
        self.register_buffer("mask", ones.tril() if masked else ones)
        self.masked = masked

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.masked)
        else:
            scores = (q @ k.transpose(-2, -1)) / math.sqrt(WIDTH)
            mixed = scores.masked_fill(~self.mask, -math.inf).softmax(-1) @ v
        return self.last(mixed.mean(1))


def one_layer(fused: bool, masked: bool) -> OneLayer:
    torch.manual_seed(7)
    module = OneLayer(fused, masked).double().requires_grad_(False)
    module.norm.weight.copy_(torch.rand(WIDTH) + 0.5)
    module.norm.bias.copy_(torch.randn(WIDTH))
    return module


def by_hand(module: OneLayer, x: Array, label: int, normalisation: str) -> Array:
    """The rules of Achtibat et al. 2024, an index at a time; `(tokens, width)`."""
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    deviation = np.sqrt(x.var(axis=1, keepdims=True) + module.norm.eps)
    centred = x - x.mean(axis=1, keepdims=True)
    y = centred / deviation * weights["norm.weight"] + weights["norm.bias"]
    q, k, v = (y @ weights[f"{name}.weight"].T for name in "qkv")
    raw = q @ k.T
    scores = np.where(weights["mask"], raw / math.sqrt(WIDTH), -np.inf)
    s = np.exp(scores - scores.max(axis=1, keepdims=True))
    s /= s.sum(axis=1, keepdims=True)
    mixed = s @ v
    mean = mixed.mean(axis=0)

    at_mean = mean * weights["last.weight"][label]
    at_mixed = mixed / TOKENS / mean * at_mean
    at_s, at_v = np.zeros_like(s), np.zeros_like(v)
    for i in range(TOKENS):
        for j in range(TOKENS):
            for p in range(WIDTH):
                part = s[i, j] * v[j, p] * at_mixed[i, p] / (2 * mixed[i, p])
                at_s[i, j] += part
                at_v[j, p] += part
    at_scores = np.zeros_like(s)
    for i, j in zip(*np.nonzero(weights["mask"]), strict=True):
        at_scores[i, j] = scores[i, j] * (at_s[i, j] - s[i, j] * at_s[i].sum())
    at_q, at_k = np.zeros_like(q), np.zeros_like(k)
    for i, j in zip(*np.nonzero(weights["mask"]), strict=True):
        for p in range(WIDTH):
            part = q[i, p] * k[j, p] * at_scores[i, j] / (2 * raw[i, j])
            at_q[i, p] += part
            at_k[j, p] += part
    at_y = np.zeros_like(y)
    for name, z, relevance in (("q", q, at_q), ("k", k, at_k), ("v", v, at_v)):
        at_y += y * ((relevance / z) @ weights[f"{name}.weight"])
    if normalisation == "identity":
        return at_y
    slope = np.eye(WIDTH) - 1 / WIDTH
    ratio = at_y / y * weights["norm.weight"] / deviation
    return x * (ratio @ slope)


@pytest.mark.parametrize("normalisation", ["identity", "linear"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "causal"])
@pytest.mark.parametrize("fused", [False, True], ids=["written", "fused"])
def test_one_layer_of_attention_equals_the_formulas(
    fused: bool, masked: bool, normalisation: str
) -> None:
    module = one_layer(fused, masked)
    x = torch.randn(3, TOKENS, WIDTH, dtype=torch.float64)
    model = classifier(module, (TOKENS, WIDTH))
    settings = {"epsilon": 0.0, "normalisation": normalisation}
    found = run(TransformerLRP, model, x, Targets.classes(LABELS), **settings)
    rows = zip(x.numpy(), LABELS.tolist(), strict=True)
    expected = np.stack([by_hand(module, one, label, normalisation) for one, label in rows])
    np.testing.assert_allclose(found.attributions.numpy(), expected, rtol=1e-8, atol=1e-10)


def test_values_alone_get_relevance_where_attention_is_a_gate() -> None:
    module = one_layer(fused=True, masked=False)
    x = torch.randn(3, TOKENS, WIDTH, dtype=torch.float64)
    model = classifier(module, (TOKENS, WIDTH))
    settings = {"rule": "zero", "normalisation": "identity"}
    found = run(LRP, model, x, Targets.classes(LABELS), **settings)
    y = module.norm(x)
    weights = (module.q(y) @ module.k(y).transpose(1, 2) / math.sqrt(WIDTH)).softmax(-1)
    reached = weights.mean(1)  # of each token's values in the mean
    slope = module.last.weight[LABELS] @ module.v.weight
    expected = y * reached[:, :, None] * slope[:, None]
    torch.testing.assert_close(found.attributions, expected)


@pytest.mark.parametrize("fused", [False, True], ids=["written", "fused"])
@pytest.mark.parametrize("form", FORMS)
def test_files_equal_the_eager_module_in_double_precision(
    form: str, fused: bool, tmp_path: Path
) -> None:
    eager = classifier(vision().double(), IMAGE, input_layout="CHW")
    model = load(vision(fused), form, tmp_path, IMAGE)
    x, targets = torch.rand(3, *IMAGE), Targets.classes(LABELS)
    for settings in ({}, {"linear_rule": "gamma", "normalisation": "linear"}):
        expected = run(TransformerLRP, eager, x.double(), targets, **settings)
        found = run(TransformerLRP, model, x, targets, **settings)
        largest = float(expected.attributions.abs().max())
        difference = (found.attributions.double() - expected.attributions).abs().max()
        assert float(difference) < 1e-4 * largest
        assert largest > 1e-3


class Normalised(nn.Module):
    """Layer norm by the module, or written out in one of two ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.norm = how, nn.LayerNorm(WIDTH)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "module":
            return self.last(self.norm(x).mean(1))
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True) + 1e-5
        if self.how == "divided":
            centred = centred / variance.sqrt()
        else:
            centred = centred * torch.rsqrt(variance)
        return self.last((centred * self.norm.weight + self.norm.bias).mean(1))


@pytest.mark.parametrize("normalisation", ["identity", "linear"])
@pytest.mark.parametrize("how", ["divided", "multiplied"])
def test_layer_norm_that_is_written_out_follows_the_rule_of_the_module(
    how: str, normalisation: str
) -> None:
    torch.manual_seed(3)
    module = Normalised("module").double().requires_grad_(False)
    module.norm.weight.copy_(torch.rand(WIDTH) + 0.5)
    module.norm.bias.copy_(torch.randn(WIDTH))
    written = Normalised(how).double().requires_grad_(False)
    written.load_state_dict(module.state_dict())
    x = torch.randn(3, TOKENS, WIDTH, dtype=torch.float64)
    found, expected = (
        run(
            TransformerLRP,
            classifier(one, (TOKENS, WIDTH)),
            x,
            Targets.classes(LABELS),
            epsilon=0.0,
            normalisation=normalisation,
        )
        for one in (written, module)
    )
    torch.testing.assert_close(found.attributions, expected.attributions)


def test_what_is_missing_from_the_sum_is_reported() -> None:
    module = one_layer(fused=True, masked=False)
    x = torch.randn(3, TOKENS, WIDTH, dtype=torch.float64)
    found = run(TransformerLRP, classifier(module, (TOKENS, WIDTH)), x, Targets.classes(LABELS))
    missing = found.attributions.flatten(1).sum(1) - module(x).gather(1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(found.conservation_delta, missing)
