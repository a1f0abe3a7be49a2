"""Weights of layers: those of the eager module, by channel, class and layer, on every file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from interpret_plugins.internals.filters import Filters
from interpret_server.errors import InvalidRequest
from interpret_server.models.classifier import Classifier
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.testing import classifier
from tests.plugins.internals.networks import FORMS, SHAPE, Network, classes, loaded, run

PLUGIN = Filters()


def channels(layer: str | None, *numbers: int) -> Targets:
    return Targets(TargetKind.CHANNEL, torch.tensor(numbers)[:, None], layer)


def whole(layer: str | None, rows: int = 1) -> Targets:
    return Targets(TargetKind.LAYER, torch.zeros(rows, 0, dtype=torch.int64), layer)


def filters(model: Classifier, targets: Targets) -> tuple[Tensor, Tensor]:
    found = run(PLUGIN, model, model.neutral(len(targets)), targets)
    norm = found.weights.flatten(1).norm(dim=1)
    torch.testing.assert_close(found.norm, norm)
    return found.weights, found.filters


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_those_of_the_eager_module(form: str, tmp_path: Path) -> None:
    module = Network().eval()
    model = loaded(module, form, tmp_path)
    weight = module.second.weight.detach()
    some, normalised = filters(model, channels("second", 4, 0, 4))
    assert torch.equal(some, weight[[4, 0, 4]])
    largest = weight[[4, 0, 4]].flatten(1).abs().amax(1)
    torch.testing.assert_close(normalised, some / largest[:, None, None, None])
    every, normalised = filters(model, whole("second"))
    assert torch.equal(every[0], weight)
    torch.testing.assert_close(
        normalised[0].flatten(1).abs().amax(1), torch.ones(5), rtol=0, atol=1e-6
    )
    templates, _ = filters(model, classes(3, 1))
    assert torch.equal(templates, module.last.weight[[3, 1]].detach())
    hidden, _ = filters(model, whole("hidden", 2))
    shaped = module.hidden.weight.detach().reshape(6, 5, 3, 3)
    assert torch.equal(hidden, torch.stack([shaped, shaped]))


@pytest.mark.parametrize("form", ["scripted", "onnx", "exported"])
def test_templates_of_a_linear_classifier_have_the_images_shape(form: str, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()
    model = loaded(module, form, tmp_path)
    found, _ = filters(model, classes(2))
    assert torch.equal(found, module[1].weight[2].detach().reshape(1, *SHAPE))


def test_after_values_were_moved_a_linear_layers_rows_stay_flat() -> None:
    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(192, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x.permute(0, 2, 3, 1).flatten(1))

    found, _ = filters(classifier(Moved(), SHAPE), classes(2))
    assert found.shape in ((1, 192), (1, 8, 8, 3))


def test_a_transposed_convolutions_filters_are_by_output_channel() -> None:
    module = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6 * 100, 2)
    )
    model = classifier(module, (4, 8, 8))
    found, _ = filters(model, whole("0"))
    x = torch.zeros(1, 4, 8, 8)
    x[0, 3, 0, 0] = 1  # the second channel of the second group
    answer = module[0](x) - module[0](torch.zeros_like(x))
    for channel in range(6):
        expected = found[0, channel, 1] if channel >= 3 else torch.zeros(3, 3)
        torch.testing.assert_close(answer[0, channel, :3, :3].detach(), expected)


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (channels("two", 1), "'two' has no weights .* first, second, hidden, last"),
        (whole("max_pool2d"), "'max_pool2d' has no weights of its own"),
    ],
)
def test_a_layer_without_weights_is_refused_naming_those_that_have(
    targets: Targets, told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told) as caught:
        filters(classifier(Network(), SHAPE), targets)
    assert caught.value.violations[0].field == "target"


def test_classes_without_a_linear_layer_are_refused() -> None:
    model = classifier(nn.Sequential(nn.Conv2d(3, 2, 8), nn.Tanh(), nn.Flatten()), SHAPE)
    with pytest.raises(InvalidRequest, match=r"do not come from one linear layer.* 0$"):
        filters(model, classes(1))
