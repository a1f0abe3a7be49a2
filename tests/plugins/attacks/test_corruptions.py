"""Common corruptions of images."""

from typing import Any

import numpy
import pytest
import torch
from skimage import color
from torch import Tensor, nn

from interpret_plugins.attacks.corruptions import Corruptions, CorruptionsResult
from interpret_plugins.attacks.damage import NAMES, CorruptionName, Image, corrupt
from interpret_server.errors import InvalidRequest
from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Classifier, Job
from interpret_server.testing import classifier


def picture(height: int, width: int, channels: int) -> Image:
    """Smooth shapes, edges and texture in [0, 1]."""
    down, right = numpy.meshgrid(
        numpy.linspace(0, 1, height), numpy.linspace(0, 1, width), indexing="ij"
    )
    random = numpy.random.default_rng(0)
    planes = [
        0.5 + 0.3 * numpy.sin(5 * right + k) * numpy.cos(4 * down - k) + 0.15 * (right > 0.4)
        for k in range(channels)
    ]
    return (
        numpy.stack(planes, 2) + random.normal(scale=0.02, size=(height, width, channels))
    ).clip(0, 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 40, 3), (64, 64, 4), (5, 9, 1)])
def test_any_image_is_changed_alike_for_a_seed(
    name: CorruptionName, shape: tuple[int, int, int]
) -> None:
    image = picture(*shape)
    before = image.copy()
    found = corrupt(image, name, 5, 7)
    assert numpy.array_equal(image, before)
    assert found.shape == shape
    assert found.dtype == numpy.float64
    assert numpy.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert numpy.array_equal(found, corrupt(image, name, 5, 7))
    # Grey has no saturation, and blurs of few pixels are slight.
    if (shape[2] > 1 or name != "saturate") and min(shape[:2]) > 9:
        assert numpy.abs(found - image).mean() > 0.003
    drawn = ("glass_blur", "snow", "frost", "fog", "elastic_transform", "spatter")
    random = "noise" in name or name in drawn
    if random:
        assert not numpy.array_equal(found, corrupt(image, name, 5, 8))


# Of the others the published constants do not grow in one direction.
GROWING = set(NAMES) - {
    "saturate",
    "elastic_transform",
    "snow",
    "glass_blur",
    "frost",
    "fog",
    "spatter",
}


@pytest.mark.parametrize("name", sorted(GROWING))
def test_severity_grows(name: CorruptionName) -> None:
    image = picture(96, 96, 3)
    change = [
        numpy.mean(
            [numpy.abs(corrupt(image, name, severity, seed) - image).mean() for seed in (1, 2)]
        )
        for severity in (1, 3, 5)
    ]
    assert change[0] < change[1] < change[2]


def test_noise_has_the_published_size() -> None:
    grey = numpy.full((200, 200, 1), 0.5)
    spread = [corrupt(grey, "gaussian_noise", severity, 0).std() for severity in (1, 2)]
    assert spread == pytest.approx([0.08, 0.12], rel=0.03)
    # Counting x c photons and dividing by c has the variance x / c.
    assert corrupt(grey, "shot_noise", 1, 0).std() == pytest.approx((0.5 / 60) ** 0.5, rel=0.03)
    assert corrupt(grey, "speckle_noise", 1, 0).std() == pytest.approx(0.5 * 0.15, rel=0.03)
    flipped = corrupt(grey, "impulse_noise", 3, 0)
    assert (flipped != 0.5).mean() == pytest.approx(0.09, rel=0.1)
    assert set(numpy.unique(flipped)) == {0.0, 0.5, 1.0}


def test_brightness_and_saturation_are_those_of_hsv() -> None:
    image = picture(40, 40, 3)
    hsv = color.rgb2hsv(image)
    lighter, richer = hsv.copy(), hsv.copy()
    lighter[..., 2] = (hsv[..., 2] + 0.3).clip(0, 1)
    richer[..., 1] = (hsv[..., 1] * 2).clip(0, 1)
    for name, expected in (("brightness", lighter), ("saturate", richer)):
        found = corrupt(image, name, 3, 0)
        numpy.testing.assert_allclose(found, color.hsv2rgb(expected), atol=1e-9)


