"""Attacks without gradients on files of every form, those that only predict among them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper, load, save

from interpret_plugins.attacks.boundary import Boundary
from interpret_plugins.attacks.corruptions import Corruptions
from interpret_plugins.attacks.hop_skip_jump import HopSkipJump
from interpret_plugins.attacks.random_noise import RandomNoise
from interpret_plugins.attacks.spatial import Spatial
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Capability, Classifier, Plugin
from tests.plugins.attribution.perturbing import SAVERS, SHAPE, images, loaded, network, run

ATTACKS: list[tuple[type[Plugin[Any, Any]], dict[str, Any]]] = [
    (HopSkipJump, {"queries": 300}),
    (HopSkipJump, {"queries": 300, "norm": "linf"}),
    (Boundary, {"queries": 300}),
    (RandomNoise, {"epsilon": 0.4, "samples": 20}),
    (Spatial, {"search": "random", "rotation": 60}),
    (Corruptions, {"severity": 5}),
]


def decisions(folder: Path) -> Classifier:
    """The runtime's file, made to end in an ArgMax."""
    loaded(network(), "runtime", folder)
    path = folder / "net.onnx"
    model = load(str(path))
    model.graph.node.append(helper.make_node("ArgMax", ["z"], ["winner"], axis=1, keepdims=0))
    info = helper.make_tensor_value_info("winner", TensorProto.INT64, ["n"])
    model.graph.output[0].CopyFrom(info)
    save(model, str(path))
    manifest = Manifest.model_validate(
        {"shape": SHAPE, "bounds": (0, 1), "layout": "CHW", "output": {"classes": 4}}
    )
    return load_classifier("net", path, manifest, device=torch.device("cpu")).classifier


@pytest.mark.parametrize("saver", [*SAVERS, "decisions"])
def test_success_is_what_the_module_itself_says(saver: str, tmp_path: Path) -> None:
    module, x = network(), images(4)
    model = decisions(tmp_path) if saver == "decisions" else loaded(module, saver, tmp_path)
    if saver == "decisions":
        assert {Capability.SCORES, Capability.GRADIENT} <= model.lacking.keys()
    with torch.no_grad():
        labels = module(x).argmax(1)
        for plugin, params in ATTACKS:
            result = run(plugin(), model, x, Targets.classes(labels), **params)
            changed = module(result.adversarial).argmax(1) != labels
            assert torch.equal(changed, result.success), plugin.name
            assert result.initially_correct.all()
            assert (result.adversarial >= 0).all()
            assert (result.adversarial <= 1).all()
            if plugin in (HopSkipJump, Boundary):
                assert result.success.all()
                assert (result.queries <= 300).all()
