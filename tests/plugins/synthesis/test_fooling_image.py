"""Fooling images: what they promise, predicted again, on images, signals and flat vectors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interpret_plugins.synthesis.fooling_image import FoolingImage, FoolingImageResult
from interpret_server.plugin import Batch, Classifier, InvalidRequest, Targets
from interpret_server.testing import classifier, conformance
from tests.plugins.metrics.judging import Recorder


def _run(
    model: Classifier,
    classes: list[int],
    inputs: Tensor | None = None,
    job: Recorder | None = None,
    **params: object,
) -> FoolingImageResult:
    batch = Batch(
        model.neutral(len(classes)) if inputs is None else inputs,
        Targets.classes(torch.tensor(classes)),
        tuple(range(len(classes))),
        has_inputs=inputs is not None,
    )
    made = FoolingImage.params_type.model_validate(params)
    return FoolingImage().run(model, batch, made, job or Recorder())


@pytest.fixture
def digits(digit_network: nn.Module) -> Classifier:
    return classifier(digit_network, (1, 8, 8), input_layout="CHW")


def _chances(model: Classifier, result: FoolingImageResult, classes: list[int]) -> Tensor:
    chances: Tensor = model(result.images).double().softmax(1)
    return chances[range(len(classes)), classes]


@pytest.mark.parametrize("start", ["zero", "noise"])
def test_the_model_is_certain_of_every_class(digits: Classifier, start: str) -> None:
    classes = list(range(10))
    result = _run(digits, classes, start=start)  # some stay below 0.9999 within the bounds
    chances = _chances(digits, result, classes)
    assert (chances > 0.99).all()
    assert (chances > 0.9999).sum() >= 6
    assert 0 <= result.images.min() <= result.images.max() <= 1
    steps = torch.stack([result.steps_to_99, result.steps_to_999, result.steps_to_9999])
    assert torch.equal(steps[2] > 0, chances > 0.9999)
    sure = steps[:, chances > 0.9999]
    assert (sure.diff(dim=0) >= 0).all()
    assert torch.equal(sure[2], result.steps_taken[chances > 0.9999])


def test_the_steps_recorded_are_the_first_past_each_confidence(digits: Classifier) -> None:
    whole = _run(digits, [3])
    for level, found in ((0.99, whole.steps_to_99), (0.999, whole.steps_to_999)):
        step = int(found)
        for steps, past in ((step - 1, False), (step, True)):
            shorter = _run(digits, [3], steps=steps)
            assert (_chances(digits, shorter, [3]) > level).item() is past


def test_one_step_from_zero_in_the_bounds_units() -> None:
    network = nn.Linear(6, 3).double()
    model = classifier(network, (6,), bounds=(-4.0, 4.0))
    result = _run(model, [2], steps=1, rate=0.01, ascend="logit")
    weight = network.weight[2].detach()
    expected = 8 * 0.01 * weight / weight.abs().mean()
    torch.testing.assert_close(result.images[0], expected)
    assert result.distortion_rms.item() == pytest.approx(expected.square().mean().sqrt() / 8)
    assert result.distortion_max.item() == pytest.approx(expected.abs().max().item() / 8)


def test_l2_draws_a_distortion_back_to_the_input_and_an_image_to_zero() -> None:
    network = nn.Linear(6, 3).double()
    with torch.no_grad():
        network.weight.zero_()
    model, x = classifier(network, (6,), bounds=None), torch.ones(1, 6, dtype=torch.float64)
    image = _run(model, [0], x, start="inputs", l2=1.0, rate=0.25, steps=2)
    torch.testing.assert_close(image.images, x / 2)
    distortion = _run(model, [0], x, form="distortion", l2=1.0, rate=0.25, steps=2)
    torch.testing.assert_close(distortion.images, x)


def test_a_distortion_of_real_images_is_what_was_added(
    digits: Classifier, digit_images: tuple[Tensor, Tensor]
) -> None:
    images, labels = digit_images[0][:6], digit_images[1][:6]
    classes = ((labels + 1) % 10).tolist()
    result = _run(digits, classes, images, form="distortion", rate=2e-3, confidence=0.99)
    assert (_chances(digits, result, classes) > 0.99).all()
    torch.testing.assert_close(images + result.distortion, result.images)
    rms = (result.images - images).square().flatten(1).mean(1).sqrt()
    torch.testing.assert_close(result.distortion_rms, rms)


def test_an_added_distortion_is_the_image_from_zero() -> None:
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    model, x = classifier(network, (6,), bounds=None), torch.rand(2, 6, dtype=torch.float64)
    alone = _run(model, [0, 1], steps=20)
    added = _run(model, [0, 1], x, form="added", steps=20)
    torch.testing.assert_close(added.images, x + alone.images)
    torch.testing.assert_close(added.steps_taken, alone.steps_taken)
    torch.testing.assert_close(added.probability, model(added.images).softmax(1)[[0, 1], [0, 1]])


def test_rows_stop_by_themselves_and_unreached_ones_are_warned_about(digits: Classifier) -> None:
    job = Recorder()
    together = _run(digits, [1, 7], steps=25, job=job)
    alone = [_run(digits, [label], steps=25).images for label in (1, 7)]
    torch.testing.assert_close(together.images, torch.cat(alone), rtol=0, atol=1e-4)
    few = Recorder()
    _run(digits, [1, 7], steps=1, job=few)
    assert [mask for mask, _ in few.warnings if any(mask)] == [[True, True]]
    on = _run(digits, [1], steps=60, stop=False)
    assert on.steps_taken.item() == 60


def test_signals_and_images_that_are_already_certain() -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
    with torch.no_grad():
        network[3].bias += torch.tensor([50.0, 0, 0])
    model = classifier(network, (2, 8), input_layout="CL")
    result = _run(model, [0, 1], steps=3)
    assert result.steps_to_9999.tolist()[0] == 0
    assert not result.distortion[0].any()
    assert result.steps_to_99.tolist()[1] == -1


@pytest.mark.parametrize("params", [{"form": "distortion"}, {"form": "added"}, {"start": "inputs"}])
def test_forms_that_change_images_need_them(params: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="needs the images") as caught:
        _run(classifier(nn.Linear(6, 3), (6,)), [0], **params)
    assert caught.value.violations[0].field == "inputs"


def test_keeps_the_contract() -> None:
    conformance(FoolingImage, params={"steps": 5, "start": "noise", "l2": 0.1})
