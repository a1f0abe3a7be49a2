"""What a worker draws of models of tokens, of signals, of tables and of several inputs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_fakes import array, calling, result, serving, tensor, to_class
from torch import Tensor, nn

from interpret_client import pictures
from interpret_pictures.drawing import Scene
from interpret_pictures.options import Rendering
from interpret_plugins.attribution.input_x_gradient import InputXGradient
from interpret_plugins.attribution.saliency import Saliency
from interpret_plugins.metrics.compare import Compare
from interpret_plugins.metrics.deletion import Deletion
from interpret_server.engine.api import Result
from interpret_server.models.manifest import Manifest


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(torch.tanh(self.table(tokens)).sum(1))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.facts = nn.Linear(12, 3), nn.Linear(2, 3)

    def forward(self, image: Tensor, facts: Tensor) -> Tensor:
        return self.image(image.flatten(1)) + self.facts(facts)


async def drawn(
    net: nn.Module, folder: Path, manifest: Any, sent: Any, rendering: Rendering
) -> Result:
    torch.jit.script(net.eval()).save(str(folder / "net.pt"))
    async with serving(InputXGradient()) as worker:
        await worker.load("mine", folder / "net.pt", Manifest.model_validate(manifest))
        call = calling(
            "input_x_gradient", sent, model="mine", targets=to_class(1), render=rendering
        )
        return await result(worker, call)


async def test_tokens_are_drawn_as_bars_with_their_places_and_numbers(tmp_path: Path) -> None:
    ids = torch.tensor([[3, 1, 4, 1], [5, 8, 2, 6]])
    manifest = {"inputs": [{"kind": "tokens", "shape": [4], "dtype": "int64"}]}
    found = await drawn(Text(), tmp_path, manifest, array(ids, torch.int64), Rendering())
    values = tensor(found.tensors["token_attributions"]).numpy()
    names = ["0 · 5", "1 · 8", "2 · 2", "3 · 6"]
    assert set(found.pictures) == {"token_attributions"}
    assert found.pictures["token_attributions"][1] == pictures.png(pictures.bars(values[1], names))


async def test_features_of_a_table_are_drawn_as_bars(tmp_path: Path) -> None:
    x = torch.rand(2, 5)
    names = ["age", "height", "weight", "income", "children"]
    for manifest, expected in (({}, ()), ({"features": names}, names)):
        shape = {"shape": [5], **manifest}
        found = await drawn(nn.Linear(5, 3), tmp_path, shape, array(x), Rendering())
        values = tensor(found.tensors["attributions"]).numpy()
        bars = pictures.bars(values[0], expected)
        assert found.pictures["attributions"][0] == pictures.png(bars)


async def test_signals_are_drawn_with_their_curve(tmp_path: Path) -> None:
    x = torch.rand(1, 2, 30)
    net = nn.Sequential(nn.Flatten(), nn.Linear(60, 3))
    manifest = {"shape": [2, 30], "layout": "CL", "bounds": [0, 1]}
    found = await drawn(net, tmp_path, manifest, array(x), Rendering(styles=("overlay",)))
    values = tensor(found.tensors["attributions"]).numpy()
    expected = pictures.draw(
        {"attributions": values}, Rendering(styles=("overlay",)), Scene(x.numpy(), "CL", (0, 1))
    )
    assert found.pictures == expected.pictures


async def test_every_input_of_several_is_drawn_by_its_own_layout(tmp_path: Path) -> None:
    image, facts = torch.rand(1, 3, 2, 2), torch.rand(1, 2)
    manifest = {
        "inputs": [
            {"name": "image", "shape": [3, 2, 2], "layout": "CHW", "bounds": [0, 1]},
            {"name": "facts", "shape": [2]},
        ]
    }
    sent = {"image": array(image), "facts": array(facts)}
    found = await drawn(Pair(), tmp_path, manifest, sent, Rendering(styles=("overlay",)))
    assert set(found.pictures) == {"attributions.image.overlay", "attributions.facts.overlay"}
    row = tensor(found.tensors["attributions.image"]).numpy()[0]
    two_colored = bool((np.asarray(row) < 0).any())
    over = pictures.overlay(row, image.numpy()[0], bounds=(0, 1), two_colored=two_colored)
    assert found.pictures["attributions.image.overlay"] == (pictures.png(over),)
    bars = pictures.bars(tensor(found.tensors["attributions.facts"]).numpy()[0])
    assert found.pictures["attributions.facts.overlay"] == (pictures.png(bars),)


async def test_methods_that_are_compared_are_sent_and_drawn_by_input(tmp_path: Path) -> None:
    image = torch.rand(1, 1, 3, 4)
    manifest = {
        "inputs": [
            {"name": "image", "shape": [1, 3, 4], "bounds": [0, 1]},
            {"name": "facts", "shape": [2]},
        ]
    }
    sent = {"image": array(image), "facts": array(torch.rand(1, 2))}
    torch.jit.script(Pair().eval()).save(str(tmp_path / "net.pt"))
    params = '{"methods": ["saliency", "input_x_gradient"], "metrics": ["deletion"]}'
    async with serving(Compare(), Saliency(), InputXGradient(), Deletion()) as worker:
        await worker.load("mine", tmp_path / "net.pt", Manifest.model_validate(manifest))
        call = calling(
            "compare", sent, model="mine", targets=to_class(1), params=params, render=Rendering()
        )
        found = await result(worker, call)
    methods = ("saliency", "input_x_gradient")
    names = {f"attributions.{name}.{part}" for name in methods for part in ("image", "facts")}
    assert set(found.tensors) == names
    assert found.tensors["attributions.saliency.image"].shape == (1, 1, 3, 4)
    assert set(found.pictures) == names | {"comparison.image", "comparison.facts"}
