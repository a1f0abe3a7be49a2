"""Attacks by scores on files of every form, on those that only predict too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpret_client
from interpret_plugins.attacks.attack import AttackResult
from interpret_plugins.attacks.gradient_estimation import GradientEstimation
from interpret_plugins.attacks.nes import NES
from interpret_plugins.attacks.simba import SimBA
from interpret_plugins.attacks.spsa import SPSA
from interpret_plugins.attacks.square import Square
from interpret_server.models.assembly import assemble, from_module
from interpret_server.models.classifier import Bounds
from interpret_server.models.inputs import ResolvedInput
from interpret_server.models.manifest import OutputSpec
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Job, Plugin
from interpret_server.registry import Registry
from interpret_server.testing import serve
from tests.plugins.attribution.perturbing import SAVERS, SHAPE, images, loaded, network

PLUGINS: tuple[type[Plugin[Any, AttackResult]], ...] = (
    Square,
    NES,
    SPSA,
    GradientEstimation,
    SimBA,
)
PARAMS = {"queries": 150, "epsilon": 0.2, "norm": "linf"}
FEW: dict[str, dict[str, Any]] = {
    "nes": {"samples": 10},
    "spsa": {"samples": 10},
    "gradient_estimation": {"directions": 5},
}


def test_every_form_of_a_file_is_attacked_alike(tmp_path: Path) -> None:
    x = images(6)
    labels = network()(x).argmax(1)
    batch = Batch(x, Targets.classes(labels), tuple(range(6)))
    found: dict[str, list[Tensor]] = {plugin.name: [] for plugin in PLUGINS}
    for saver in SAVERS:
        model = loaded(network(), saver, tmp_path)
        for plugin in PLUGINS:
            params = plugin.params_type.model_validate(PARAMS | FEW.get(plugin.name, {}))
            result = plugin().run(model, batch, params, Job())
            again = network()(result.adversarial).argmax(1)
            assert torch.equal(result.success, again != labels)
            assert (result.distance_linf <= 0.2).all()
            found[plugin.name].append(result.success)
    for name, (first, *others) in found.items():
        assert first.any(), name
        assert all(torch.equal(first, other) for other in others), name


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_a_served_file_that_only_predicts_is_attacked(
    plugin: type[Plugin[Any, AttackResult]], tmp_path: Path
) -> None:
    registry = Registry()
    registry.add(plugin, "tests")
    model = loaded(network(), "runtime", tmp_path)
    assert "gradient" in model.lacking
    x = images(3)
    labels = network()(x).argmax(1)
    params = PARAMS | FEW.get(plugin.name, {})
    with serve(registry, {"net": model}) as address, interpret_client.connect(address) as client:
        result = client.run(
            plugin.name, "net", x.numpy(), target=labels.tolist(), seed=3, params=params
        )
    found = torch.from_numpy(result.tensors["adversarial"])
    again = network()(found).argmax(1)
    assert result.tensors["success"].tolist() == (again != labels).tolist()
    assert max(result.metrics["queries"]) <= 150


class Winner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).argmax(1)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_a_file_that_names_the_winner_alone_is_refused(
    plugin: type[Plugin[Any, AttackResult]],
) -> None:
    spec = ResolvedInput("x", SHAPE, bounds=Bounds(0.0, 1.0))
    classes = images(1).numel()
    body = from_module(Winner(), spec, OutputSpec(classes=classes), form="runtime", reason="No.")
    registry = Registry()
    registry.add(plugin, "tests")
    with (
        serve(registry, {"winner": assemble("winner", body, spec)}) as address,
        interpret_client.connect(address) as client,
        pytest.raises(interpret_client.FailedPrecondition, match="winning class alone"),
    ):
        client.run(plugin.name, "winner", images(1).numpy(), target=0)
