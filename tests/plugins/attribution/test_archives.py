"""Rectifier rules on loaded files equal Captum on the eager module, on every call."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop
from torch import Tensor, nn
from torch.nn import functional

from interpret_plugins.attribution import deconvnet, guided_backprop
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job

SHAPE = (3, 10, 10)


class Modules(nn.Module):
    """A rectifier of its own at each place, which is the form that Captum is right on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3, padding=1)
        self.third, self.last = nn.Linear(96, 12), nn.Linear(12, 4)
        self.one, self.two, self.three = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.first(x))
        x = functional.max_pool2d(self.two(self.second(x)), 2)
        return self.last(self.three(self.third(torch.flatten(x, 1))))


class Reused(Modules):
    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.first(x))
        x = functional.max_pool2d(self.one(self.second(x)), 2)
        return self.last(self.one(self.third(torch.flatten(x, 1))))


class Written(Modules):
    """Functional and in-place rectifiers."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.first(x))
        x = functional.max_pool2d(functional.relu(self.second(x), inplace=True), 2)
        return self.last(functional.relu(self.third(torch.flatten(x, 1))))


def _script(module: nn.Module, path: Path) -> None:
    torch.jit.script(module).save(str(path))


def _trace(module: nn.Module, path: Path) -> None:
    torch.jit.trace(module, torch.rand(2, *SHAPE)).save(str(path))


def _freeze(module: nn.Module, path: Path) -> None:
    torch.jit.freeze(torch.jit.script(module)).save(str(path))


def _onnx(module: nn.Module, path: Path) -> None:
    torch.onnx.export(
        module,
        (torch.rand(2, *SHAPE),),
        str(path),
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )


SAVERS = {"scripted": _script, "traced": _trace, "frozen": _freeze, "onnx": _onnx}


def _attributions(method: str, model: Classifier, batch: Batch) -> Tensor:
    if method == "guided":
        plugin = guided_backprop.GuidedBackprop()
        params = guided_backprop.GuidedBackpropParams()
        return plugin.run(model, batch, params, Job()).attributions
    return deconvnet.Deconvnet().run(model, batch, deconvnet.DeconvnetParams(), Job()).attributions


@pytest.mark.parametrize("form", [Modules, Reused, Written])
@pytest.mark.parametrize("saver", SAVERS)
def test_loaded_files_equal_captum_on_the_first_and_on_the_tenth_call(
    saver: str, form: type[Modules], tmp_path: Path
) -> None:
    eager = Modules().eval()
    module = form().eval()
    module.load_state_dict(eager.state_dict())
    path = tmp_path / ("model.onnx" if saver == "onnx" else "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that its exporters are deprecated
        SAVERS[saver](module, path)
    manifest = Manifest.model_validate({"shape": SHAPE, "bounds": (0, 1)})
    model = load_classifier("net", path, manifest, device=torch.device("cpu")).classifier
    x, labels = torch.rand(3, *SHAPE), torch.tensor([1, 3, 0])
    batch = Batch(x, Targets.classes(labels), (0, 0, 0))
    for method, peer in (("guided", GuidedBackprop), ("deconvnet", Deconvolution)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Captum announces its hooks
            expected = peer(copy.deepcopy(eager)).attribute(
                x.clone().requires_grad_(), target=labels
            )
        for _ in range(10):
            found = _attributions(method, model, batch)
            assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-6
            model(x)
