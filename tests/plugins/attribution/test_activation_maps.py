"""Class activation maps: formulas in float64, Captum, CAM's closed form, every file format."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import GuidedGradCam, LayerAttribution, LayerGradCam
from torch import Tensor, nn
from torch.nn import functional

from interpret_plugins.attribution.grad_cam import GradCAM
from interpret_plugins.attribution.grad_cam_plus_plus import GradCAMPlusPlus
from interpret_plugins.attribution.guided_grad_cam import GuidedGradCAM
from interpret_plugins.attribution.layer_cam import LayerCAM
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Plugin
from interpret_server.testing import classifier
from tests.plugins.attribution.maps import SHAPE, close, network, run

PLUGINS = [GradCAM, GradCAMPlusPlus, LayerCAM]


def slope(module: nn.Sequential, at: int, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's values and the gradient of the logits by them."""
    values = module[: at + 1](x).detach().requires_grad_()
    total = module[at + 1 :](values).gather(1, labels[:, None]).sum()
    return values.detach(), torch.autograd.grad(total, values)[0]


def by_hand(plugin: type, values: Tensor, gradient: Tensor) -> Tensor:
    """The papers' formulas, one position after the other."""
    result = torch.zeros(len(values), *values.shape[2:], dtype=values.dtype)
    positions = [(i, j) for i in range(values.shape[2]) for j in range(values.shape[3])]
    for row, (maps, slopes) in enumerate(zip(values, gradient, strict=True)):
        for channel, g in zip(maps, slopes, strict=True):
            for i, j in positions:
                if plugin is LayerCAM:
                    weight = max(g[i, j], torch.zeros(()))
                elif plugin is GradCAM:
                    weight = sum(g[a, b] for a, b in positions) / len(positions)
                else:
                    total = sum(channel[a, b] for a, b in positions)
                    weight = sum(
                        g[a, b] ** 2 / (2 * g[a, b] ** 2 + total * g[a, b] ** 3) * g[a, b]
                        for a, b in positions
                        if g[a, b] > 0
                    )
                result[row, i, j] += weight * channel[i, j]
    return result


