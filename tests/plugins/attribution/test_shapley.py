"""Kernel SHAP and Shapley sampling give Shapley values, exactly or within their own error."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from captum.attr import KernelShap, ShapleyValues, ShapleyValueSampling
from perturbing import SAVERS, SHAPE, Counted, Recorder, images, loaded, network, run
from torch import Tensor, nn

from interpret_plugins.attribution.kernel_shap import KernelSHAP
from interpret_plugins.attribution.shapley_sampling import ShapleySampling
from interpret_plugins.attribution.shapley_values import Sampled
from interpret_server.errors import InvalidRequest
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Classifier
from interpret_server.testing import classifier

LABELS = torch.tensor([1, 3, 0])
METHODS = [KernelSHAP, ShapleySampling]


def groups(rows: int, shape: tuple[int, ...], count: int) -> Tensor:
    """Random features without a gap, others in every row."""
    source = torch.Generator().manual_seed(3)
    return torch.randint(0, count, (rows, *shape), generator=source)


def brute_force(
    net: nn.Module, x: Tensor, label: int, features: Tensor, fill: float, probability: bool = False
) -> Tensor:
    """Shapley values `(M,)` of one float64 row, by the mean over all orders."""
    count = int(features.max()) + 1

    def score(kept: tuple[int, ...]) -> Tensor:
        shown = torch.isin(features, torch.tensor(kept, dtype=torch.int64))
        logits = net(torch.where(shown, x, fill)[None])
        return (logits.softmax(1) if probability else logits)[0, label].detach()

    scores = {
        kept: score(kept)
        for size in range(count + 1)
        for kept in itertools.combinations(range(count), size)
    }
    total = torch.zeros(count, dtype=torch.float64)
    for order in itertools.permutations(range(count)):
        for turn, feature in enumerate(order):
            before = tuple(sorted(order[:turn]))
            total[feature] += scores[tuple(sorted((*before, feature)))] - scores[before]
    return total / math.factorial(count)


def small(features: int = 8) -> tuple[nn.Module, Classifier]:
    """A network of few features that bends a lot."""
    source = torch.Generator().manual_seed(8)
    net = nn.Sequential(nn.Linear(features, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            values = torch.randn(parameter.shape, generator=source, dtype=torch.float64)
            parameter.copy_(1.5 * values)
    return net, classifier(net, (features,))


def rows_alike(count: int, features: int = 8, seed: int = 9) -> Tensor:
    """One row many times, of which each has a seed of its own."""
    source = torch.Generator().manual_seed(seed)
    return torch.rand(1, features, generator=source, dtype=torch.float64).expand(count, -1)


def one_of_each(found: Any, row: int) -> Tensor:
    """The value of each feature of a row."""
    numbers = found.features[row].flatten()
    places = [int((numbers == number).nonzero()[0]) for number in range(int(numbers.max()) + 1)]
    return found.attributions[row].flatten()[places]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("saver", SAVERS)
def test_files_of_every_form_give_the_mean_over_all_orders(
    method: type[Any], saver: str, tmp_path: Path
) -> None:
    net, x, features = network(), images(3), groups(3, SHAPE, 5)
    model = loaded(net, saver, tmp_path)
    tensors = {"features": features.float()}
    found = run(method(), model, x, Targets.classes(LABELS), None, tensors, fill=0.25)
    assert torch.equal(found.features, features)
    torch.testing.assert_close(found.logits, net(x))
    for row, label in enumerate(LABELS.tolist()):
        expected = brute_force(network().double(), x[row].double(), label, features[row], 0.25)
        torch.testing.assert_close(
            found.attributions[row], expected[features[row]].float(), rtol=0, atol=1e-5
        )
        part = slice(row, row + 1)
        peer = ShapleyValues(net).attribute(
            x[part], target=label, feature_mask=features[part], baselines=0.25
        )
        torch.testing.assert_close(found.attributions[part], peer, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_eight_features_are_enumerated_exactly(method: type[Any]) -> None:
    net, model = small(7)
    x = rows_alike(1, 7)
    for score in ("logit", "probability"):
        found = run(method(), model, x, Targets.classes(LABELS[:1]), features="values", score=score)
        expected = brute_force(net, x[0], 1, torch.arange(7), 0.5, score == "probability")
        torch.testing.assert_close(found.attributions[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("few", [False, True])
def test_a_linear_model_has_the_falls_of_its_features(method: type[Any], few: bool) -> None:
    layer = nn.Linear(12, 4).double()
    model = classifier(layer, (12,), bounds=(-1, 3))
    x = torch.rand(3, 12, dtype=torch.float64)
    budget = {KernelSHAP: {"samples": 80}, ShapleySampling: {"permutations": 4}}[method]
    found = run(
        method(), model, x, Targets.classes(LABELS), features="values", fill=0.5,
        **budget if few else {},
    )  # fmt: skip
    torch.testing.assert_close(found.attributions, (layer.weight[LABELS] * (x - 0.5)).detach())
    base = layer(torch.full_like(x, 0.5)).gather(1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(found.base_value, base.detach())
    if method is ShapleySampling:
        assert not found.standard_error.any()


@pytest.mark.parametrize(
    ("method", "params"),
    [(KernelSHAP, {"samples": count}) for count in (2, 3, 17, 40, 101)]
    + [
        (ShapleySampling, {"permutations": 5, "antithetic": False}),
        (ShapleySampling, {"permutations": 4}),
    ],
)
def test_values_sum_to_the_difference_whatever_the_budget(
    method: type[Any], params: dict[str, Any]
) -> None:
    net, model = small()
    x = rows_alike(3)
    found = run(method(), model, x, Targets.classes(LABELS % 3), features="values", **params)
    difference = net(x) - net(torch.full_like(x, 0.5))
    expected = difference.gather(1, (LABELS % 3)[:, None])[:, 0].detach()
    torch.testing.assert_close(found.attributions.sum(1), expected, rtol=0, atol=1e-12)
    whole = net(x).gather(1, (LABELS % 3)[:, None])[:, 0].detach()
    torch.testing.assert_close(found.attributions.sum(1) + found.base_value, whole)


@pytest.mark.parametrize("antithetic", [False, True])
def test_sampled_orders_are_right_within_their_standard_error(antithetic: bool) -> None:
    _, model = small()
    x, targets = rows_alike(60), Targets.classes(torch.ones(60))
    exact = run(KernelSHAP(), model, x[:1], targets.take(slice(1)), features="values")
    assert float(exact.coalitions[0]) == 2**8
    found = run(
        ShapleySampling(), model, x, targets,
        features="values", permutations=30, antithetic=antithetic,
    )  # fmt: skip
    away = found.attributions - exact.attributions
    deviations = away / found.standard_error
    assert 0.85 < float(deviations.square().mean().sqrt()) < 1.2
    # The mean over the seeds has a standard error of its own.
    together = found.standard_error.square().mean(0).sqrt() / math.sqrt(60)
    assert float((away.mean(0) / together).abs().max()) < 4


def test_reversed_orders_make_errors_smaller() -> None:
    _, model = small()
    x, targets = rows_alike(40, seed=1), Targets.classes(torch.ones(40))
    exact = run(KernelSHAP(), model, x[:1], targets.take(slice(1)), features="values")
    errors = [
        run(
            ShapleySampling(), model, x, targets,
            features="values", permutations=20, antithetic=antithetic,
        ).attributions.sub(exact.attributions).square().mean()
        for antithetic in (False, True)
    ]  # fmt: skip
    assert errors[1] < 0.5 * errors[0]


def test_kernel_shap_converges_to_the_exact_values() -> None:
    _, model = small(10)
    x, targets = rows_alike(30, 10), Targets.classes(torch.ones(30))
    exact = run(KernelSHAP(), model, x[:1], targets.take(slice(1)), features="values").attributions
    errors = []
    for samples in (60, 240, 900):
        found = run(KernelSHAP(), model, x, targets, features="values", samples=samples)
        away = found.attributions - exact
        errors.append(float(away.square().mean().sqrt()))
        spread = away.std(0) / math.sqrt(30)
        assert float((away.mean(0).abs() / spread).max()) < 4.5
    assert errors[0] > 1.5 * errors[1] > 0
    assert errors[1] > 1.5 * errors[2]


def test_orders_are_averaged_as_captum_does(monkeypatch: pytest.MonkeyPatch) -> None:
    net, model = network(), classifier(network(), SHAPE, input_layout="CHW")
    x, features = images(1), groups(1, SHAPE, 12)
    found = run(
        ShapleySampling(), model, x, Targets.classes(LABELS[:1]), None,
        {"features": features.float()}, permutations=6, fill="zero",
    )  # fmt: skip
    drawn = Sampled(12, 6, True, 0, x)
    orders = torch.cat([drawn.orders(number) for number in range(3)])
    peer = ShapleyValueSampling(net)
    monkeypatch.setattr(peer, "permutation_generator", lambda *_: orders.tolist())
    expected = peer.attribute(x, target=1, feature_mask=features, n_samples=6)
    torch.testing.assert_close(found.attributions, expected, rtol=0, atol=2e-6)


def test_captums_sampled_regression_agrees_within_its_error() -> None:
    net, model = small(6)
    x = rows_alike(1, 6)
    found = run(KernelSHAP(), model, x, Targets.classes(LABELS[:1]), features="values", fill="zero")
    torch.manual_seed(2)
    draws = [KernelShap(net).attribute(x, target=1, n_samples=300) for _ in range(6)]
    peers = torch.cat(draws)
    away = (peers.mean(0) - found.attributions[0]).abs()
    assert float((away / (peers.std(0) / math.sqrt(6))).max()) < 5


@pytest.mark.parametrize("method", METHODS)
def test_rows_may_have_different_numbers_of_features_or_none(method: type[Any]) -> None:
    layer = nn.Linear(5, 3).double()
    model, job = classifier(layer, (5,)), Recorder()
    x = torch.rand(4, 5, dtype=torch.float64)
    features = torch.tensor(
        [[7, 7, -1, 7, 2], [900, -3, 20, 11, 12], [-1, -1, -1, -1, -1], [4, 4, 4, 4, 4]]
    )
    targets = Targets.classes(torch.tensor([2, 0, 1, 1]))
    found = run(method(), model, x, targets, job, {"features": features}, fill="zero")
    parts = (layer.weight[targets.labels] * x).detach()
    expected = torch.zeros_like(parts)
    for row in range(4):
        for number in set(features[row].tolist()) - {-1, -3}:
            mine = features[row] == number
            expected[row, mine] = parts[row, mine].sum()
    torch.testing.assert_close(found.attributions, expected)
    assert [rows for rows, _ in job.warnings] == [[False, False, True, False]]


@pytest.mark.parametrize("method", METHODS)
def test_units_of_a_layer_are_measured_by_their_value(method: type[Any]) -> None:
    net, x, features = network(), images(1), groups(1, SHAPE, 4)
    model = classifier(net, SHAPE, input_layout="CHW")
    neuron = Targets(TargetKind.NEURON, torch.tensor([[3, 1, 2]]), "2")
    found = run(method(), model, x, neuron, None, {"features": features}, fill="zero")
    expected = ShapleyValues(net[:3]).attribute(x, target=(3, 1, 2), feature_mask=features)
    torch.testing.assert_close(found.attributions, expected, rtol=0, atol=2e-6)
    assert found.logits is None


@pytest.mark.parametrize(
    ("method", "params", "coalitions"),
    [(KernelSHAP, {"samples": 90}, 91), (ShapleySampling, {"permutations": 10}, 1 + 10 * 7)],
)
def test_passes_never_hold_more_rows_than_the_job_allows(
    method: type[Any], params: dict[str, Any], coalitions: int
) -> None:
    _, model = small()
    x, targets = rows_alike(3), Targets.classes(LABELS % 3)
    whole = run(method(), model, x, targets, features="values", **params)
    seen, job = Counted(model), Recorder(max_rows=7)
    apart = run(method(), model, x, targets, job, features="values", **params)
    passes = -(-3 * coalitions // 7)
    assert job.totals == [1 + passes]
    assert job.done == 1 + passes
    assert seen.rows == [3] + [7] * (passes - 1) + [3 * coalitions - 7 * (passes - 1)]
    torch.testing.assert_close(apart.attributions, whole.attributions)


@pytest.mark.parametrize(
    ("method", "params"),
    [(KernelSHAP, {"samples": 60}), (ShapleySampling, {"permutations": 8})],
)
def test_what_is_drawn_depends_on_the_rows_seed_alone(
    method: type[Any], params: dict[str, Any]
) -> None:
    _, model = small(10)
    x, targets = rows_alike(3, 10), Targets.classes(torch.ones(3))
    found = run(method(), model, x, targets, features="values", **params).attributions
    again = run(method(), model, x[:2], targets.take(slice(2)), features="values", **params)
    torch.testing.assert_close(again.attributions, found[:2], rtol=0, atol=1e-12)
    assert float((found[0] - found[1]).abs().max()) > 1e-3


class Watcher(Recorder):
    def __init__(self) -> None:
        super().__init__(max_rows=16)
        self.shown: list[Tensor] = []

    def preview(self, **tensors: Tensor | Callable[[], Tensor]) -> None:
        given = tensors["attributions"]
        self.shown.append((given() if callable(given) else given).clone())


@pytest.mark.parametrize("method", METHODS)
def test_running_estimates_are_shown(method: type[Any]) -> None:
    _, model = small()
    job, x = Watcher(), rows_alike(2)
    params = {ShapleySampling: {"permutations": 20}, KernelSHAP: {}}[method]
    found = run(
        method(), model, x, Targets.classes(LABELS[:2] % 3), job, features="values", **params
    )
    assert torch.equal(job.shown[-1], found.attributions)
    assert not job.shown[0][1].any()
    first = next(shown for shown in job.shown if shown[0].any())
    assert float(first[0].sum()) == pytest.approx(float(found.attributions[0].sum()))
    assert len(job.shown) > 10


def test_too_few_samples_are_warned_about() -> None:
    _, model = small()
    job, x = Recorder(), rows_alike(2)
    run(KernelSHAP(), model, x, Targets.classes(LABELS[:2] % 3), job, features="values", samples=6)
    assert [rows for rows, _ in job.warnings] == [[True, True]]
    assert "too few samples" in job.warnings[0][1]


def test_large_standard_errors_are_warned_about() -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.prod(1), x.sum(1)], 1)

    model, job = classifier(Product(), (12,)), Recorder()
    targets = Targets.classes(torch.tensor([0, 1]))
    run(
        ShapleySampling(), model, torch.ones(2, 12), targets, job,
        features="values", permutations=4, fill="zero",
    )  # fmt: skip
    assert [rows for rows, _ in job.warnings] == [[True, False]]
    assert "standard errors" in job.warnings[0][1]


def test_budgets_that_are_too_large_are_refused() -> None:
    wide = classifier(nn.Linear(1200, 3), (1200,))
    x, targets = torch.rand(1, 1200), Targets.classes(LABELS[:1])
    with pytest.raises(InvalidRequest, match="1200 features in a row; at most 1000"):
        run(KernelSHAP(), wide, x, targets, features="values")
    with pytest.raises(InvalidRequest, match="1000 orders of 1200 features are 1199000"):
        run(ShapleySampling(), wide, x, targets, features="values", permutations=1000)
    with pytest.raises(InvalidRequest, match="an even number"):
        run(ShapleySampling(), wide, x, targets, permutations=5)


@pytest.mark.shared_data
def test_both_methods_agree_on_photos(shared_data: Path) -> None:
    path = shared_data / "models/cifar10/akamaster_resnet20_rgb01.pt"
    manifest = Manifest.model_validate({"shape": (3, 32, 32), "bounds": (0, 1)})
    model = load_classifier("net", path, manifest, device=torch.device("cpu")).classifier
    photos = numpy.load(shared_data / "images/cifar10_exact.npz")
    x, labels = torch.from_numpy(photos["x"][:2]).float() / 255, torch.from_numpy(photos["y"][:2])
    targets, cut = Targets.classes(labels), {"features": "superpixels", "segments": 30}
    kernel = run(KernelSHAP(), model, x, targets, **cut, samples=300)
    orders = run(ShapleySampling(), model, x, targets, **cut, permutations=12)
    assert int(orders.features.max()) > 10
    logits = targets.select(model(x))
    for row in range(2):
        for found in (kernel, orders):
            total = one_of_each(found, row).sum() + found.base_value[row]
            assert float(total) == pytest.approx(float(logits[row]), abs=1e-4)
        away = (kernel.attributions - orders.attributions)[row] / orders.standard_error[row]
        assert float(away.square().mean().sqrt()) < 2
