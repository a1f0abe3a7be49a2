"""Every method that takes gradients explains recurrent networks and leaves them as they were."""

import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from perturbing import Recorder, run
from torch import Tensor, nn

from interpret_plugins.attribution.grad_cam import GradCAM
from interpret_plugins.attribution.saliency import Saliency
from interpret_server.errors import InterpretError
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Capability, Classifier, InvalidRequest, Kind, Plugin
from interpret_server.testing.witness import hooks

SHAPE = (5, 12)
TARGETS = Targets.classes(torch.tensor([2, 0]))
FORMS = ("training", "scripted", "exported", "onnx")


class Recurrent(nn.Module):
    """Two layers with dropout between them, perhaps after a convolution."""

    def __init__(self, kind: str, convolution: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, 6, 3, stride=2) if convolution else None
        self.rnn = getattr(nn, kind)(6 if convolution else 5, 7, 2, batch_first=True, dropout=0.5)
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is not None:
            x = torch.relu(self.conv(x))
        states, _ = self.rnn(x.transpose(1, 2))
        return self.last(states[:, -1])


def load(net: nn.Module, form: str, folder: Path) -> Classifier:
    path = folder / {"onnx": "net.onnx", "exported": "net.pt2"}.get(form, "net.pt")
    x = torch.rand(2, *SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that its exporters are deprecated
        if form == "onnx":
            torch.onnx.export(
                net,
                (x,),
                str(path),
                dynamo=False,
                input_names=["x"],
                dynamic_axes={"x": {0: "n"}},
            )
        elif form == "exported":
            free = ({0: torch.export.Dim.DYNAMIC},)
            torch.export.save(torch.export.export(net, (x,), dynamic_shapes=free), path)
        else:
            torch.jit.script(net.train(form == "training")).save(str(path))
            net.eval()
    manifest = Manifest.model_validate({"shape": SHAPE, "bounds": (0, 1)})
    return load_classifier("net", path, manifest, device=torch.device("cpu")).classifier


def methods() -> dict[str, type[Plugin[Any, Any]]]:
    """The installed attribution plugins that take gradients."""
    points = entry_points(group="interpret_server.plugins")
    plugins = [point.load() for point in points if ".attribution." in point.value]
    return {
        plugin.name: plugin
        for plugin in plugins
        if plugin.kind is Kind.ATTRIBUTION and Capability.GRADIENT in plugin.requires
    }


def explain(plugin: type[Plugin[Any, Any]], model: Classifier, x: Tensor) -> Any:
    """The result of a plugin with few steps; None where it does not suit the model."""
    if not plugin.requires <= model.capabilities:
        return None
    fields = plugin.params_type.model_fields
    few = {name: 4 for name in ("steps", "samples") if name in fields}
    tensors = {
        name: torch.zeros_like(x) if tensor.like_input else torch.zeros(len(x), 2, *x.shape[1:])
        for name, tensor in plugin.tensors.items()
        if tensor.required
    }
    try:
        return run(plugin(), model, x, TARGETS, Recorder(), tensors, **few)
    except InterpretError:
        return None


def state(model: Classifier) -> dict[str, Any]:
    modules = dict(model.module.named_modules())
    flags = {f"training of {name}": module.training for name, module in modules.items()}
    flags |= {
        f"gradient of {name}": (parameter.requires_grad, parameter.grad)
        for name, parameter in model.module.named_parameters()
    }
    return {**flags, "hooks": hooks(model), "grad mode": torch.is_grad_enabled()}


@pytest.mark.parametrize(
    ("kind", "form"), [*(("LSTM", form) for form in FORMS), ("GRU", "training"), ("GRU", "onnx")]
)
def test_networks_with_dropout_are_explained_in_eval_mode_and_left_so(
    kind: str, form: str, tmp_path: Path
) -> None:
    net = Recurrent(kind, convolution=True).eval()
    model, x = load(net, form, tmp_path), torch.rand(2, *SHAPE)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(net(leaf).gather(1, TARGETS.index).sum(), leaf)
    before, known = model(x).detach(), state(model)
    weights = {name: value.clone() for name, value in model.module.state_dict().items()}
    assert not any(module.training for module in model.module.modules())
    torch.testing.assert_close(before, net(x).detach())
    explained = set()
    for name, plugin in methods().items():
        result = explain(plugin, model, x)
        assert state(model) == known, name
        assert torch.equal(model(x), before), name
        if result is not None:
            again = explain(plugin, model, x)
            assert torch.equal(again.attributions, result.attributions), name
            assert result.attributions.isfinite().all(), name
            explained.add(name)
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, weights[name])
    assert explained >= {
        "saliency",
        "input_x_gradient",
        "integrated_gradients",
        "guided_integrated_gradients",
        "blur_integrated_gradients",
        "smoothgrad",
        "guided_backprop",
        "grad_cam",
        "layer_cam",
    }
    found = run(Saliency(), model, x, TARGETS, absolute=False).attributions
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_the_map_is_that_of_the_convolution_before_the_recurrence(
    form: str, tmp_path: Path
) -> None:
    net = Recurrent("GRU", convolution=True).eval()
    model, x = load(net, form, tmp_path), torch.rand(2, *SHAPE)
    values = torch.relu(net.conv(x)).detach().requires_grad_()
    states, _ = net.rnn(values.transpose(1, 2))
    scores = net.last(states[:, -1]).gather(1, TARGETS.index).sum()
    (gradient,) = torch.autograd.grad(scores, values)
    expected = (gradient.mean(2, keepdim=True) * values).sum(1).detach()
    found = run(GradCAM(), model, x, TARGETS, rectify=False)
    torch.testing.assert_close(found.map, expected, rtol=1e-4, atol=1e-7)
    assert found.attributions.shape == (2, 12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_network_of_recurrences_alone_has_no_map(kind: str, form: str, tmp_path: Path) -> None:
    model = load(Recurrent(kind, convolution=False).eval(), form, tmp_path)
    with pytest.raises(InvalidRequest, match="no layer of net with spatial axes can be chosen"):
        run(GradCAM(), model, torch.rand(2, *SHAPE), TARGETS)