@pytest.mark.parametrize("plugin", PLUGINS)
def test_maps_are_the_papers_formulas(plugin: type[Plugin[Any, Any]]) -> None:
    module = network().double()
    x, labels = torch.rand(3, *SHAPE, dtype=torch.float64), torch.tensor([0, 2, 3])
    expected = by_hand(plugin, *slope(module, 4, x, labels))
    model = classifier(module, SHAPE, input_layout="CHW")
    signed = run(plugin, model, x, Targets.classes(labels), rectify=False, upsample="none")
    torch.testing.assert_close(signed.map, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(signed.attributions, signed.map)
    assert signed.map.min() < 0 < signed.map.max() or plugin is not GradCAM
    found = run(plugin, model, x, Targets.classes(labels))
    torch.testing.assert_close(found.map, expected.clamp(min=0), rtol=1e-10, atol=1e-12)
    large = functional.interpolate(
        expected.clamp(min=0)[:, None], size=(12, 12), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(found.attributions, large[:, 0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.logits, module(x))
    assert found.layer.tolist() == [list(model.layers).index("4")] * 3


def test_the_weights_of_grad_cam_plus_plus_are_those_of_the_exponential_score() -> None:
    """Equation 5 and the weights from second and third derivatives of `Y = exp(S)`."""
    head = nn.Sequential(nn.Flatten(), nn.Linear(2 * 9, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    body = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()).double()
    x = torch.rand(1, 1, 3, 3, dtype=torch.float64)
    values = body(x).detach()

    def score(flat: Tensor) -> Tensor:
        return head(flat.reshape(1, 2, 3, 3))[0, 1].exp()

    flat = values.flatten().requires_grad_()
    (first,) = torch.autograd.grad(score(flat), flat, create_graph=True)
    second, third = [], []
    for position in range(len(flat)):
        (row,) = torch.autograd.grad(first[position], flat, create_graph=True)
        second.append(row[position].detach())
        third.append(torch.autograd.grad(row[position], flat, retain_graph=True)[0][position])
    shape = values.shape[1:]
    first, second, third = (
        item.reshape(shape) for item in (first.detach(), torch.stack(second), torch.stack(third))
    )
    divisor = 2 * second + values[0].sum((1, 2), keepdim=True) * third
    alpha = torch.where(divisor == 0, 0, second / divisor)
    weights = (alpha * first.clamp(min=0)).sum((1, 2), keepdim=True)
    expected = (weights * values[0]).sum(0)
    model = classifier(nn.Sequential(*body, *head), (1, 3, 3), input_layout="CHW")
    found = run(GradCAMPlusPlus, model, x, Targets.classes(torch.tensor([1])), rectify=False)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found.map[0] * score(flat.detach()), expected)


def test_grad_cam_is_cam_where_pooling_and_a_linear_layer_follow() -> None:
    """Zhou et al. 2016, equation 2, divided by the number of positions."""
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).double()
    x, labels = torch.rand(4, *SHAPE, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    cam = torch.einsum("nk,nkij->nij", module[6].weight[labels], module[:4](x))
    model = classifier(module, SHAPE, input_layout="CHW")
    found = run(GradCAM, model, x, Targets.classes(labels), rectify=False)
    torch.testing.assert_close(found.map * 64, cam, rtol=1e-10, atol=1e-12)


def _script(module: nn.Module, path: Path) -> None:
    torch.jit.script(module).save(str(path))


def _onnx(module: nn.Module, path: Path) -> None:
    torch.onnx.export(
        module,
        (torch.rand(2, *SHAPE),),
        str(path),
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )


def _single(module: nn.Module, path: Path) -> None:
    """For one row at a time."""
    torch.onnx.export(module, (torch.rand(1, *SHAPE),), str(path), dynamo=False, input_names=["x"])


def _pairs(module: nn.Module, path: Path) -> None:
    """For two rows at a time."""
    torch.onnx.export(module, (torch.rand(2, *SHAPE),), str(path), dynamo=False, input_names=["x"])


def _exported(module: nn.Module, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        module, (torch.rand(2, *SHAPE),), dynamic_shapes=({0: batch},), strict=False
    )
    torch.export.save(program, path)


FILES = {
    "scripted.pt": _script,
    "graph.onnx": _onnx,
    "single.onnx": _single,
    "pairs.onnx": _pairs,
    "program.pt2": _exported,
}


@pytest.mark.parametrize("file", FILES)
def test_loaded_files_equal_captum_on_the_eager_module(file: str, tmp_path: Path) -> None:
    module = network().eval()
    path = tmp_path / file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that its exporters are deprecated
        FILES[file](module, path)
    manifest = Manifest.model_validate({"shape": SHAPE, "bounds": (0, 1)})
    model = load_classifier("net", path, manifest, device=torch.device("cpu")).classifier
    x, labels = torch.rand(3, *SHAPE), torch.tensor([1, 3, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum announces its hooks
        eager = copy.deepcopy(module)
        coarse = LayerGradCam(eager, eager[4]).attribute(x, labels, relu_attributions=True)
        guided = GuidedGradCam(eager, eager[4]).attribute(x, labels, interpolate_mode="bilinear")
    large = LayerAttribution.interpolate(coarse, SHAPE[1:], "bilinear").detach()
    for _ in range(2):
        found = run(GradCAM, model, x, Targets.classes(labels))
        close(found.map, coarse[:, 0].detach())
        close(found.attributions, large[:, 0])
        close(run(GuidedGradCAM, model, x, Targets.classes(labels)).attributions, guided.detach())
    for plugin in PLUGINS:
        expected = by_hand(plugin, *slope(module, 4, x, labels)).clamp(min=0)
        close(run(plugin, model, x, Targets.classes(labels)).map, expected)
