"""Blur integrated gradients: blur against SciPy, closed forms, the paper's sum, files."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from perturbing import SHAPE, Recorder, images, loaded, network, run
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from interpret_plugins.attribution.blur_integrated_gradients import (
    BlurIntegratedGradients,
    Schedule,
)
from interpret_plugins.attribution.scale_space import ScaleSpace
from interpret_server.errors import InvalidRequest
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.models.targets import TargetKind, Targets
from interpret_server.testing import classifier

LABELS = torch.tensor([1, 3])
TARGETS = Targets.classes(LABELS)


def blurred(x: Any, sigma: float, axes: tuple[int, ...]) -> Any:
    spectrum = dctn(x, axes=axes)
    for axis in axes:
        waves = numpy.pi * numpy.arange(x.shape[axis]) / x.shape[axis]
        fading = numpy.exp(-((sigma * waves) ** 2) / 2)
        spectrum = spectrum * fading.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return idctn(spectrum, axes=axes)


@pytest.mark.parametrize("sigma", [0.3, 1.7, 40.0])
def test_blur_is_a_fading_of_cosines(sigma: float) -> None:
    x = torch.rand(2, 3, 9, 8, dtype=torch.float64)
    found = ScaleSpace(x, (2, 3)).at(sigma)
    numpy.testing.assert_allclose(found.numpy(), blurred(x.numpy(), sigma, (2, 3)), atol=1e-13)
    torch.testing.assert_close(found.mean((2, 3)), x.mean((2, 3)))


@pytest.mark.parametrize("sigma", [2.0, 5.0])
def test_blur_is_the_gaussian_filter_with_mirrored_edges(sigma: float) -> None:
    x = torch.rand(2, 13, 10, dtype=torch.float64)
    expected = gaussian_filter(x.numpy(), (0, sigma, sigma), mode="reflect", truncate=10)
    numpy.testing.assert_allclose(ScaleSpace(x, (1, 2)).at(sigma).numpy(), expected, atol=1e-9)


def test_blurs_add_up_and_the_strongest_is_the_mean() -> None:
    x = torch.rand(2, 1, 12, dtype=torch.float64)
    once = ScaleSpace(x, (2,)).at(3)
    torch.testing.assert_close(ScaleSpace(once, (2,)).at(4), ScaleSpace(x, (2,)).at(5))
    mean = x.mean(2, keepdim=True).expand_as(x)
    torch.testing.assert_close(ScaleSpace(x, (2,)).at(1000), mean)
    assert ScaleSpace(x, (2,)).at(0) is x


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("steps", [1, 6])
def test_a_linear_classifier_gives_its_weights_times_what_blur_removes(
    schedule: str, steps: int
) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 10, 4)).double()
    x = torch.rand(2, *SHAPE, dtype=torch.float64)
    model = classifier(module, SHAPE, input_layout="CHW")
    params = {"schedule": schedule, "steps": steps, "max_sigma": 2.5}
    result = run(BlurIntegratedGradients(), model, x, TARGETS, **params)
    coarse = torch.from_numpy(blurred(x.numpy(), 2.5, (2, 3)))
    expected = module[1].weight[LABELS].reshape(x.shape).detach() * (x - coarse)
    torch.testing.assert_close(result.blurred, coarse)
    torch.testing.assert_close(result.attributions, expected)
    assert result.convergence_delta.abs().max() < 1e-12


def by_hand(module: nn.Module, x: Tensor, label: int, sigmas: list[float]) -> Tensor:
    """The paper's integral as a sum, one step after the other."""
    total = torch.zeros_like(x)
    for fine, coarse in pairwise(sigmas):
        middle = torch.from_numpy(blurred(x.numpy(), (fine + coarse) / 2, (1, 2)))
        leaf = middle[None].requires_grad_()
        (gradient,) = torch.autograd.grad(module(leaf)[0, label], leaf)
        change = blurred(x.numpy(), fine, (1, 2)) - blurred(x.numpy(), coarse, (1, 2))
        total += gradient[0] * torch.from_numpy(change)
    return total


SIGMAS = {
    "linear": [0.0, 0.5, 1.0, 1.5, 2.0],
    "variance": [0.0, 1.0, 2**0.5, 3**0.5, 2.0],
    "geometric": [0.0, *(0.5 * (5 ** (step / 4) - 1) for step in range(1, 4)), 2.0],
}


