"""Gradient methods on TorchScript, ONNX and torch.export files, against the eager module."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import InputXGradient as CaptumInputXGradient
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from torch import Tensor, nn
from torch.nn import functional

from interpret_plugins.attribution.input_x_gradient import InputXGradient
from interpret_plugins.attribution.integrated_gradients import IntegratedGradients
from interpret_plugins.attribution.smoothgrad import SmoothGrad
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job, Plugin

SHAPE = (3, 8, 8)
SEEDS = (3, 1, 4)
FORMS = ("scripted", "traced", "onnx", "exported")


class Network(nn.Module):
    """Smooth enough for integrals, with functional, reused and in-place parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3, padding=1)
        self.last = nn.Linear(54, 4)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = functional.max_pool2d(self.relu(self.second(x)), 2)
        return self.last(torch.tanh_(torch.flatten(x, 1)))


class Bag(nn.Module):
    """A linear model of the embeddings of the tokens that are no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(9, 5), nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        kept = (tokens != 0).to(torch.float32).unsqueeze(2)
        return self.last((self.table(tokens) * kept).sum(1) / (kept.sum(1) + 1))


def load(
    module: nn.Module, example: Tensor, form: str, folder: Path, manifest: dict[str, Any]
) -> Classifier:
    path = folder / {"onnx": "model.onnx", "exported": "model.pt2"}.get(form, "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that its exporters are deprecated
        match form:
            case "scripted":
                torch.jit.script(module).save(str(path))
            case "traced":
                torch.jit.trace(module, example).save(str(path))
            case "onnx":
                torch.onnx.export(
                    module,
                    (example,),
                    str(path),
                    dynamo=False,
                    input_names=["x"],
                    dynamic_axes={"x": {0: "n"}},
                )
            case "exported":
                free = ({0: torch.export.Dim.DYNAMIC},)
                torch.export.save(
                    torch.export.export(module, (example,), dynamic_shapes=free), path
                )
    made = Manifest.model_validate(manifest)
    return load_classifier("net", path, made, device=torch.device("cpu")).classifier


def run(plugin: Plugin[Any, Any], model: Classifier, batch: Batch, **params: object) -> Any:
    made = plugin.params_type.model_validate(params)
    plugin.check(model, made)
    return plugin.run(model, batch, made, Job())


@pytest.mark.parametrize("form", FORMS)
def test_files_equal_captum_on_the_eager_module(form: str, tmp_path: Path) -> None:
    module = Network().eval()
    model = load(module, torch.rand(2, *SHAPE), form, tmp_path, {"shape": SHAPE, "bounds": (0, 1)})
    x, labels = torch.rand(3, *SHAPE), torch.tensor([1, 3, 0])
    batch = Batch(x, Targets.classes(labels), SEEDS)

    expected = CaptumInputXGradient(module).attribute(x.clone().requires_grad_(), target=labels)
    found = run(InputXGradient(), model, batch).attributions
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-7)

    expected = CaptumIntegratedGradients(module).attribute(x, target=labels, n_steps=30)
    result = run(IntegratedGradients(), model, batch, steps=30)
    torch.testing.assert_close(result.attributions, expected.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result.logits, module(x).detach())

    values = []
    for sample in range(6):
        noisy = (x + 0.2 * batch.normal(sample)).requires_grad_()
        chosen = module(noisy).gather(1, labels[:, None]).sum()
        values.append(torch.autograd.grad(chosen, noisy)[0].double())
    variance = torch.stack(values).var(0, correction=0).float()
    found = run(SmoothGrad(), model, batch, samples=6, noise=0.2, kind="variance").attributions
    torch.testing.assert_close(found, variance, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("form", ["scripted", "onnx", "exported"])
def test_tokens_are_attributed_at_their_embedding_and_padding_stays_padding(
    form: str, tmp_path: Path
) -> None:
    module = Bag().eval()
    tokens = torch.tensor([[3, 1, 0, 0], [8, 2, 5, 0], [4, 4, 4, 7]])
    manifest = {"inputs": [{"shape": (4,), "dtype": "int64"}]}
    model = load(module, tokens, form, tmp_path, manifest)
    labels = torch.tensor([2, 0, 1])
    batch = Batch(model.encode(tokens), Targets.classes(labels), SEEDS)
    kept = (tokens != 0).float().unsqueeze(2)
    slopes = (
        module.last.weight[labels].unsqueeze(1) * kept / (kept.sum(1, keepdim=True) + 1)
    ).detach()
    shares = (module.table(tokens) * slopes).detach()

    def explained(values: Tensor) -> Tensor:
        (only,) = model.split(values).values()
        return only.reshape(3, 4, 5)

    torch.testing.assert_close(explained(run(InputXGradient(), model, batch).attributions), shares)
    result = run(IntegratedGradients(), model, batch, steps=3)
    torch.testing.assert_close(explained(result.attributions), shares)
    assert float(result.convergence_delta.abs().max()) < 1e-5
    smooth = run(SmoothGrad(), model, batch, samples=3, noise=0.5)
    torch.testing.assert_close(explained(smooth.attributions), slopes)
