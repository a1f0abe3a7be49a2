"""Objects cut out of images by their saliency."""

import warnings

import numpy as np
import pytest
from PIL import Image

from interpret_client import pictures
from interpret_client.pictures import Rendering, Scene

SIDE = 96


def disc(row: float, column: float, radius: float, side: int = SIDE) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    inside: np.ndarray = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    return inside


def scene_of_disc(side: int = SIDE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bright disc on a dark ground, saliency that peaks inside it, and where it is."""
    rng = np.random.default_rng(0)
    scale = side / SIDE
    truth = disc(40 * scale, 55 * scale, 22 * scale, side)
    image = np.where(truth, 0.85, 0.2) + rng.normal(scale=0.03, size=(3, side, side))
    image[0] += 0.1 * truth
    rows, columns = np.mgrid[:side, :side] / scale
    saliency = np.exp(-((rows - 42) ** 2 + (columns - 53) ** 2) / (2 * 12**2))
    return image.clip(0, 1), saliency * rng.uniform(0.5, 1.5, size=(side, side)), truth


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_disc_is_found(layout: str, channels: int) -> None:
    image, saliency, truth = scene_of_disc()
    image = np.resize(image, (channels, SIDE, SIDE))
    given = np.stack([saliency, -saliency / 2])
    if layout == "HWC":
        image, given = np.moveaxis(image, 0, 2), np.moveaxis(given, 0, 2)
    found = pictures.object_mask(given, image, layout=layout, bounds=(0, 1))
    assert found.shape == truth.shape
    assert found.dtype == bool
    assert overlap(found, truth) > 0.95


def test_a_coarse_map_and_a_large_image_will_do() -> None:
    image, saliency, truth = scene_of_disc(600)
    coarse = saliency.reshape(20, 30, 20, 30).mean((1, 3))
    assert overlap(pictures.object_mask(coarse, image, bounds=(0, 1)), truth) > 0.95


def test_the_largest_connected_part_is_the_object() -> None:
    image, saliency, truth = scene_of_disc()
    island = disc(85, 10, 6)
    image[:, island] = image[:, truth].mean()
    saliency[island] = 0.3 * saliency.max()
    assert overlap(pictures.object_mask(saliency, image, bounds=(0, 1)), truth) > 0.95


def test_the_same_image_gives_the_same_mask_whatever_was_cut_before() -> None:
    image, saliency, _ = scene_of_disc()
    first = pictures.object_mask(saliency, image, bounds=(0, 1))
    pictures.object_mask(saliency[::-1], image, bounds=(0, 1))
    assert (pictures.object_mask(saliency, image, bounds=(0, 1)) == first).all()


@pytest.mark.parametrize(
    ("saliency", "image", "options", "sentence"),
    [
        (np.ones((1, 16, 16)), None, {}, "the same everywhere"),
        (np.full((1, 16, 16), np.nan), None, {}, "the same everywhere"),
        (None, np.full((3, 16, 16), 0.5), {}, "one colour"),
        (None, None, {"foreground": 1.0, "smoothing": 0}, "belong to the object"),
        (None, None, {"background": 0.0, "smoothing": 0}, "belong to the background"),
    ],
)
def test_where_nothing_can_be_cut_the_mask_is_empty_and_says_so(
    saliency: np.ndarray | None, image: np.ndarray | None, options: dict, sentence: str
) -> None:
    rng = np.random.default_rng(1)
    saliency = rng.random((1, 16, 16)) if saliency is None else saliency
    image = rng.random((3, 16, 16)) if image is None else image
    with pytest.warns(UserWarning, match=sentence):
        found = pictures.object_mask(saliency, image, Rendering(**options), bounds=(0, 1))
    assert found.shape == (16, 16)
    assert not found.any()
    drawn = pictures.draw(
        {"attributions": saliency[None]},
        Rendering(styles="object_mask", **options),
        Scene(image[None], "CHW", (0, 1)),
    )
    assert list(drawn.warnings.values()) == [(0,)]
    assert sentence in next(iter(drawn.warnings))
    assert len(drawn.pictures["attributions.object_mask"]) == 1


@pytest.mark.parametrize("size", [(1, 2), (2, 2), (3, 5), (1, 400), (8, 8)])
def test_tiny_images_never_fail(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = pictures.object_mask(rng.random(size), rng.random((3, *size)), bounds=(0, 1))
    assert found.shape == size


def test_a_cutout_is_the_image_inside_and_white_outside() -> None:
    image, saliency, _ = scene_of_disc(256)
    mask = pictures.object_mask(saliency, image, bounds=(0, 1))
    found = np.asarray(pictures.cutout(image, mask, bounds=(0, 1)))
    expected = np.asarray(pictures.image(image, (0, 1)))
    assert (found[mask] == expected[mask]).all()
    assert (found[~mask] == 255).all()
    drawn = pictures.draw(
        {"attributions": saliency[None]},
        Rendering(styles="object_mask"),
        Scene(image[None], "CHW", (0, 1)),
    ).pictures
    assert drawn["attributions.object_cutout"] == (pictures.png(Image.fromarray(found)),)
