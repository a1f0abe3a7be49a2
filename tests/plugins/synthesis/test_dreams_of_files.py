"""Dreams, units' images and styles: the same on every form of file, on tokens and when served."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import interpret_client
from interpret_plugins.synthesis.activation_maximization import ActivationMaximization
from interpret_plugins.synthesis.deep_dream import DeepDream
from interpret_plugins.synthesis.style_transfer import StyleTransfer
from interpret_server.models.targets import TargetKind
from interpret_server.plugin import Batch, Classifier, Job, Plugin, Targets
from interpret_server.registry import Registry
from interpret_server.testing import classifier, serve
from tests.plugins.attribution.transformers import load

SHAPE = (3, 10, 12)
PLUGINS = (DeepDream, ActivationMaximization, StyleTransfer)
SETTINGS: dict[str, dict[str, Any]] = {
    "deep_dream": {"steps": 3, "smallest": 5},
    "activation_maximization": {"steps": 4, "terms": [{"weight": -0.5, "channel": 1}]},
    "style_transfer": {"steps": 4, "optimizer": "adam"},
}


def _network() -> nn.Sequential:
    torch.manual_seed(8)
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 5, 3))
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(60, 4)).eval()


def _result(plugin: type[Plugin[Any, Any]], model: Classifier) -> Tensor:
    inputs = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    tensors = {"style": inputs.flip(0)} if plugin is StyleTransfer else {}
    targets = Targets.none(2)
    if plugin is ActivationMaximization:
        targets = Targets(TargetKind.CHANNEL, torch.tensor([[0], [3]]), "3")
    params = plugin.params_type.model_validate(SETTINGS[plugin.name])
    plugin().check(model, params)
    images: Tensor = (
        plugin().run(model, Batch(inputs, targets, (3, 4), tensors), params, Job()).images
    )
    assert not torch.allclose(images, inputs, atol=1e-2)
    return images


@pytest.mark.parametrize("form", ["scripted", "traced", "exported", "onnx"])
def test_every_form_of_file_gives_what_the_eager_network_gives(form: str, tmp_path: Path) -> None:
    network = _network()
    eager = classifier(network, SHAPE, input_layout="CHW")
    model = load(network, form, tmp_path, SHAPE)
    for plugin in PLUGINS:
        found, expected = _result(plugin, model), _result(plugin, eager)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_a_server_streams_dreams_units_and_styles(tmp_path: Path) -> None:
    registry = Registry()
    for plugin in PLUGINS:
        registry.add(plugin, "tests")
    model = load(_network(), "onnx", tmp_path, SHAPE)
    inputs = numpy.random.default_rng(2).random((2, *SHAPE), dtype=numpy.float32)
    styles = inputs[:, None].repeat(2, 1)[::-1].copy()
    calls: dict[str, dict[str, Any]] = {
        "deep_dream": {"tensors": {"guide": inputs[::-1].copy()}},
        "activation_maximization": {"target": {"layer": "3", "channel": 2}},
        "style_transfer": {"tensors": {"style": styles}},
    }
    with serve(registry, {"net": model}) as address, interpret_client.connect(address) as client:
        for name, more in calls.items():
            events = list(
                client.stream(
                    name, "net", inputs, params=SETTINGS[name], seed=5, previews=True, **more
                )
            )
            result = events[-1].result
            assert result is not None
            assert result.tensors["images"].shape == inputs.shape
            assert any(event.progress for event in events)
            shown = [event.preview for event in events if event.preview]
            assert shown
            assert not numpy.allclose(result.tensors["images"], inputs, atol=1e-2)
