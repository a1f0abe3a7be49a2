"""A lowering that is wrong in one layer is refused, and the layer is named."""

from pathlib import Path

import pytest
import torch
from loading_files import load, script
from torch import Tensor, nn

from interpret_server.errors import ModelRejected
from interpret_server.models import onnx_source, sources
from interpret_server.models.lowered import Lowered

SHAPE = (3, 8, 8)
pytestmark = pytest.mark.filterwarnings("ignore")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(Block(), Block())
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(self.stem(x)).mean((2, 3)))


def scripted(net: nn.Module, folder: Path) -> Path:
    return script(net, folder)


def traced(net: nn.Module, folder: Path) -> Path:
    return script(net, folder, torch.rand(2, *SHAPE))


def exported(net: nn.Module, folder: Path) -> Path:
    path = folder / "model.pt2"
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(
        torch.export.export(net, (torch.rand(2, *SHAPE),), dynamic_shapes=dynamic), path
    )
    return path


def onnx(net: nn.Module, folder: Path) -> Path:
    path = folder / "model.onnx"
    torch.onnx.export(
        net,
        (torch.rand(2, *SHAPE),),
        str(path),
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "N"}},
        do_constant_folding=False,
    )
    return path


FORMS = {
    "scripted": (scripted, sources.TorchScriptSource),
    "traced": (traced, sources.TorchScriptSource),
    "exported": (exported, sources.ExportedSource),
    "onnx": (onnx, onnx_source.OnnxSource),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrong", ["stem", "blocks.1.conv", "last"])
def test_the_first_layer_that_differs_is_named(
    form: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    export, source = FORMS[form]
    path = export(Net().eval(), tmp_path)
    lower = source.lower
    spoilt_layers: list[str] = []

    def spoilt(self: sources.Source, *examples: Tensor) -> Lowered:
        lowered = lower(self, *examples)
        layer = next(name for name in lowered.layers if wrong in name.replace("/", "."))
        spoilt_layers.append(layer)
        nodes = {node.name: node for node in lowered.graph.graph.nodes}
        node = nodes[lowered.layers[layer]]
        module = lowered.graph.get_submodule(str(node.target))
        assert isinstance(module.weight, Tensor)
        module.weight = nn.Parameter(module.weight * 1.05, requires_grad=False)
        return lowered

    assert load(path, shape=SHAPE).info.verification.relative_difference < 1e-5
    monkeypatch.setattr(source, "lower", spoilt)
    with pytest.raises(ModelRejected, match="first layer that differs is ") as caught:
        load(path, shape=SHAPE)
    assert caught.value.message.endswith(f" {spoilt_layers[-1]}")
