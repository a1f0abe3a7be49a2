"""SmoothGrad: a float64 re-implementation with the same noise, Captum, identities."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from captum.attr import NoiseTunnel
from captum.attr import Saliency as CaptumSaliency
from torch import Tensor, nn

from interpret_plugins.attribution.deconvnet import Deconvnet
from interpret_plugins.attribution.grad_cam import GradCAM
from interpret_plugins.attribution.guided_backprop import GuidedBackprop
from interpret_plugins.attribution.integrated_gradients import IntegratedGradients
from interpret_plugins.attribution.saliency import Saliency
from interpret_plugins.attribution.smoothgrad import SmoothGrad, SmoothGradParams, SmoothGradResult
from interpret_server.engine.methods import Methods
from interpret_server.errors import InvalidRequest, MissingCapability
from interpret_server.models.relu_rules import ReluRule
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Batch, Classifier, Job, Plugin
from interpret_server.registry import Registry
from interpret_server.testing import classifier

SEEDS = (11, 5, 2**40)
METHODS = ("saliency", "input_x_gradient", "guided_backprop", "deconvnet")


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
    model: Classifier, x: Tensor, targets: Targets, job: Job | None = None, **params: object
) -> SmoothGradResult:
    made = SmoothGradParams.model_validate(params)
    plugin = SmoothGrad()
    plugin.check(model, made)
    return plugin.run(model, Batch(x, targets, SEEDS[: len(x)]), made, job or Job())


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3)
    ).double()


def values_by_hand(
    model: Classifier, x: Tensor, targets: Targets, method: str, samples: int, std: float
) -> Tensor:
    """The method at each noisy input, `(samples, N, ...)`, one row and sample after the other."""
    rules = {"guided_backprop": ReluRule.GUIDED, "deconvnet": ReluRule.DECONVNET}
    rule = rules.get(method, ReluRule.PLAIN)
    found = []
    for sample in range(samples):
        for row in range(len(x)):
            single = Batch(
                x[row : row + 1], targets.take(slice(row, row + 1)), SEEDS[row : row + 1]
            )
            noisy = single.inputs + std * single.normal(sample)
            gradient = model.gradient(noisy, single.targets, rule).inputs
            found.append(noisy * gradient if method == "input_x_gradient" else gradient)
    return torch.cat(found).unflatten(0, (samples, len(x)))


@pytest.mark.parametrize("method", METHODS)
def test_equals_the_formulas_written_out_with_the_same_noise(method: str) -> None:
    model = classifier(network(), (2, 6, 6), bounds=(-1, 3))
    x, targets = torch.randn(3, 2, 6, 6, dtype=torch.float64), Targets.classes(torch.arange(3))
    values = values_by_hand(model, x, targets, method, 7, 0.15 * 4)
    expected = {
        "mean": values.mean(0),
        "squared": values.square().mean(0),
        "variance": (values - values.mean(0)).square().mean(0),
    }
    for kind, value in expected.items():
        assert value.abs().max() > 0
        found = run(model, x, targets, method=method, kind=kind, samples=7)
        torch.testing.assert_close(found.attributions, value, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(found.logits, model(x))


def test_variance_is_the_mean_square_less_the_squared_mean() -> None:
    model = classifier(network(), (2, 6, 6))
    x, targets = torch.randn(3, 2, 6, 6, dtype=torch.float64), Targets.classes(torch.arange(3))
    mean, squared, variance = (
        run(model, x, targets, kind=kind, samples=9).attributions
        for kind in ("mean", "squared", "variance")
    )
    torch.testing.assert_close(variance, squared - mean.square(), rtol=1e-9, atol=1e-14)


def test_without_noise_it_is_the_method_itself() -> None:
    model = classifier(network(), (2, 6, 6))
    x, targets = torch.randn(3, 2, 6, 6, dtype=torch.float64), Targets.classes(torch.arange(3))
    gradient = model.gradient(x, targets).inputs
    found = run(model, x, targets, noise=0, samples=5)
    torch.testing.assert_close(found.attributions, gradient)
    assert run(model, x, targets, noise=0, kind="variance", samples=5).attributions.max() < 1e-25


def test_a_linear_classifier_keeps_its_weights_under_noise() -> None:
    layer = nn.Linear(6, 3).double()
    x, labels = torch.rand(3, 6, dtype=torch.float64), torch.tensor([0, 2, 1])
    model = classifier(layer, (6,))
    found = run(model, x, Targets.classes(labels), noise=2).attributions
    torch.testing.assert_close(found, layer.weight[labels])
    job = Recorder()
    variance = run(model, x, Targets.classes(labels), job, kind="variance").attributions
    assert not variance.any()
    assert [rows for rows, _ in job.warnings] == [[True] * 3]


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [("mean", "smoothgrad"), ("squared", "smoothgrad_sq"), ("variance", "vargrad")],
)
def test_agrees_with_captum_within_the_monte_carlo_error(kind: str, theirs: str) -> None:
    torch.manual_seed(0)
    module, samples, std = network(), 4000, 0.5
    x, labels = torch.randn(1, 2, 6, 6, dtype=torch.float64), torch.tensor([2])
    expected = NoiseTunnel(CaptumSaliency(module)).attribute(
        x,
        nt_type=theirs,
        nt_samples=samples,
        nt_samples_batch_size=500,
        stdevs=std,
        target=labels,
        abs=False,
    )
    model = classifier(module, (2, 6, 6))
    found = run(model, x, Targets.classes(labels), kind=kind, samples=samples, noise=std)
    values = values_by_hand(model, x, Targets.classes(labels), "saliency", 500, std)
    terms = {
        "mean": values,
        "squared": values.square(),
        "variance": (values - values.mean(0)).square(),
    }
    error = terms[kind].std(0) * (2 / samples) ** 0.5  # of the difference of two such means
    away = (found.attributions - expected).abs() / error
    assert float(away.max()) < 5
    assert float(away.square().mean()) < 2


def test_a_pass_takes_as_many_samples_as_fit_and_changes_nothing() -> None:
    model = classifier(network(), (2, 6, 6))
    x, targets = torch.randn(3, 2, 6, 6, dtype=torch.float64), Targets.classes(torch.arange(3))
    whole = run(model, x, targets, samples=10).attributions
    for limit, passes in ((1, 10), (3, 10), (8, 5), (64, 1)):
        job = Recorder(limit)
        found = run(model, x, targets, job, samples=10).attributions
        assert job.steps == [passes]
        torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-14)


def test_noisy_inputs_are_clipped_only_where_asked_for() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().cumsum(1)

    model = classifier(Square(), (2,), bounds=(0, 1))
    x, targets = torch.ones(3, 2), Targets.classes(torch.tensor([1, 1, 1]))
    clipped = run(model, x, targets, clip=True, noise=1, samples=40).attributions
    free = run(model, x, targets, noise=1, samples=40, kind="squared").attributions
    assert 0 < float(clipped.min())
    assert float(clipped.max()) < 2  # the gradient is 2 x
    assert float(free.max()) > 4


def test_a_unit_inside_the_network_is_a_target_too() -> None:
    model = classifier(network(), (2, 6, 6))
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    channel = Targets(TargetKind.CHANNEL, torch.tensor([[1], [3]]), "1")
    found = run(model, x, channel, samples=4)
    expected = values_by_hand(model, x, channel, "saliency", 4, 0.15).mean(0)
    torch.testing.assert_close(found.attributions, expected)
    assert found.logits is None


@pytest.mark.parametrize(
    ("plugin", "name", "params"),
    [
        (IntegratedGradients, "integrated_gradients", {"steps": 5, "baseline": "mean"}),
        (Saliency, "saliency", {"absolute": True, "channels": "max"}),
        (GradCAM, "grad_cam", {}),
    ],
)
@pytest.mark.parametrize("limit", [1, 8, 64])
def test_any_method_of_gradients_is_averaged_with_its_parameters(
    plugin: type[Plugin[Any, Any]], name: str, params: dict[str, Any], limit: int
) -> None:
    model = classifier(network(), (2, 6, 6), input_layout="CHW")
    x, targets = torch.randn(3, 2, 6, 6, dtype=torch.float64), Targets.classes(torch.arange(3))
    batch, made = Batch(x, targets, SEEDS), plugin.params_type.model_validate(params)
    values = [
        plugin()
        .run(model, Batch(x + 0.15 * batch.normal(sample), targets, SEEDS), made, Job())
        .attributions
        for sample in range(6)
    ]
    method = {"plugin": name, "params": params}
    found = run(model, x, targets, Recorder(limit), method=method, samples=6)
    torch.testing.assert_close(
        found.attributions, torch.stack(values).mean(0), rtol=1e-9, atol=1e-12
    )


def test_saliency_keeps_its_sign_unless_it_is_told_not_to() -> None:
    for given in ("saliency", {"plugin": "saliency", "params": {"channels": "sum"}}):
        made = SmoothGradParams.model_validate({"method": given})
        assert made.method.params["absolute"] is False
    assert SmoothGradParams().method.params == {"absolute": False}
    unsigned = {"plugin": "saliency", "params": {"absolute": True}}
    assert SmoothGradParams.model_validate({"method": unsigned}).method.params["absolute"] is True


def test_a_method_without_gradients_is_refused() -> None:
    model = classifier(network(), (2, 6, 6))
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    with pytest.raises(InvalidRequest, match="occlusion needs no gradients") as caught:
        run(model, x, Targets.classes(torch.tensor([0])), method="occlusion")
    assert caught.value.violations[0].field == "params.method.plugin"


def test_a_network_without_rectifiers_is_refused_for_their_rules() -> None:
    model = classifier(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), (4,), bounds=None)
    registry = Registry()
    for method in (GuidedBackprop, Deconvnet):
        registry.add(method, "tests")
    plugins = {item.plugin.name: item for item in registry}
    for name in plugins:
        made = SmoothGradParams.model_validate({"method": name})
        with pytest.raises(MissingCapability, match="rectifiers") as caught:
            Methods(model, plugins, frozenset(), {}).resolve(SmoothGrad(), made)
        assert caught.value.violations[0].field == "params.method.plugin"


def test_noisy_inputs_cannot_be_clipped_without_bounds() -> None:
    model = classifier(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), (4,), bounds=None)
    with pytest.raises(InvalidRequest) as caught:
        run(model, torch.rand(1, 4), Targets.classes(torch.tensor([0])), clip=True)
    assert caught.value.violations[0].field == "params.clip"
