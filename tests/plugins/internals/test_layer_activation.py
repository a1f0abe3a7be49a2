"""Values of layers: the eager module's own, their summaries, files."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from interpret_plugins.internals.layer_activation import LayerActivation
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.testing import classifier
from tests.plugins.internals.networks import FORMS, SHAPE, Network, images, loaded, run

PLUGIN, X = LayerActivation(), images(3)


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_the_eager_module(form: str, tmp_path: Path) -> None:
    module = Network().eval()
    model = loaded(module, form, tmp_path)
    seen: dict[str, Tensor] = {}
    names = ["two", "first", "three"]
    for name in names:
        module.get_submodule(name).register_forward_hook(
            lambda part, given, value, name=name: seen.update({name: value.detach()})
        )
    module(X)
    found = run(PLUGIN, model, X, Targets.none(3), layers=[*names, "two"])
    assert list(found.activations) == names
    for name, value in seen.items():
        torch.testing.assert_close(found.activations[name], value)
        means = value.mean((2, 3)) if value.dim() > 2 else value
        maxima = value.amax((2, 3)) if value.dim() > 2 else value
        torch.testing.assert_close(found.channel_means[name], means)
        torch.testing.assert_close(found.channel_maxima[name], maxima)
        share = (value.flatten(1) == 0).double().mean(1)
        assert torch.equal(found.zero_share[name], share)
    assert 0 < found.zero_share["two"][0] < 1


def test_sparseness_is_0_for_even_values_and_1_for_a_single_one() -> None:
    module = nn.Sequential(nn.Identity(), nn.Linear(4, 2)).double()
    x = torch.tensor([[1, -1, 1, 1], [0, 0, -3, 0], [0, 0, 0, 0], [1, 1, 0, 0]]).double()
    found = run(PLUGIN, classifier(module, (4,)), x, Targets.none(4), layers=["0"])
    expected = torch.tensor([0, 1, 0, 2 - math.sqrt(2)], dtype=torch.float64)
    torch.testing.assert_close(found.sparseness["0"], expected)
    assert found.zero_share["0"].tolist() == [0, 0.75, 1, 0.5]


def test_without_names_the_last_layer_that_all_paths_cross_is_read() -> None:
    found = run(PLUGIN, classifier(Network(), SHAPE), X, Targets.none(3))
    assert list(found.activations) == ["three"]


def test_a_layer_that_is_not_there_is_refused_with_close_names() -> None:
    with pytest.raises(InvalidRequest, match="no layer 'secnd'; did you mean second"):
        run(PLUGIN, classifier(Network(), SHAPE), X, Targets.none(3), layers=["secnd"])
