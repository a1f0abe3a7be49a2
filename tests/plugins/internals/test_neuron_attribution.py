"""The part of a score that flows through a unit: Captum, sums over units, files, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients, NeuronConductance
from numpy.polynomial.legendre import leggauss
from torch import Tensor, nn

from interpret_plugins.internals.neuron_attribution import NeuronAttribution
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.testing import classifier
from tests.plugins.internals.networks import (
    FORMS,
    SHAPE,
    Network,
    Recorder,
    classes,
    images,
    loaded,
    run,
)

PLUGIN = NeuronAttribution()
X, BASE, LABELS = images(3), images(3, 9), (1, 3, 0)


def by_hand(module: Network, part: nn.Module, unit: list[int], labels: Tensor) -> Tensor:
    """The chain rule at 25 Gauss-Legendre points, one after the other."""
    total = torch.zeros_like(X)
    for place, weight in zip(*leggauss(25), strict=True):
        at = torch.lerp(BASE, X, float(place + 1) / 2).requires_grad_()
        seen: list[Tensor] = []
        hook = part.register_forward_hook(
            lambda module, given, value, seen=seen: seen.append(value)
        )
        score = module(at).gather(1, labels[:, None]).sum()
        hook.remove()
        (slope,) = torch.autograd.grad(score, seen[0], retain_graph=True)
        index = (slice(None), *unit)
        (change,) = torch.autograd.grad((seen[0][index] * slope[index]).sum(), at)
        total += weight / 2 * change * (X - BASE)
    return total.detach()


@pytest.mark.parametrize("form", FORMS)
def test_files_equal_captum_on_the_eager_module(form: str, tmp_path: Path) -> None:
    module = Network().eval()
    model = loaded(module, form, tmp_path)
    labels = torch.tensor(LABELS)
    for layer, part, unit in (("two", module.two, [1, 2, 3]), ("three", module.three, [4])):
        expected = by_hand(module, part, unit, labels)
        found = run(
            PLUGIN, model, X, classes(*LABELS), tensors={"baseline": BASE}, layer=layer, unit=unit,
            steps=25,
        )  # fmt: skip
        torch.testing.assert_close(found.attributions, expected.float(), rtol=1e-4, atol=1e-6)
        total = found.attributions.flatten(1).sum(1)
        torch.testing.assert_close(found.conductance, total, rtol=1e-4, atol=1e-6)
        peer = NeuronConductance(module, part).attribute(
            X, tuple(unit), BASE, target=labels, n_steps=400
        )
        found = run(
            PLUGIN, model, X, classes(*LABELS), tensors={"baseline": BASE}, layer=layer, unit=unit,
            steps=400,
        )  # fmt: skip
        # Captum's weights miss the integral by about one part of the path
        largest = float(peer.detach().abs().max())
        torch.testing.assert_close(
            found.attributions, peer.detach().float(), rtol=0, atol=0.01 * largest
        )


def test_a_channel_is_its_neurons_together_and_all_channels_the_integrated_gradient() -> None:
    module = Network().double().eval()
    model = classifier(module, SHAPE, input_layout="CHW")
    x, base = X.double(), BASE.double()

    def through(unit: object) -> Any:
        return run(
            PLUGIN, model, x, classes(*LABELS), tensors={"baseline": base}, layer="max_pool2d",
            unit=unit, steps=30,
        )  # fmt: skip

    channels = [through(channel).attributions for channel in range(5)]
    neurons = [through([2, i, j]).attributions for i in range(3) for j in range(3)]
    torch.testing.assert_close(sum(neurons), channels[2])
    whole = through(None)
    torch.testing.assert_close(sum(channels), whole.attributions)
    expected = IntegratedGradients(module).attribute(
        x, base, target=torch.tensor(LABELS), n_steps=30
    )
    torch.testing.assert_close(whole.attributions, expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(whole.conductance, whole.difference, rtol=0, atol=0.05)
    difference = (module(x) - module(base)).gather(1, torch.tensor(LABELS)[:, None])[:, 0]
    torch.testing.assert_close(whole.difference, difference.detach())


def test_the_target_may_be_a_unit_of_a_later_layer() -> None:
    module = Network().double().eval()
    model = classifier(module, SHAPE)
    x = X.double()
    targets = Targets(TargetKind.NEURON, torch.tensor([[0], [5], [2]]), "three")
    found = run(PLUGIN, model, x, targets, layer="hidden", steps=200)
    # a tanh of one unit: only that unit of the layer before it matters
    same = run(PLUGIN, model, x[1:2], targets.take(slice(1, 2)), layer="hidden", unit=5, steps=200)
    torch.testing.assert_close(found.attributions[1:2], same.attributions)
    other = run(PLUGIN, model, x[1:2], targets.take(slice(1, 2)), layer="hidden", unit=4)
    assert not other.attributions.any()
    assert found.logits is None


def test_points_that_share_a_pass_change_nothing() -> None:
    model = classifier(Network().double(), SHAPE)
    found = []
    for limit, passes in ((1, 12), (6, 6), (64, 1)):
        job = Recorder(limit)
        found.append(run(PLUGIN, model, X.double(), classes(*LABELS), job, unit=2, steps=12))
        assert job.steps == [passes + 1]
    for other in found[1:]:
        torch.testing.assert_close(other.attributions, found[0].attributions)


def test_a_unit_that_nothing_flows_through_is_warned_about() -> None:
    model, job = classifier(Network(), SHAPE), Recorder()
    targets = Targets(TargetKind.NEURON, torch.tensor([[0], [5], [2]]), "three")
    run(PLUGIN, model, X, targets, job, layer="hidden", unit=5)
    assert [rows for rows, _ in job.warnings] == [[True, False, True]]


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"layer": "two", "unit": [1, 2]}, "a unit takes 1 index, or 3 for a neuron, not 2"),
        ({"layer": "two", "unit": 5}, "5 is out of range; axis 0 of layer two has 0 to 4"),
        ({"layer": "two", "unit": [1, 6, 0]}, "6 is out of range; axis 1 of layer two has 0 to 5"),
        ({"layer": "three", "unit": [1, 2]}, "a unit takes 1 index, not 2"),
    ],
)
def test_a_unit_that_is_not_there_is_refused(params: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told) as caught:
        run(PLUGIN, classifier(Network(), SHAPE), X, classes(*LABELS), **params)
    assert caught.value.violations[0].field == "params.unit"
