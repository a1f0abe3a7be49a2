"""Samplers and priors on TorchScript, ONNX and torch.export files as on the module itself."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from interpret_plugins.synthesis.fooling_image import FoolingImage, FoolingImageParams
from interpret_plugins.synthesis.inpaint import Inpaint, InpaintParams
from interpret_plugins.synthesis.langevin import Langevin, LangevinParams
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.plugin import Classifier, Job
from interpret_server.testing import classifier
from tests.plugins.metrics.judging import (
    FORMS,
    SHAPE,
    batch_of,
    close,
    eager,
    images,
    loaded,
    network,
)


@pytest.mark.parametrize("form", FORMS)
def test_files_give_what_the_module_gives(form: str, tmp_path: Path) -> None:
    module, x = network(), images()
    mask = torch.zeros_like(x)
    mask[..., 2:5] = 1
    models = eager(module), loaded(module, form, tmp_path)
    sampling = LangevinParams.model_validate(
        {"steps": 10, "priors": ["smoothness", "total_variation"], "chains": 2}
    )
    drawn = [Langevin().run(model, batch_of(x), sampling, Job()) for model in models]
    close(drawn[1].images, drawn[0].images)
    filled = [
        Inpaint().run(model, batch_of(x, mask=mask), InpaintParams(steps=10), Job())
        for model in models
    ]
    close(filled[1].images, filled[0].images)
    fooled = [
        FoolingImage().run(model, batch_of(x), FoolingImageParams(steps=10), Job())
        for model in models
    ]
    close(fooled[1].images, fooled[0].images, 1e-4)


class _Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.smooth = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.smooth(x)


class _Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(84, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x.flatten(1))).sum(1) + x.flatten(1).square().sum(1)


def _values(module: nn.Module, form: str, folder: Path) -> Classifier:
    path, x = folder / {"scripted": "prior.pt", "onnx": "prior.onnx"}[form], images(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces that its exporters are deprecated
        if form == "scripted":
            torch.jit.script(module).save(str(path))
        else:
            axes = {"x": {0: "n"}, "y": {0: "n"}}
            torch.onnx.export(
                module, (x,), str(path), dynamo=False, input_names=["x"], output_names=["y"],
                dynamic_axes=axes,
            )  # fmt: skip
    fields = {"shape": SHAPE, "bounds": (0, 1), "layout": "CHW", "output": {"kind": "values"}}
    manifest = Manifest.model_validate(fields)
    return load_classifier("prior", path, manifest, device=torch.device("cpu")).classifier


@pytest.mark.parametrize("form", ["scripted", "onnx"])
@pytest.mark.parametrize(
    ("module", "prior"),
    [
        (_Denoiser(), {"plugin": "score_model", "params": {"sigma": 0.2}}),
        (_Energy(), {"plugin": "log_prob_model", "params": {"gives": "energy"}}),
    ],
    ids=["denoiser", "energy"],
)
def test_learned_priors_come_from_files(
    module: nn.Module, prior: dict[str, object], form: str, tmp_path: Path
) -> None:
    model, x = eager(network()), images()
    params = LangevinParams.model_validate({"steps": 5, "priors": [prior, "gaussian"]})
    expected, found = (
        Langevin().run(model, batch_of(x), params, Job({"prior": learned}))
        for learned in (
            classifier(module, SHAPE, values=True, input_layout="CHW"),
            _values(module, form, tmp_path),
        )
    )
    close(found.images, expected.images)
    assert (found.log_prior is None) is isinstance(module, _Denoiser)
