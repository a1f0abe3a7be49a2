"""What the long methods show while they run: on the job itself, and over a stream."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from perturbing import SHAPE, images, network, run
from torch import Tensor

import interpret_client
from interpret_plugins.attribution.blur_integrated_gradients import BlurIntegratedGradients
from interpret_plugins.attribution.guided_integrated_gradients import GuidedIntegratedGradients
from interpret_plugins.attribution.integrated_gradients import IntegratedGradients
from interpret_plugins.attribution.kernel_shap import KernelSHAP
from interpret_plugins.attribution.lime import LIME
from interpret_plugins.attribution.occlusion import Occlusion
from interpret_plugins.attribution.rise import RISE
from interpret_plugins.attribution.saliency import Saliency
from interpret_plugins.attribution.score_cam import ScoreCAM
from interpret_plugins.attribution.shapley_sampling import ShapleySampling
from interpret_plugins.attribution.smoothgrad import SmoothGrad
from interpret_server.engine import job as engine_job
from interpret_server.models.targets import Targets
from interpret_server.plugin import Job, Plugin
from interpret_server.registry import Registry
from interpret_server.testing import classifier, serve

TARGETS = Targets.classes(torch.tensor([1, 3]))
METHODS: dict[type[Plugin[Any, Any]], dict[str, Any]] = {
    SmoothGrad: {"samples": 12},
    IntegratedGradients: {"steps": 12},
    GuidedIntegratedGradients: {"steps": 12},
    BlurIntegratedGradients: {"steps": 12},
    RISE: {"masks": 12},
    Occlusion: {"window": 4, "stride": 3},
    ScoreCAM: {},
    LIME: {"samples": 12},
    KernelSHAP: {"samples": 12},
    ShapleySampling: {"permutations": 4, "cell": 3},
}


class Watched(Job):
    """Keeps every preview."""

    max_rows = 4

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def preview(self, **tensors: Tensor | Callable[[], Tensor]) -> None:
        ((name, given),) = tensors.items()
        assert name == "attributions"
        self.shown.append((given() if callable(given) else given).clone())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_previews_grow_into_the_result(method: type[Plugin[Any, Any]]) -> None:
    model, job = classifier(network(), SHAPE, input_layout="CHW"), Watched()
    result = run(method(), model, images(2), TARGETS, job, **METHODS[method])
    assert len(job.shown) >= 2
    assert all(item.shape == result.attributions.shape for item in job.shown)
    torch.testing.assert_close(job.shown[-1].to(result.attributions), result.attributions)
    assert not torch.equal(job.shown[0].to(result.attributions), result.attributions)


def test_a_running_average_is_the_result_with_as_many_samples() -> None:
    model, job = classifier(network(), SHAPE, input_layout="CHW"), Watched()
    run(SmoothGrad(), model, images(2), TARGETS, job, samples=12)
    few = run(SmoothGrad(), model, images(2), TARGETS, samples=2).attributions
    torch.testing.assert_close(job.shown[0], few)
    alone, job = TARGETS.take(slice(1)), Watched()
    run(RISE(), model, images(1), alone, job, masks=12)
    few = run(RISE(), model, images(1), alone, masks=4).attributions
    torch.testing.assert_close(job.shown[0], few)


def test_integrated_gradients_show_what_the_rest_of_the_path_would_confirm() -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(270, 4))
    model, job = classifier(module, SHAPE, input_layout="CHW"), Watched()
    result = run(IntegratedGradients(), model, images(2), TARGETS, job, steps=12)
    for shown in job.shown:
        torch.testing.assert_close(shown, result.attributions)


def test_what_nobody_watches_is_not_made() -> None:
    class Blind(Watched):
        def preview(self, **tensors: Tensor | Callable[[], Tensor]) -> None:
            self.shown += [item for item in tensors.values() if not callable(item)]

    model = classifier(network(), SHAPE, input_layout="CHW")
    for method, params in METHODS.items():
        if method is not BlurIntegratedGradients:  # its sum is there anyhow
            job = Blind()
            run(method(), model, images(2), TARGETS, job, **params)
            assert not job.shown


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    registry = Registry()
    for method in (*METHODS, Saliency):
        registry.add(method, "tests")
    model = classifier(network(), SHAPE, input_layout="CHW")
    with serve(registry, {"net": model}) as address:
        yield address


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_stream_ends_in_what_its_last_preview_shows(
    method: type[Plugin[Any, Any]], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_job, "PREVIEW_SECONDS", 0.0)
    with interpret_client.connect(address) as client:
        events = list(
            client.stream(
                method.name, "net", images(2).numpy(), target=[1, 3], params=METHODS[method]
            )
        )
    previews = [event.preview for event in events if event.preview]
    result = events[-1].result
    assert result is not None
    assert previews
    expected = result.tensors["attributions"]
    numpy.testing.assert_allclose(
        previews[-1].tensors["attributions"], expected, rtol=1e-5, atol=1e-6
    )