def test_spatter_is_pale_water_and_then_brown_mud() -> None:
    image = numpy.full((112, 112, 3), 0.3)
    for severity, covered in ((1, 0.03), (2, 0.14), (3, 0.20)):
        change = corrupt(image, "spatter", severity, 0) - image
        assert change.min() >= -1e-9  # light is added, of one colour
        drops = change[change[..., 1] > 1e-3]
        numpy.testing.assert_allclose(drops[:, 0] / drops[:, 1], 175 / 238, rtol=1e-6)
        assert 0.2 * covered < len(drops) / 112**2 < 4 * covered
    image += 0.2
    for severity in (4, 5):
        found = corrupt(image, "spatter", severity, 0)
        assert (found <= image + 1e-9).all()
        share = (0.5 - found) / (0.5 - numpy.array([63, 42, 20]) / 255)
        numpy.testing.assert_allclose(share[..., 0], share[..., 2], atol=1e-6)
        assert 0.05 < (share[..., 0] > 0.5).mean() < 0.8
    grey = corrupt(image[..., :1], "spatter", 5, 0)
    assert grey.shape == (112, 112, 1)


def test_contrast_and_pixelation_are_means() -> None:
    image = picture(40, 40, 3)
    expected = 0.2 * image + 0.8 * image.mean((0, 1))
    numpy.testing.assert_allclose(corrupt(image, "contrast", 3, 0), expected)
    blocks = image.reshape(10, 4, 10, 4, 3).mean((1, 3)).repeat(4, 0).repeat(4, 1)
    numpy.testing.assert_allclose(corrupt(image, "pixelate", 5, 0), blocks, atol=1e-6)


def test_blurs_keep_a_constant_image() -> None:
    flat = numpy.full((60, 60, 3), 0.4)
    for name in NAMES:
        if name.endswith("blur") or name in ("elastic_transform", "pixelate"):
            numpy.testing.assert_allclose(corrupt(flat, name, 5, 3), flat, atol=1e-6)


def network(layout: str = "CHW", bounds: tuple[float, float] = (0.0, 1.0)) -> Classifier:
    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = (x.flatten(1).mean(1) - bounds[0]) / (bounds[1] - bounds[0])
            return torch.stack([0.6 - mean, mean - 0.6], 1)

    shape = (3, 16, 16) if layout == "CHW" else (16, 16, 3)
    return classifier(Brightness(), shape, bounds=bounds, input_layout=layout)


def attack(
    model: Classifier, x: Tensor, seeds: tuple[int, ...] | None = None, **params: Any
) -> CorruptionsResult:
    made = Corruptions.params_type.model_validate(params)
    Corruptions().check(model, made)
    labels = torch.zeros(len(x), dtype=torch.int64)
    batch = Batch(x, Targets.classes(labels), seeds or tuple(range(len(x))))
    return Corruptions().run(model, batch, made, Job())


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 3.0)])
def test_the_worst_corruption_is_returned_and_all_are_told(
    layout: str, bounds: tuple[float, float]
) -> None:
    model = network(layout, bounds)
    images = torch.from_numpy(numpy.stack([picture(16, 16, 3)] * 3)).float() * 0.6
    images[2] = 0.9  # predicted as the other class already
    x = images * (bounds[1] - bounds[0]) + bounds[0]
    x = x if layout == "HWC" else x.movedim(3, 1)
    names = ["contrast", "brightness", "frost"]
    result = attack(model, x, corruptions=names, severity=4)
    assert result.changed.shape == (3, 3)
    assert result.changed[0].tolist() == [False, True, False]
    assert result.success.tolist() == [True] * 3
    assert result.initially_correct.tolist() == [1, 1, 0]
    assert torch.equal(result.adversarial[2], x[2])
    assert (result.queries == 1 + 3 + 1).all()
    assert result.worst.tolist() == [1, 1, -1]
    only = attack(model, x, corruptions=["brightness"], severity=4)
    assert torch.equal(only.adversarial[0], result.adversarial[0])


def test_a_corruption_that_changes_no_answer_is_no_success() -> None:
    result = attack(network(), torch.full((1, 3, 16, 16), 0.2), corruptions=["jpeg_compression"])
    assert result.success.tolist() == [False]
    assert result.changed.tolist() == [[False]]


def test_vectors_are_refused() -> None:
    model = classifier(nn.Linear(4, 2), (4,))
    with pytest.raises(InvalidRequest, match="takes no images"):
        Corruptions().check(model, Corruptions.params_type())
