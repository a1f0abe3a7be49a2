"""Which layer class activation maps explain, over which axes, and what is refused or warned of."""

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor, nn

from interpret_plugins.attribution.grad_cam import GradCAM
from interpret_plugins.attribution.guided_grad_cam import GuidedGradCAM
from interpret_server.errors import InvalidRequest
from interpret_server.models.manifest import Precision
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.testing import classifier
from tests.plugins.attribution.maps import SHAPE, Recorder, close, network, run

LABELS = Targets.classes(torch.tensor([0, 2]))


class Branches(nn.Module):
    """Two blocks with paths around them, then two branches of maps; sizes are read off as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.one, self.two, self.last = nn.ReLU(), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.one(self.stem(x))
        both = self.two(stem + self.block(stem))
        joined = torch.cat([self.left(both).mean((2, 3)), self.right(both).mean((2, 3))], 1)
        return self.last(joined.view(x.size(0), -1))


class Tokens(nn.Module):
    """Patches that a token mixer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.last = nn.Conv2d(3, 5, 4, 4), nn.Linear(9, 9), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.mix(self.patches(x).flatten(2)).transpose(1, 2)
        return self.last(tokens.mean(1))


class Last(nn.Module):
    """Channels last outside and in its second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 7, 3, 2, 1), nn.Linear(7, 5)
        self.last = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.first(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.last(torch.tanh(self.second(maps)).mean((1, 2)))


def test_the_last_layer_that_all_paths_cross_is_chosen() -> None:
    module = Branches()
    model = classifier(module, SHAPE, input_layout="CHW")
    x = torch.rand(2, *SHAPE)
    found = run(GradCAM, model, x, LABELS)
    assert [list(model.layers)[int(position)] for position in found.layer] == ["two", "two"]
    named = run(GradCAM, model, x, LABELS, layer="two")
    assert torch.equal(found.map, named.map)
    close(found.map, LayerGradCam(module, module.two).attribute(x, LABELS.labels)[:, 0].relu())
    left = run(GradCAM, model, x, LABELS, layer="left", rectify=False)
    close(left.map, LayerGradCam(module, module.left).attribute(x, LABELS.labels)[:, 0])


@pytest.mark.parametrize("size", [(20,), (8, 10, 6)])
def test_signals_and_volumes_are_interpolated_along_their_axes(size: tuple[int, ...]) -> None:
    convolution = {1: nn.Conv1d, 3: nn.Conv3d}[len(size)]
    pool = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}[len(size)]
    module = nn.Sequential(
        convolution(2, 5, 3, stride=2), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(5, 3)
    )
    model = classifier(module, (2, *size), input_layout="CL" if len(size) == 1 else "other")
    x = torch.rand(2, 2, *size)
    coarse = LayerGradCam(module, module[1]).attribute(x, LABELS.labels, relu_attributions=True)
    mode = {1: "linear", 3: "trilinear"}[len(size)]
    large = LayerAttribution.interpolate(coarse, size, mode)
    found = run(GradCAM, model, x, LABELS)
    assert found.attributions.shape == (2, *size)
    close(found.attributions, large[:, 0].detach())
    nearest = LayerAttribution.interpolate(coarse, size)[:, 0].detach()
    close(run(GradCAM, model, x, LABELS, upsample="nearest").attributions, nearest)
    guided = run(GuidedGradCAM, model, x, LABELS)
    assert guided.attributions.shape == x.shape


def test_channels_may_come_last_in_the_input_and_in_a_named_layer() -> None:
    module = Last()
    model = classifier(module, (12, 16, 3), input_layout="HWC")
    x = torch.rand(2, 12, 16, 3)
    second = module.second(torch.relu(module.first(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1))
    second = second.detach().requires_grad_()
    scores = module.last(torch.tanh(second).mean((1, 2))).gather(1, LABELS.index)
    (gradient,) = torch.autograd.grad(scores.sum(), second)
    expected = (second * gradient.mean((1, 2), keepdim=True)).sum(3).detach()
    found = run(GradCAM, model, x, LABELS, layer="second", rectify=False)
    close(found.map, expected)
    assert found.attributions.shape == (2, 12, 16)
    told = run(GradCAM, model, x, LABELS, layer="second", channels="last", rectify=False)
    assert torch.equal(told.map, found.map)


TARGETS = {
    "neuron": Targets(TargetKind.NEURON, torch.tensor([[1, 0, 1], [4, 1, 0]]), "3"),
    "channel": Targets(TargetKind.CHANNEL, torch.tensor([[3], [0]]), "3"),
    "layer": Targets(TargetKind.LAYER, torch.zeros(2, 0, dtype=torch.int64), "3"),
    "logit": Targets(TargetKind.NEURON, torch.tensor([[1], [3]])),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_of_any_kind_after_the_layer_are_explained(kind: str) -> None:
    module, targets = network().double(), TARGETS[kind]
    x = torch.rand(2, *SHAPE, dtype=torch.float64)
    end = 9 if targets.layer is None else 4
    values = module[:3](x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(targets.select(module[3:end](values)).sum(), values)
    expected = (values * gradient.mean((2, 3), keepdim=True)).sum(1).detach()
    model = classifier(module, SHAPE, input_layout="CHW")
    found = run(GradCAM, model, x, targets, layer="2", rectify=False)
    close(found.map, expected)
    assert (found.logits is None) == (targets.layer is not None)
    if targets.layer:
        assert torch.equal(run(GradCAM, model, x, targets, rectify=False).map, found.map)


REFUSED = {
    "behind the target": (network(), {"layer": "4"}, TARGETS["channel"], "'4' does not come befo"),
    "the target itself": (network(), {"layer": "3"}, TARGETS["channel"], "'3' does not come befo"),
    "nothing before": (
        network(),
        {},
        Targets(TargetKind.CHANNEL, torch.tensor([[0], [1]]), "0"),
        "before layer '0'",
    ),
    "flat": (network(), {"layer": "6"}, LABELS, "no spatial axes"),
    "unknown": (network(), {"layer": "44"}, LABELS, "no layer '44'"),
    "no maps": (nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), {}, LABELS, "can be chosen"),
    "tokens": (Tokens(), {}, LABELS, "'mix' may mix positions"),
    "token map": (Tokens(), {"layer": "mix"}, LABELS, "no spatial axes"),
    "token map told": (Tokens(), {"layer": "mix", "channels": "last"}, LABELS, "use 'none'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_map_is_refused_with_the_reason(case: str) -> None:
    module, params, targets, words = REFUSED[case]
    model = classifier(module, SHAPE, input_layout="CHW")
    with pytest.raises(InvalidRequest, match=words):
        run(GradCAM, model, torch.rand(2, *SHAPE), targets, **params)


def test_a_named_layer_before_a_token_mixer_is_explained() -> None:
    module = Tokens()
    model = classifier(module, SHAPE, input_layout="CHW")
    x = torch.rand(2, *SHAPE)
    found = run(GradCAM, model, x, LABELS, layer="patches", rectify=False)
    close(found.map, LayerGradCam(module, module.patches).attribute(x, LABELS.labels)[:, 0])


WARNINGS = {
    "the gradient at layer 1 is zero everywhere": [False, False, True, False],
    "the map at layer 1 is nowhere above zero": [False, True, False, False],
    "the map at layer 1 is zero everywhere": [False, False, False, True],
}


def test_maps_without_a_positive_value_and_without_a_gradient_are_warned_about() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4)
    )
    with torch.no_grad():
        module[0].weight.abs_()
        module[0].bias.zero_()
        module[4].weight.copy_(torch.tensor([[1.0, 1], [-1, -1], [0, 0], [1, 0]]))
    x, job = torch.rand(4, *SHAPE), Recorder()
    x[3] = 0
    model = classifier(module, SHAPE, input_layout="CHW")
    found = run(GradCAM, model, x, Targets.classes(torch.tensor([0, 1, 2, 3])), job)
    assert found.map.flatten(1).any(1).tolist() == [True, False, False, False]
    told = {words: rows for rows, message in job.warned for words in WARNINGS if words in message}
    assert told == WARNINGS


def test_reduced_precision_changes_little() -> None:
    model = classifier(network(), SHAPE, input_layout="CHW")
    x = torch.rand(2, *SHAPE)
    exact = run(GradCAM, model, x, LABELS, rectify=False).map
    model.precision = Precision.BFLOAT16
    found = run(GradCAM, model, x, LABELS, rectify=False).map
    assert found.dtype is torch.float32
    assert 0 < float((found - exact).abs().max()) < 0.05 * float(exact.abs().max())
