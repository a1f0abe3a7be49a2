"""Attacks on several inputs together, and what they refuse: tokens and masks have no bounds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interpret_client
from interpret_plugins.attacks.attack import AttackResult
from interpret_plugins.attacks.auto_attack import AutoAttack
from interpret_plugins.attacks.bisection import Bisection
from interpret_plugins.attacks.boundary import Boundary
from interpret_plugins.attacks.brendel_bethge import BrendelBethge
from interpret_plugins.attacks.carlini_wagner import CarliniWagner
from interpret_plugins.attacks.corruptions import Corruptions
from interpret_plugins.attacks.fab import FAB
from interpret_plugins.attacks.fgsm import FGSM
from interpret_plugins.attacks.gradient_estimation import GradientEstimation
from interpret_plugins.attacks.hop_skip_jump import HopSkipJump
from interpret_plugins.attacks.jsma import JSMA
from interpret_plugins.attacks.pgd import PGD
from interpret_plugins.attacks.simba import SimBA
from interpret_plugins.attacks.spatial import Spatial
from interpret_plugins.attacks.square import Square
from interpret_server.engine.parameters import check_capabilities
from interpret_server.errors import InvalidRequest, MissingCapability
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Capability, Classifier, Plugin
from interpret_server.testing import serve
from tests.plugins.attacks.test_contract import Recorder

ROWS = 4


class Scene(nn.Module):
    """Linear in an image and a few numbers about it."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.facts = nn.Linear(48, 3), nn.Linear(2, 3)
        source = torch.Generator().manual_seed(8)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.3)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        return self.image(image.flatten(1)) + self.facts(facts)


class Masked(Scene):
    """Sees what a mask leaves of the image."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.image(image.flatten(1) * mask.to(image.dtype).repeat(1, 3))


class Text(nn.Module):
    """Adds up what it makes of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(torch.tanh(self.table(tokens)).sum(1))


BOUNDS = (0, 1)
IMAGE = {"name": "image", "shape": (3, 4, 4), "bounds": BOUNDS}
FACTS = {"name": "facts", "shape": (2,), "bounds": BOUNDS}


def served(net: nn.Module, folder: Path, *inputs: dict[str, Any]) -> Classifier:
    path = folder / "net.pt"
    torch.jit.script(net.eval()).save(str(path))
    manifest = Manifest.model_validate({"inputs": inputs})
    return load_classifier("net", path, manifest, device=torch.device("cpu")).classifier


def values() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(9)
    return torch.rand(ROWS, 3, 4, 4, generator=source), torch.rand(ROWS, 2, generator=source)


CASES: list[tuple[type[Plugin[Any, AttackResult]], dict[str, Any]]] = [
    (PGD, {"epsilon": 0.1}),
    (PGD, {"epsilon": 1.0, "norm": "l2"}),
    (FGSM, {"epsilon": 0.1}),
    (AutoAttack, {"epsilon": 0.1, "steps": 10, "queries": 20}),
    (FAB, {}),
    (CarliniWagner, {"steps": 40, "initial_constant": 10.0}),
    (JSMA, {}),
    (BrendelBethge, {"steps": 20}),
    (Bisection, {"attack": "fgsm"}),
    (Square, {"epsilon": 0.1, "queries": 100}),
    (SimBA, {"epsilon": 3.0, "queries": 200}),
    (GradientEstimation, {"epsilon": 0.1, "queries": 1000}),
    (HopSkipJump, {"queries": 400}),
    (Boundary, {"queries": 400}),
]


@pytest.mark.parametrize(("plugin", "params"), CASES)
def test_several_inputs_of_numbers_are_attacked_as_one(
    plugin: type[Plugin[Any, AttackResult]], params: dict[str, Any], tmp_path: Path
) -> None:
    net, model = Scene(), served(Scene(), tmp_path, IMAGE, FACTS)
    image, facts = values()
    labels = net(image, facts).argmax(1)
    made = plugin.params_type.model_validate(params)
    plugin().check(model, made)
    x = model.encode(torch.cat([image.flatten(1), facts], 1))
    job = Recorder()
    result = plugin().run(model, Batch(x, Targets.classes(labels), tuple(range(ROWS))), made, job)
    found = model.split(result.adversarial)
    assert list(found) == ["image", "facts"]
    again = net(found["image"], found["facts"]).argmax(1)
    assert torch.equal(result.success, again != labels)
    assert result.success.any()
    assert (result.adversarial >= 0).all()
    assert (result.adversarial <= 1).all()
    if "epsilon" in params and params.get("norm", "linf") == "linf":
        assert (result.distance_linf <= params["epsilon"]).all()
    assert not job.warnings


def test_the_parts_of_an_adversarial_input_are_served_by_name(tmp_path: Path) -> None:
    net = Scene()
    served(net, tmp_path, IMAGE, FACTS)
    image, facts = values()
    labels = net(image, facts).argmax(1)
    models = {"net": (tmp_path / "net.pt", {"inputs": [IMAGE, FACTS]})}
    with serve(None, models) as address, interpret_client.connect(address) as client:
        inputs = {"image": image.numpy(), "facts": facts.numpy()}
        result = client.run(
            "pgd", "net", inputs, target=labels.tolist(), params={"epsilon": 0.2}, seed=0
        )
        parts = [torch.from_numpy(result.tensors[f"adversarial.{name}"]) for name in inputs]
        assert result.tensors["success"].tolist() == (net(*parts).argmax(1) != labels).tolist()
        with pytest.raises(interpret_client.InvalidRequest, match="several inputs"):
            client.run("pgd", "net", inputs, target=0, tensors={"lower": image.numpy()})


@pytest.mark.parametrize("plugin", [Spatial, Corruptions])
def test_what_takes_images_refuses_several_inputs(
    plugin: type[Plugin[Any, AttackResult]], tmp_path: Path
) -> None:
    model = served(Scene(), tmp_path, IMAGE, FACTS)
    with pytest.raises(InvalidRequest, match="takes no images"):
        plugin().check(model, plugin.params_type())


MASK = {"name": "mask", "shape": (16,), "kind": "integers"}


@pytest.mark.parametrize(
    ("net", "inputs", "why"),
    [
        (Scene(), (IMAGE, FACTS | {"bounds": (0, 2)}), "the same inputs"),
        (Masked(), (IMAGE, MASK), "carried along, have none"),
        (Text(), ({"shape": (None,)},), "embeddings have no bounds"),
    ],
)
def test_what_has_no_bounds_is_refused_with_the_reason(
    net: nn.Module, inputs: tuple[dict[str, Any], ...], why: str, tmp_path: Path
) -> None:
    model = served(net, tmp_path, *inputs)
    assert Capability.BOUNDS not in model.capabilities
    for plugin in (PGD, Square, HopSkipJump):
        with pytest.raises(MissingCapability, match=f"{plugin.name} requires bounds: .*{why}"):
            check_capabilities(plugin(), model)
