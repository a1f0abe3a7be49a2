"""Wrong parameters are told by their own names, once each."""

from collections.abc import Mapping

import pytest
from torch import nn

from interpret_plugins.attribution.grad_cam import GradCAM
from interpret_plugins.attribution.integrated_gradients import IntegratedGradients
from interpret_plugins.attribution.occlusion import Occlusion
from interpret_plugins.attribution.score_cam import ScoreCAM
from interpret_plugins.internals.code_embedding import CodeEmbedding
from interpret_plugins.internals.layer_activation import LayerActivation
from interpret_plugins.internals.layer_attribution import LayerAttribution
from interpret_plugins.internals.neuron_attribution import NeuronAttribution
from interpret_plugins.metrics.compare import Compare
from interpret_server.engine.parameters import decode_params
from interpret_server.errors import InvalidRequest
from interpret_server.registry import AnyPlugin
from interpret_server.testing import classifier

WRONG: Mapping[str, tuple[AnyPlugin, str, dict[str, str]]] = {
    "of several types": (
        Occlusion(),
        '{"window": 0, "fill": "grey"}',
        {
            "params.window": "greater than or equal to 1, or input should be a valid array",
            "params.fill": "'lower' or 'upper', or input should be a valid number",
        },
    ),
    "in a list": (Occlusion(), '{"window": [4, 0]}', {"params.window.1": "greater than or equal"}),
    "unknown": (IntegratedGradients(), '{"step": 4}', {"params.step": "did you mean steps?"}),
    "missing": (
        Compare(),
        '{"methods": ["saliency", {"params": {}}]}',
        {"params.methods.1.plugin": "required"},
    ),
    "unknown within": (
        Compare(),
        '{"methods": ["saliency", {"plugin": "lime", "parameters": {}}]}',
        {"params.methods.1.parameters": "there is no such parameter"},
    ),
    "no JSON": (Occlusion(), "{", {"params": "invalid JSON"}),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_parameter_is_named_as_callers_write_it(name: str) -> None:
    plugin, text, expected = WRONG[name]
    with pytest.raises(InvalidRequest) as caught:
        decode_params(plugin, text)
    found = {item.field: item.description for item in caught.value.violations}
    for field, description in expected.items():
        assert description in found.pop(field)
    assert not found


@pytest.mark.parametrize(
    "plugin",
    [GradCAM(), ScoreCAM(), CodeEmbedding(), LayerAttribution(), NeuronAttribution()],
    ids=lambda plugin: plugin.name,
)
def test_a_layer_that_is_not_there_is_refused_by_its_parameter(plugin: AnyPlugin) -> None:
    model = classifier(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), (4,))
    with pytest.raises(InvalidRequest, match="no layer 'nope'") as caught:
        plugin.check(model, decode_params(plugin, '{"layer": "nope"}'))
    assert [item.field for item in caught.value.violations] == ["params.layer"]


def test_one_of_several_layers_that_is_not_there_is_refused_by_its_parameter() -> None:
    model, plugin = classifier(nn.Sequential(nn.Linear(4, 3)), (4,)), LayerActivation()
    with pytest.raises(InvalidRequest, match="no layer 'nope'") as caught:
        plugin.check(model, decode_params(plugin, '{"layers": ["nope"]}'))
    assert [item.field for item in caught.value.violations] == ["params.layers"]
