"""Guided integrated gradients: the paper's loop in float64, straight lines, closed forms, files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from perturbing import Recorder, images, loaded, network, run
from torch import Tensor, nn

from interpret_plugins.attribution.guided_integrated_gradients import GuidedIntegratedGradients
from interpret_plugins.attribution.integrated_gradients import IntegratedGradients
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.testing import classifier

LABELS = torch.tensor([1, 3, 0])
TARGETS = Targets.classes(LABELS)


def smooth() -> nn.Sequential:
    torch.manual_seed(8)
    return nn.Sequential(nn.Linear(11, 9), nn.Tanh(), nn.Linear(9, 4)).double()


def explained(module: nn.Module, x: Tensor, **params: object) -> Any:
    model = classifier(module, tuple(x.shape[1:]))
    return run(GuidedIntegratedGradients(), model, x, TARGETS.take(slice(len(x))), **params)


def by_hand(
    slope: Callable[[Any], Any],
    x: Any,
    base: Any,
    steps: int,
    fraction: float,
    distance: float,
    quadrature: str = "left",
) -> Any:
    """The algorithm of the paper for one row of different values, in the input's own units."""
    at, total = base.copy(), numpy.zeros_like(x)
    whole = numpy.abs(x - base).sum()
    for step in range(steps):
        actual, begun = slope(at), at.copy()
        chosen_by = actual.copy()
        share = (step + 1) / steps
        low = base + max(share - distance, 0) * (x - base)
        high = base + min(share + distance, 1) * (x - base)
        wanted = whole * (1 - share)
        while True:
            behind = (at - base) / (x - base) < max(share - distance, 0)
            at[behind] = low[behind]
            left = numpy.abs(x - at).sum()
            if abs(left - wanted) < 1e-9:
                break
            chosen_by[numpy.isclose(at, high, rtol=0, atol=1e-14)] = numpy.inf
            limit = numpy.quantile(numpy.abs(chosen_by), fraction, method="lower")
            chosen = (numpy.abs(chosen_by) <= limit) & (chosen_by != numpy.inf)
            room = numpy.abs(at - high)[chosen].sum()
            part = (left - wanted) / room
            if part > 1:
                at[chosen] = high[chosen]
            else:
                at[chosen] += part * (high - at)[chosen]
                break
        if quadrature == "trapezoid":
            actual = (actual + slope(at)) / 2
        total += (at - begun) * actual
    return total


def slopes(module: nn.Module, label: int, shape: tuple[int, ...]) -> Callable[[Any], Any]:
    def slope(values: Any) -> Any:
        leaf = torch.from_numpy(values.reshape(1, *shape)).requires_grad_()
        (found,) = torch.autograd.grad(module(leaf)[0, label], leaf)
        return found.numpy().reshape(-1)

    return slope


@pytest.mark.parametrize("quadrature", ["left", "trapezoid"])
@pytest.mark.parametrize("distance", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 1.0])
def test_equals_the_published_algorithm(fraction: float, distance: float, quadrature: str) -> None:
    module = smooth()
    x, base = torch.rand(2, 3, 11, dtype=torch.float64) + torch.tensor([[[1.0]], [[0]]])
    found = run(
        GuidedIntegratedGradients(),
        classifier(module, (11,)),
        x,
        TARGETS,
        None,
        {"baseline": base},
        steps=12,
        fraction=fraction,
        max_distance=distance,
        quadrature=quadrature,
    ).attributions
    for row, label in enumerate(LABELS.tolist()):
        given = (x[row].numpy(), base[row].numpy(), 12, fraction, distance, quadrature)
        expected = by_hand(slopes(module, label, (11,)), *given)
        numpy.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-9, atol=1e-12)


