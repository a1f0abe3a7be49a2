"""DeepLIFT SHAP, GradientSHAP and expected gradients: oracles, sampling, baselines, refusals."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from captum.attr import DeepLiftShap as CaptumDeepLiftShap
from torch import Tensor, nn

from interpret_plugins.attribution.backgrounds import SAMPLES
from interpret_plugins.attribution.deep_lift import DeepLift
from interpret_plugins.attribution.deep_lift_shap import DeepLiftShap
from interpret_plugins.attribution.expected_gradients import ExpectedGradients
from interpret_plugins.attribution.gradient_shap import GradientShap
from interpret_plugins.attribution.integrated_gradients import IntegratedGradients
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.noise import normal_rows, uniform_rows
from interpret_server.plugin import Batch, Classifier, Job, Plugin
from interpret_server.testing import classifier, conformance
from interpret_server.testing.subjects import inputs_of

CLASSES = torch.tensor([2, 0, 1])
SEEDS = (5, 6, 7)
PLUGINS: list[type[Plugin[Any, Any]]] = [DeepLiftShap, GradientShap, ExpectedGradients]
SAMPLING = [GradientShap, ExpectedGradients]


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
    plugin: type[Plugin[Any, Any]],
    model: Classifier,
    x: Tensor,
    baselines: Tensor | None = None,
    job: Job | None = None,
    seeds: tuple[int, ...] = SEEDS,
    **params: object,
) -> Any:
    made = plugin.params_type.model_validate(params)
    plugin().check(model, made)
    tensors = {} if baselines is None else {"baselines": baselines}
    if baselines is not None and plugin in (DeepLift, IntegratedGradients):
        tensors = {"baseline": baselines[:, 0]}
    batch = Batch(x, Targets.classes(CLASSES[: len(x)]), seeds[: len(x)], tensors)
    return plugin().run(model, batch, made, job or Job())


def network() -> nn.Sequential:
    torch.manual_seed(8)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(12, 8),
        nn.Tanh(), nn.Linear(8, 3),
    ).double()  # fmt: skip


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_deep_lift_shap_equals_captum() -> None:
    module = network()
    x, baselines = normal(3, 2, 6, 6), normal(5, 2, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum announces its hooks
        expected, delta = CaptumDeepLiftShap(module).attribute(
            x, baselines, target=CLASSES, return_convergence_delta=True
        )
    model = classifier(module, (2, 6, 6))
    found = run(DeepLiftShap, model, x, baselines.expand(3, *baselines.shape))
    torch.testing.assert_close(found.attributions, expected.detach())
    assert float(delta.abs().max()) < 1e-8
    assert not found.convergence_delta.any()
    torch.testing.assert_close(found.logits, module(x))


def test_deep_lift_shap_is_the_mean_of_deep_lift_over_baselines_of_each_row() -> None:
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(16),
        nn.Linear(16, 3),
    ).double()  # fmt: skip
    model = classifier(module, (2, 6, 6))
    x, baselines = normal(3, 2, 6, 6), normal(3, 4, 2, 6, 6)
    each = [run(DeepLift, model, x, baselines[:, [k]]).attributions for k in range(4)]
    found = run(DeepLiftShap, model, x, baselines)
    torch.testing.assert_close(found.attributions, torch.stack(each).mean(0))
    start = torch.stack([module(baselines[:, k]) for k in range(4)]).mean(0)
    difference = (module(x) - start).gather(1, CLASSES[:, None])[:, 0].detach()
    torch.testing.assert_close(found.attributions.sum((1, 2, 3)), difference)


def test_baselines_are_drawn_around_the_parameter() -> None:
    model = classifier(network(), (2, 6, 6), bounds=(-1, 3))
    x = normal(3, 2, 6, 6)
    drawn = [-1 + 0.2 * 4 * normal_rows(SEEDS, step, x) for step in range(6)]
    expected = run(DeepLiftShap, model, x, torch.stack(drawn, 1)).attributions
    found = run(DeepLiftShap, model, x, draws=6, spread=0.2, baseline="lower").attributions
    torch.testing.assert_close(found, expected)


def by_hand(
    module: nn.Module,
    x: Tensor,
    samples: int,
    noise: float,
    draw: Callable[[int, float], Tensor],
) -> Tensor:
    """GradientSHAP row by row and sample by sample."""
    rows = []
    for row in range(len(x)):
        values = torch.zeros_like(x[0])
        for sample in range(samples):
            one = x[row : row + 1]
            seed = SEEDS[row : row + 1]
            picked, share = uniform_rows(seed, SAMPLES + 2 * sample, one.new_empty(1, 2))[0]
            start = draw(row, float(picked))
            end = one + noise * normal_rows(seed, SAMPLES + 2 * sample + 1, one)
            leaf = (start + share * (end - start)).requires_grad_()
            (gradient,) = torch.autograd.grad(module(leaf)[0, CLASSES[row]], leaf)
            values += ((end - start) * gradient)[0] / samples
        rows.append(values)
    return torch.stack(rows)


def test_gradient_shap_equals_a_loop_with_the_same_noise() -> None:
    module = network()
    model = classifier(module, (2, 6, 6), bounds=(0, 2))
    x, baselines = normal(3, 2, 6, 6), normal(3, 4, 2, 6, 6)

    def given(row: int, picked: float) -> Tensor:
        return baselines[row, int(picked * 4)][None]

    def around(row: int, picked: float) -> Tensor:
        return 1 + 0.5 * normal_rows(SEEDS[row : row + 1], int(picked * 5), x[:1])

    expected = by_hand(module, x, 7, 0.6, given)
    found = run(GradientShap, model, x, baselines, samples=7, noise=0.3)
    torch.testing.assert_close(found.attributions, expected)
    expected = by_hand(module, x, 7, 0.0, around)
    found = run(GradientShap, model, x, samples=7, noise=0, draws=5, spread=0.25, baseline="mean")
    torch.testing.assert_close(found.attributions, expected)


@pytest.mark.parametrize("plugin", SAMPLING)
def test_linear_classifiers_are_attributed_exactly(plugin: type[Plugin[Any, Any]]) -> None:
    layer = nn.Linear(5, 3).double()
    x, baselines = normal(3, 5), normal(3, 4, 5)
    model = classifier(layer, (5,))
    if plugin is ExpectedGradients:  # every example takes its turn
        found = run(plugin, model, x, baselines, samples=12)
        expected = layer.weight[CLASSES] * (x - baselines.mean(1))
    else:
        found = run(plugin, model, x, baselines[:, :1], samples=12, noise=0)
        expected = layer.weight[CLASSES] * (x - baselines[:, 0])
    torch.testing.assert_close(found.attributions, expected.detach())
    assert not found.convergence_delta.any()


def test_expected_gradients_of_one_baseline_are_integrated_gradients() -> None:
    model = classifier(network(), (2, 6, 6))
    x, baselines = normal(3, 2, 6, 6), normal(3, 1, 2, 6, 6)
    exact = run(IntegratedGradients, model, x, baselines, steps=1000).attributions
    size = float(exact.abs().max())
    misses = []
    for samples in (20, 2000):
        found = run(ExpectedGradients, model, x, baselines, samples=samples)
        misses.append(float((found.attributions - exact).abs().max()) / size)
    assert misses[1] < 2e-3
    assert misses[1] < misses[0] / 10


def test_samples_bring_the_sum_to_the_difference() -> None:
    module = network()
    model = classifier(module, (2, 6, 6))
    x, baselines = normal(3, 2, 6, 6), normal(3, 4, 2, 6, 6)
    start = torch.stack([module(baselines[:, k]) for k in range(4)]).mean(0)
    difference = (module(x) - start).gather(1, CLASSES[:, None])[:, 0].detach()
    for plugin in SAMPLING:
        settings: dict[str, object] = {"noise": 0} if plugin is GradientShap else {}
        found = run(plugin, model, x, baselines, samples=4000, **settings)
        total = found.attributions.sum((1, 2, 3))
        assert float((total - difference).abs().max() / difference.abs().max()) < 0.1
        assert float(found.convergence_delta.abs().max() / difference.abs().max()) < 0.1


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("given", [True, False])
def test_passes_batch_mates_and_their_order_change_nothing(
    plugin: type[Plugin[Any, Any]], given: bool
) -> None:
    model = classifier(network(), (2, 6, 6))
    x = normal(3, 2, 6, 6)
    baselines = normal(3, 6, 2, 6, 6) if given else None
    settings: dict[str, object] = {"draws": 6} if plugin is DeepLiftShap else {"samples": 6}
    whole = run(plugin, model, x, baselines, **settings)
    job = Recorder(6)
    parts = run(plugin, model, x, baselines, job, **settings)
    assert job.steps == [6]
    torch.testing.assert_close(parts.attributions, whole.attributions)
    torch.testing.assert_close(parts.convergence_delta, whole.convergence_delta)
    alone = run(plugin, model, x[:1], None if baselines is None else baselines[:1], **settings)
    torch.testing.assert_close(alone.attributions, whole.attributions[:1])
    other = run(plugin, model, x, baselines, seeds=(8, 9, 10), **settings).attributions
    same = given and plugin is DeepLiftShap  # nothing is drawn
    assert torch.equal(other, whole.attributions) == same


@pytest.mark.parametrize("plugin", PLUGINS)
def test_baselines_of_another_shape_are_refused(plugin: type[Plugin[Any, Any]]) -> None:
    model = classifier(nn.Linear(5, 3), (5,))
    x = torch.rand(2, 5)
    for shape in ((2, 5), (2, 3, 4), (2, 0, 5)):
        with pytest.raises(InvalidRequest, match=r"takes \[rows, baselines, 5\]") as caught:
            run(plugin, model, x, torch.rand(*shape))
        assert caught.value.violations[0].field == "tensors.baselines"


@pytest.mark.parametrize("plugin", PLUGINS)
def test_rows_that_miss_or_are_zero_are_warned_about(plugin: type[Plugin[Any, Any]]) -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 3)).double()
    with torch.no_grad():
        module[0].weight.fill_(1)
        module[0].bias.fill_(-0.9)
        module[2].weight.fill_(1)
    x = torch.tensor([[1.0], [0.5]], dtype=torch.float64)
    job = Recorder()
    settings = {} if plugin is DeepLiftShap else {"samples": 3}
    run(plugin, classifier(module, (1,)), x, torch.zeros(2, 1, 1).double(), job, **settings)
    told = {message.split(":")[0].split(" ")[0]: rows for rows, message in job.warnings}
    assert told["every"][1] is True
    assert ("the" in told) == (plugin is not DeepLiftShap)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_contract_with_baselines(plugin: type[Plugin[Any, Any]]) -> None:
    def tensors(model: Classifier, rows: int) -> dict[str, Tensor]:
        every = [inputs_of(model, rows, stream, example_sizes=True) for stream in (3, 4)]
        return {"baselines": torch.stack(every, 1)}

    few = {"samples": 4} if plugin is not DeepLiftShap else {}
    conformance(plugin, params=few, tensors=tensors)
