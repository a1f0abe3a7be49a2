"""Class visualisation: closed forms, independence of rows, layouts, and digits that are digits."""

from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import interpret_client
from interpret_plugins.synthesis.class_visualization import (
    ClassVisualization,
    ClassVisualizationParams,
    ClassVisualizationResult,
)
from interpret_server.plugin import (
    Batch,
    Cancelled,
    Classifier,
    InvalidRequest,
    Job,
    TargetKind,
    Targets,
)
from interpret_server.testing import classifier, conformance, serve

PRESETS = ["octaves", "simonyan", "yosinski_1", "yosinski_2", "yosinski_3", "yosinski_4"]


def _run(
    model: Classifier,
    classes: list[int],
    seeds: tuple[int, ...] | None = None,
    targets: Targets | None = None,
    inputs: Tensor | None = None,
    job: Job | None = None,
    **params: object,
) -> ClassVisualizationResult:
    batch = Batch(
        model.neutral(len(classes)) if inputs is None else inputs,
        targets or Targets.classes(torch.tensor(classes)),
        seeds or tuple(range(len(classes))),
        has_inputs=inputs is not None,
    )
    made = ClassVisualizationParams.model_validate(params)
    return ClassVisualization().run(model, batch, made, job or Job())


def _image_model(dtype: torch.dtype = torch.float64) -> Classifier:
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)
    )
    return classifier(network.to(dtype), (2, 6, 6), input_layout="CHW")


def _models() -> dict[str, Classifier]:
    signal = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8, 3))
    flat = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    volume = nn.Sequential(nn.Conv3d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 27, 3))
    return {
        "image": _image_model(),
        "signal": classifier(signal.double(), (3, 10), input_layout="CL"),
        "flat": classifier(flat.double(), (12,), bounds=(-2.0, 3.0)),
        "volume": classifier(volume.double(), (1, 4, 4, 4)),
        "no bounds": classifier(flat.double(), (12,), bounds=None),
    }


@pytest.mark.parametrize("bounds", [None, (-1.0, 3.0)])
def test_linear_classifier_reaches_the_closed_form(bounds: tuple[float, float] | None) -> None:
    linear = nn.Linear(6, 4).double()
    model = classifier(linear, (6,), bounds=bounds)
    penalty = 2.0
    result = _run(model, [0, 3], preset="simonyan", l2=penalty, clip=False, rate=0.1, steps=200)
    optimum = linear.weight[[0, 3]] * model.scale / (2 * penalty)
    expected = model.centre + model.scale * optimum
    if bounds is not None:
        assert ((expected >= bounds[0]) & (expected <= bounds[1])).all()
    torch.testing.assert_close(result.images, expected)
    torch.testing.assert_close(result.target_value, model(expected)[[0, 1], [0, 3]])


def test_bounded_linear_classifier_ends_in_the_corner_of_its_weights() -> None:
    linear = nn.Linear(6, 4).double()
    model = classifier(linear, (6,), bounds=(0.0, 255.0))
    result = _run(model, [1], preset="simonyan", l2=0.0)
    assert torch.equal(result.images[0], (linear.weight[1] > 0) * 255.0)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("yosinski")])
def test_published_regularisation_suits_gradients_of_any_size(preset: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = nn.Linear(4 * 36, 5)
        body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), last).double()
    images = []
    for scale in (1.0, 2.0**-10):
        with torch.no_grad():
            last.weight.mul_(scale)
        model = classifier(body, (3, 8, 8), bounds=(0.0, 1.0))
        images.append(_run(model, [0, 3], preset=preset, steps=60).images)
    torch.testing.assert_close(images[1], images[0])
    assert (images[0].flatten(1).std(1) > 0.02).all()


@pytest.mark.parametrize("name", _models())
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_on_every_layout_and_stays_in_bounds(name: str, preset: str) -> None:
    model = _models()[name]
    result = _run(model, [0, 2], preset=preset, steps=6)
    assert result.images.shape == (2, *model.input_shape)
    assert result.images.isfinite().all()
    if name != "no bounds":
        assert result.images.min() >= model.bounds.lower
        assert result.images.max() <= model.bounds.upper
    probabilities = model(result.images).softmax(1)[[0, 1], [0, 2]]
    assert result.probability is not None
    torch.testing.assert_close(result.probability, probabilities)


