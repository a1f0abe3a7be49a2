"""Guided backprop and deconvnet: explicit layer loops in float64, Captum, ten calls in a row."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from interpret_plugins.attribution.deconvnet import Deconvnet, DeconvnetParams
from interpret_plugins.attribution.guided_backprop import GuidedBackprop, GuidedBackpropParams
from interpret_plugins.attribution.saliency import Saliency, SaliencyParams
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier

METHODS = ["guided", "deconvnet"]


def run(
    method: str, model: Classifier, x: Tensor, targets: Targets, job: Job | None = None
) -> Tensor:
    batch = Batch(x, targets, (0,) * len(x))
    if method == "guided":
        guided = GuidedBackprop().run(model, batch, GuidedBackpropParams(), job or Job())
        return guided.attributions
    return Deconvnet().run(model, batch, DeconvnetParams(), job or Job()).attributions


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    ).double()


def backward_by_hand(module: nn.Sequential, x: Tensor, labels: Tensor, method: str) -> Tensor:
    """The paper's rule, one layer after the other, from the logits back to the input."""
    values = [x]
    for layer in module:
        values.append(layer(values[-1]))
    signal = functional.one_hot(labels, values[-1].shape[1]).to(x.dtype)
    for layer, value in zip(reversed(module), reversed(values[:-1]), strict=True):
        match layer:
            case nn.Linear():
                signal = signal @ layer.weight
            case nn.Conv2d():
                rest = [
                    (size + 2 * pad - kernel) % stride
                    for size, pad, kernel, stride in zip(
                        value.shape[2:], layer.padding, layer.kernel_size, layer.stride, strict=True
                    )
                ]
                signal = functional.conv_transpose2d(
                    signal, layer.weight, None, layer.stride, layer.padding, rest
                )
            case nn.ReLU():
                signal = signal * (signal > 0)
                if method == "guided":
                    signal = signal * (value > 0)
            case nn.MaxPool2d():
                _, where = functional.max_pool2d(value, 2, return_indices=True)
                signal = functional.max_unpool2d(signal, where, 2, output_size=value.shape[2:])
            case nn.Flatten():
                signal = signal.reshape(value.shape)
    return signal


@pytest.mark.parametrize("method", METHODS)
def test_equals_the_papers_rule_written_out_layer_by_layer(method: str) -> None:
    module = network()
    model = classifier(module, (3, 8, 8))
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0])
    expected = backward_by_hand(module, x, labels, method)
    assert expected.abs().max() > 0
    found = run(method, model, x, Targets.classes(labels))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Functional(nn.Module):
    """The same network with functional, in-place and reused rectifiers."""

    def __init__(self, source: nn.Sequential) -> None:
        super().__init__()
        self.first, self.second, self.third, self.last = (
            copy.deepcopy(source[index]) for index in (0, 2, 6, 8)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        x = functional.max_pool2d(self.relu(self.second(x)), 2)
        return self.last(self.relu(self.third(x.flatten(1))))


@pytest.mark.parametrize("method", METHODS)
def test_equals_captum_on_the_eager_module_however_its_rectifiers_are_written(method: str) -> None:
    from captum.attr import Deconvolution
    from captum.attr import GuidedBackprop as CaptumGuidedBackprop

    module = network().eval().requires_grad_(False)
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    labels = torch.tensor([3, 1, 0, 2])
    peer = CaptumGuidedBackprop if method == "guided" else Deconvolution
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum announces its hooks
        expected = peer(copy.deepcopy(module)).attribute(x.clone().requires_grad_(), target=labels)
    for served in (module, Functional(module)):
        found = run(method, classifier(served, (3, 8, 8)), x, Targets.classes(labels))
        difference = (found - expected).abs().max() / expected.abs().max()
        assert float(difference) <= 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_the_tenth_call_equals_the_first_whatever_ran_in_between(method: str) -> None:
    model = classifier(network(), (3, 8, 8))
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    targets = Targets.classes(torch.tensor([1, 2]))
    batch = Batch(x, targets, (0, 0))
    first = run(method, model, x, targets)
    for _ in range(9):
        model(x)
        plain = Saliency().run(model, batch, SaliencyParams(absolute=False), Job()).attributions
        assert torch.equal(run(method, model, x, targets), first)
    assert not torch.allclose(plain, first)


@pytest.mark.parametrize("method", METHODS)
def test_a_target_inside_the_network_uses_only_the_rectifiers_below_it(method: str) -> None:
    module = network()
    model = classifier(module, (3, 8, 8))
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    channel = Targets(TargetKind.CHANNEL, torch.tensor([[2], [5]]), "0")
    found = run(method, model, x, channel)
    plain = model.gradient(x, channel).inputs
    assert torch.equal(found, plain)
    above = Targets(TargetKind.CHANNEL, torch.tensor([[2], [5]]), "2")
    assert not torch.allclose(run(method, model, x, above), model.gradient(x, above).inputs)


def test_a_row_in_which_nothing_comes_back_is_warned_about() -> None:
    class Recorder(Job):
        def warn(self, rows: Tensor, message: str) -> None:
            warned.append(rows.tolist())

    warned: list[list[bool]] = []
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        module[0].weight.abs_()
        module[0].bias.zero_()
        module[2].weight.copy_(torch.tensor([[1.0, 1, 1], [-1, -1, -1]]))
    model = classifier(module, (3,))
    for method in METHODS:
        run(method, model, torch.rand(2, 3), Targets.classes(torch.tensor([0, 1])), Recorder())
    assert warned == [[False, True]] * 2