def test_values_of_small_gradients_move_first() -> None:
    """`3 a + a b`: b first, where its gradient is 0, and then a, at the gradient 3 + 1."""

    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = 3 * x[:, 0] + x[:, 0] * x[:, 1]
            return torch.stack([score, -score], 1)

    x, targets = torch.ones(1, 2), Targets.classes(torch.tensor([0]))
    model = classifier(Product(), (2,))
    params = {"max_distance": 1, "fraction": 0.01}
    free = run(GuidedIntegratedGradients(), model, x, targets, **params)
    torch.testing.assert_close(free.attributions, torch.tensor([[4.0, 0]]))
    straight = run(GuidedIntegratedGradients(), model, x, targets, max_distance=0, steps=1000)
    torch.testing.assert_close(straight.attributions, torch.tensor([[3.5, 0.5]]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("params", [{"max_distance": 0}, {"max_distance": 1, "anchors": 19}])
def test_without_freedom_it_is_the_left_sum_of_integrated_gradients(
    params: dict[str, float],
) -> None:
    module, x = smooth(), torch.rand(3, 11, dtype=torch.float64)
    total = torch.zeros_like(x)
    for step in range(20):
        leaf = (x * step / 20).requires_grad_()
        chosen = module(leaf).gather(1, LABELS[:, None]).sum()
        total += torch.autograd.grad(chosen, leaf)[0] / 20
    found = explained(module, x, steps=20, quadrature="left", **params).attributions
    torch.testing.assert_close(found, total * x, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("anchors", [0, 3])
def test_a_linear_classifier_is_attributed_exactly(anchors: int) -> None:
    layer = nn.Linear(11, 4).double()
    x = torch.rand(3, 11, dtype=torch.float64)
    result = explained(layer, x, steps=7, anchors=anchors)
    torch.testing.assert_close(result.attributions, (layer.weight[LABELS] * x).detach())
    assert result.convergence_delta.abs().max() < 1e-12
    torch.testing.assert_close(result.logits, layer(x).detach())


KINDS = {
    "class": TARGETS,
    "neuron": Targets(TargetKind.NEURON, torch.tensor([[1], [3], [8]]), "1"),
    "layer": Targets(TargetKind.LAYER, torch.zeros(3, 0, dtype=torch.int64), "0"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_attributions_sum_to_the_difference_as_steps_grow(kind: str) -> None:
    model, targets = classifier(smooth(), (11,)), KINDS[kind]
    x = 3 * torch.rand(3, 11, dtype=torch.float64)
    expected = model.objective(x, targets)[0] - model.objective(torch.zeros_like(x), targets)[0]
    missing = []
    for steps in (100, 400):
        result = run(GuidedIntegratedGradients(), model, x, targets, steps=steps, max_distance=0.2)
        total = result.attributions.sum(1)
        torch.testing.assert_close(result.convergence_delta, total - expected.detach())
        missing.append(float(result.convergence_delta.abs().max()))
    assert missing[1] < max(missing[0] / 2.5, 1e-12)
    assert missing[1] < 0.01 * float(expected.abs().max())


def test_the_published_sum_misses_far_more_than_the_mean_of_both_ends() -> None:
    torch.manual_seed(0)
    layers = (nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 4))
    module = nn.Sequential(*layers).double()
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight.mul_(3)
    x = torch.rand(3, 200, dtype=torch.float64)
    missing = {
        rule: float(explained(module, x, quadrature=rule).convergence_delta.abs().max())
        for rule in ("left", "trapezoid")
    }
    assert missing["trapezoid"] < missing["left"] / 3


def test_it_differs_from_the_straight_path() -> None:
    module, x = smooth(), 3 * torch.rand(3, 11, dtype=torch.float64)
    straight = run(IntegratedGradients(), classifier(module, (11,)), x, TARGETS).attributions
    free = explained(module, x, max_distance=1).attributions
    assert float((straight - free).abs().max()) > 0.01 * float(straight.abs().max())


def test_a_row_that_is_its_own_baseline_gets_nothing_and_a_warning() -> None:
    x, job = torch.rand(2, 11, dtype=torch.float64), Recorder()
    model = classifier(smooth(), (11,))
    tensors = {"baseline": torch.stack([x[0], torch.zeros(11, dtype=torch.float64)])}
    targets = TARGETS.take(slice(2))
    found = run(GuidedIntegratedGradients(), model, x, targets, job, tensors, steps=5)
    assert not found.attributions[0].any()
    assert found.attributions[1].all()
    (zero,) = [rows for rows, message in job.warnings if "every attribution is zero" in message]
    assert zero == [True, False]
    assert (job.totals, job.done) == ([6], 6)


def test_more_anchors_than_the_steps_can_hold_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="take at least 6 steps") as caught:
        explained(smooth(), torch.rand(1, 11, dtype=torch.float64), steps=5, anchors=5)
    assert caught.value.violations[0].field == "params.anchors"


@pytest.mark.parametrize("saver", ["scripted", "exported", "onnx"])
def test_files_equal_the_published_algorithm_on_the_eager_module(
    saver: str, tmp_path: Path
) -> None:
    module, x = network(), images(2)
    model = loaded(module, saver, tmp_path)
    targets = Targets.classes(LABELS[:2])
    params = {"steps": 10, "fraction": 0.5, "max_distance": 0.3, "quadrature": "left"}
    found = run(GuidedIntegratedGradients(), model, x, targets, **params).attributions
    double = module.double()
    for row in range(2):
        values = x[row].double().numpy().reshape(-1)
        slope = slopes(double, int(LABELS[row]), tuple(x.shape[1:]))
        expected = by_hand(slope, values, numpy.zeros_like(values), 10, 0.5, 0.3)
        largest = numpy.abs(expected).max()
        numpy.testing.assert_allclose(
            found[row].double().numpy().reshape(-1), expected, rtol=0, atol=2e-3 * largest
        )