@pytest.mark.parametrize("name", ["image", "signal", "flat"])
@pytest.mark.parametrize("preset", ["octaves", "simonyan", "yosinski_1"])
def test_a_row_alone_equals_the_row_in_a_batch(name: str, preset: str) -> None:
    model = _models()[name]
    together = _run(model, [0, 1, 2], (5, 6, 7), preset=preset, steps=20)
    for row in range(3):
        alone = _run(model, [row], (5 + row,), preset=preset, steps=20)
        torch.testing.assert_close(alone.images[0], together.images[row], rtol=0, atol=1e-9)


class _ChannelsLast(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.movedim(-1, 1))
        return logits


def _photo_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 225, 3)
    ).double()


def test_a_row_of_photos_alone_equals_the_row_in_a_batch() -> None:
    model = classifier(_photo_network(), (3, 64, 64), input_layout="CHW")
    together = _run(model, [0, 1, 2], (5, 6, 7), steps=8, views=2, noise=0.1)
    for row in range(3):
        alone = _run(model, [row], (5 + row,), steps=8, views=2, noise=0.1)
        torch.testing.assert_close(alone.images[0], together.images[row], rtol=0, atol=1e-9)


def test_photos_do_not_depend_on_where_the_channels_are() -> None:
    network = _photo_network()
    first = classifier(network, (3, 64, 64), input_layout="CHW")
    last = classifier(_ChannelsLast(network), (64, 64, 3), input_layout="HWC")
    one, other = (_run(model, [0, 2], steps=8, start_noise=0.0) for model in (first, last))
    torch.testing.assert_close(other.images.movedim(-1, 1), one.images)


def test_several_views_climb_the_mean_of_their_gradients() -> None:
    linear = nn.Linear(6, 4).double()
    model = classifier(linear, (6,), bounds=None)
    plain = {"preset": "simonyan", "steps": 5, "start_noise": 0.0}
    one, three = (_run(model, [1], views=views, **plain) for views in (1, 3))
    torch.testing.assert_close(three.images, one.images)


def test_seeds_decide_the_image() -> None:
    model = _image_model()
    first, again, other = (_run(model, [1], (seed,), steps=10).images for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_the_value_of_the_target_rises() -> None:
    model = _image_model()
    start = model(model.neutral(3))
    result = _run(model, [0, 1, 2])
    assert (result.target_value > start.diagonal()).all()


@pytest.mark.parametrize(
    ("kind", "index"),
    [
        (TargetKind.NEURON, [2, 3, 3]),
        (TargetKind.CHANNEL, [2]),
        (TargetKind.LAYER, []),
        (TargetKind.DIRECTION, []),
    ],
)
def test_units_of_a_layer_can_be_targets(kind: TargetKind, index: list[int]) -> None:
    model = _image_model()
    direction = torch.ones(1, 4, dtype=torch.float64) if kind is TargetKind.DIRECTION else None
    targets = Targets(kind, torch.tensor([index], dtype=torch.int64), "0", direction)
    before, _ = model.objective(model.neutral(1), targets)
    result = _run(model, [0], targets=targets, steps=20)
    after, _ = model.objective(result.images, targets)
    assert after > before
    torch.testing.assert_close(result.target_value, after)
    assert result.probability is None


def test_a_neuron_has_no_rivals() -> None:
    targets = Targets(TargetKind.CHANNEL, torch.tensor([[1]]), "0")
    with pytest.raises(InvalidRequest, match="only a class as the target has rivals"):
        _run(_image_model(), [0], targets=targets, rivals=0.5)


def test_rivals_are_taken_from_the_logit() -> None:
    linear, rivals, rate = nn.Linear(6, 4).double(), 0.3, 1e-3
    model = classifier(linear, (6,), bounds=None)
    settings = {"preset": "simonyan", "steps": 1, "rate": rate, "l2": 0.0}
    moved = _run(model, [2], rivals=rivals, **settings).images - model.neutral(1)
    logits = linear(model.neutral(1))[0].detach()
    others = [0, 1, 3]
    shares = logits[others].exp() / logits[others].exp().sum()
    gradient = linear.weight[2] - rivals * (shares @ linear.weight[others])
    torch.testing.assert_close(moved[0], rate * gradient * model.scale**2, rtol=1e-9, atol=0)


def test_the_mean_of_the_last_images_is_the_result() -> None:
    settings = {"preset": "simonyan", "rate": 0.02, "clip": False}
    model = _image_model()
    last = [_run(model, [0, 1], steps=steps, **settings).images for steps in (4, 5, 6)]
    result = _run(model, [0, 1], steps=6, average=0.5, **settings)
    torch.testing.assert_close(result.images, torch.stack(last).mean(0))
    assert not torch.allclose(result.images, last[-1])


def test_the_mean_reaches_over_octaves() -> None:
    network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(144, 2))
    model = classifier(network, (1, 96, 96))
    images = _run(model, [0], steps=6, octaves=2, average=1.0).images
    assert images.shape == (1, 1, 96, 96)
    assert (model(images)[0, 0] > model(model.neutral(1))[0, 0]).item()