@pytest.mark.parametrize("saver", ["scripted", "exported", "onnx"])
def test_files_equal_the_sum_on_the_eager_module(saver: str, tmp_path: Path) -> None:
    module, x = network(), images(2)
    model = loaded(module, saver, tmp_path)
    for schedule, sigmas in SIGMAS.items():
        params = {"steps": 4, "max_sigma": 2.0, "schedule": schedule}
        found = run(BlurIntegratedGradients(), model, x, TARGETS, **params).attributions
        for row in range(2):
            expected = by_hand(module.double(), x[row].double(), int(LABELS[row]), sigmas)
            largest = float(expected.abs().max())
            assert float((found[row] - expected).abs().max()) < 1e-4 * largest


@pytest.mark.parametrize("kind", ["class", "channel"])
def test_attributions_sum_to_the_difference_from_the_blurred_input(kind: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(280, 4)).double()
    targets = Targets(TargetKind.CHANNEL, torch.tensor([[4], [0]]), "1")
    targets = targets if kind == "channel" else TARGETS
    x = torch.rand(2, *SHAPE, dtype=torch.float64)
    model, missing = classifier(module, SHAPE, input_layout="CHW"), []
    for steps in (5, 50):
        result = run(BlurIntegratedGradients(), model, x, targets, steps=steps)
        torch.testing.assert_close(
            result.blurred, torch.from_numpy(blurred(x.numpy(), 10 / 6, (2, 3)))
        )
        gap = model.objective(x, targets)[0] - model.objective(result.blurred, targets)[0]
        total = result.attributions.sum((1, 2, 3))
        torch.testing.assert_close(result.convergence_delta, (total - gap).detach())
        missing.append(float(result.convergence_delta.abs().max()))
    assert missing[1] < missing[0] / 50
    assert (result.logits is None) == (kind == "channel")


class Turned(nn.Module):
    """A network of images whose channels come last."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.permute(0, 3, 1, 2))


def test_channels_are_not_blurred_wherever_they_are() -> None:
    module, x = network(), images(2)
    first = run(
        BlurIntegratedGradients(), classifier(module, SHAPE, input_layout="CHW"), x, TARGETS
    )
    model = classifier(Turned(module), (9, 10, 3), input_layout="HWC")
    last = run(BlurIntegratedGradients(), model, x.permute(0, 2, 3, 1), TARGETS)
    torch.testing.assert_close(last.attributions.permute(0, 3, 1, 2), first.attributions)


@pytest.mark.parametrize(("shape", "layout"), [((2, 12), "CL"), ((2, 5, 6, 4), "other")])
def test_signals_and_volumes_are_blurred_along_their_axes(
    shape: tuple[int, ...], layout: str
) -> None:
    count = int(numpy.prod(shape))
    module = nn.Sequential(nn.Flatten(), nn.Linear(count, 4)).double()
    x = torch.rand(2, *shape, dtype=torch.float64)
    model = classifier(module, shape, input_layout=layout)
    result = run(BlurIntegratedGradients(), model, x, TARGETS, max_sigma=1.5, steps=3)
    axes = tuple(range(2, len(shape) + 1))
    expected = torch.from_numpy(blurred(x.numpy(), 1.5, axes))
    torch.testing.assert_close(result.blurred, expected)
    weights = module[1].weight[LABELS].reshape(x.shape).detach()
    torch.testing.assert_close(result.attributions, weights * (x - expected))


def test_an_even_input_gets_nothing() -> None:
    x, job = images(2), Recorder(max_rows=6)
    x[1] = 0.5
    model = classifier(network(), SHAPE, input_layout="CHW")
    result = run(BlurIntegratedGradients(), model, x, TARGETS, job, steps=10)
    assert result.attributions[0].any()
    assert float(result.attributions[1].abs().max()) < 1e-6 * float(result.attributions.abs().max())
    assert (job.totals, job.done) == ([5], 5)


def test_flat_inputs_and_tokens_are_refused(tmp_path: Path) -> None:
    flat = classifier(nn.Linear(5, 4), (5,))

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(9, 5), nn.Linear(5, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.last(self.table(tokens).sum(1))

    path = tmp_path / "bag.pt"
    torch.jit.script(Bag().eval()).save(str(path))
    manifest = Manifest.model_validate({"shape": (6,), "kind": "tokens"})
    tokens = load_classifier("bag", path, manifest, device=torch.device("cpu")).classifier
    for model in (flat, tokens):
        with pytest.raises(InvalidRequest, match="no spatial axes") as caught:
            run(BlurIntegratedGradients(), model, model.neutral(2), TARGETS)
        assert caught.value.violations[0].field == "model"