def test_given_inputs_are_the_start() -> None:
    model = _image_model()
    inputs = torch.rand(1, 2, 6, 6, dtype=torch.float64)
    result = _run(model, [1], inputs=inputs, preset="simonyan", rate=1e-9, steps=1, l2=0.0)
    torch.testing.assert_close(result.images, inputs, rtol=0, atol=1e-6)


def test_octaves_respect_a_mean_that_differs_from_pixel_to_pixel() -> None:
    mean = torch.rand(1, 96, 96)
    network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(144, 2))
    model = classifier(network, (1, 96, 96))
    model._mean = mean
    result = _run(model, [0], steps=9)
    assert result.images.shape == (1, 1, 96, 96)
    assert 0 <= result.images.min() <= result.images.max() <= 1


class _Impatient(Job):
    """Gone after three steps; counts what it is shown."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def track(self, total: int) -> Iterator[int]:
        yield from range(min(total, 3))
        raise Cancelled("gone")

    def preview(self, **tensors: Tensor) -> None:
        self.shown.append(tensors["images"])


def test_cancelled_between_steps_after_showing_previews_of_full_size() -> None:
    job = _Impatient()
    with pytest.raises(Cancelled):
        _run(_image_model(), [0, 1], job=job, steps=10)
    assert len(job.shown) == 3
    assert all(images.shape == (2, 2, 6, 6) for images in job.shown)


@pytest.mark.parametrize(
    "params",
    [{"preset": "unknown"}, {"steps": 0}, {"decay": 1.0}, {"gradient_blur": (-1.0, 0.0)}],
)
def test_bad_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ClassVisualizationParams.model_validate(params)


def test_keeps_the_contract() -> None:
    conformance(ClassVisualization, params={"steps": 6})


def test_class_images_of_digits_convince_their_network_and_another(
    digit_network: nn.Module, other_digit_network: nn.Module
) -> None:
    digits = torch.arange(10)
    result = _run(classifier(digit_network, (1, 8, 8)), digits.tolist())
    assert result.probability is not None
    assert result.probability.min() > 0.99
    assert (other_digit_network(result.images).argmax(1) == digits).sum() >= 8


def test_the_default_preset_is_served_with_progress_and_previews() -> None:
    model = classifier(_photo_network().float(), (3, 64, 64), input_layout="CHW")
    with serve(models={"net": model}) as address, interpret_client.connect(address) as client:
        events = list(
            client.stream("class_visualization", "net", target=[0, 2], params={"steps": 20}, seed=5)
        )
    result = events[-1].result
    assert result is not None
    assert result.provenance.params["preset"] == "octaves"
    done = [event.progress.done for event in events if event.progress is not None]
    assert done == sorted(done)
    shown = [event.preview.tensors["images"] for event in events if event.preview is not None]
    assert shown
    assert all(images.shape == (2, 3, 64, 64) for images in shown)
    alone = _run(model, [0, 2], (5, 6), steps=20)
    torch.testing.assert_close(torch.tensor(result.tensors["images"]), alone.images)
    before = model(model.neutral(2))[[0, 1], [0, 2]]
    assert (torch.tensor(result.metrics["target_value"]) > before).all()
