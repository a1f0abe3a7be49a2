"""Pictures: what is dark, what is bright, and how large they are."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from interpret_server.rendering import attribution_png, draw_all, image_png, pictures


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image).astype(int)


def test_drawing_needs_no_torch():
    code = "import sys, interpret_server.rendering; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_heatmap_rises_in_brightness_with_the_strongest_channel():
    values = np.zeros((3, 8, 8))
    values[1] = np.linspace(0, 1, 8)
    values[2] = -np.linspace(0, 1, 8) / 2
    picture = pixels(attribution_png(values, "CHW", signed=False))
    lightness = picture.sum(-1)[0, ::32]
    assert picture.shape == (256, 256, 3)
    assert (np.diff(lightness) > 0).all()
    assert picture[0, 0].tolist() == [0, 0, 4]
    assert picture[0, -1].tolist() == [252, 255, 164]


def test_a_heatmap_shows_magnitude_unless_it_is_signed():
    values = np.array([[[-1.0, 0.0, 1.0]] * 3])
    plain = pixels(attribution_png(values, "CHW", signed=False))
    signed = pixels(attribution_png(values, "CHW", signed=True))
    assert plain[0, 0].tolist() == plain[0, -1].tolist()
    blue, white, red = (signed[0, column].tolist() for column in (0, signed.shape[1] // 2, -1))
    assert blue[2] > blue[0]
    assert white == [255, 255, 255]
    assert red[0] > red[2]


def test_a_heatmap_keeps_the_sign_of_the_strongest_channel():
    values = np.zeros((2, 4, 4))
    values[0], values[1] = 0.4, -1.0
    red, _, blue = pixels(attribution_png(values, "CHW", signed=True))[0, 0]
    assert blue > red


def test_a_single_outlier_does_not_darken_the_heatmap():
    values = np.full((1, 20, 20), 0.5)
    values[0, 0, 0] = 1000
    picture = pixels(attribution_png(values, "CHW", signed=False))
    assert picture[-1, -1].tolist() == [252, 255, 164]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_heatmap_of_nothing_is_dark(value):
    assert pixels(attribution_png(np.full((1, 4, 4), value), "CHW", signed=False)).max() == 4


def test_a_heatmap_of_one_spot_shows_it():
    values = np.zeros((1, 100, 100))
    values[0, 50, 50] = 1.0
    picture = pixels(attribution_png(values, "CHW", signed=False))
    assert picture[151, 151].tolist() == [252, 255, 164]


def test_images_run_from_the_lower_bound_to_the_upper():
    image = np.full((3, 4, 4), -1.0)
    image[0] = 3.0
    image[1] = 1.0
    assert pixels(image_png(image, (-1.0, 3.0), "CHW"))[0, 0].tolist() == [255, 128, 0]
    channels_last = np.moveaxis(image, 0, 2)
    assert image_png(channels_last, (-1.0, 3.0), "HWC") == image_png(image, (-1.0, 3.0), "CHW")


def test_values_outside_the_bounds_are_clipped():
    image = np.array([[[-5.0, 5.0], [0.0, 1.0]]])
    picture = pixels(image_png(image, (0.0, 1.0), "CHW"))
    assert (picture.min(), picture.max()) == (0, 255)


def test_without_bounds_an_image_uses_its_own_range():
    picture = pixels(image_png(np.array([[[-5.0, 15.0]] * 2]), None, "CHW"))
    assert (picture.min(), picture.max()) == (0, 255)
    assert pixels(image_png(np.full((1, 2, 2), 7.0), None, "CHW")).max() == 0


@pytest.mark.parametrize(
    ("side", "drawn"), [(8, 256), (28, 280), (255, 510), (256, 256), (300, 300)]
)
def test_small_images_are_enlarged_by_a_whole_factor(side, drawn):
    image = np.zeros((1, side, side))
    image[0, 0, 0] = 1.0
    picture = pixels(image_png(image, (0.0, 1.0), "CHW"))
    factor = drawn // side
    assert picture.shape == (drawn, drawn, 3)
    assert (picture[:factor, :factor] == 255).all()
    assert picture.sum() == 3 * 255 * factor**2


def test_images_of_other_channel_counts_are_drawn_as_their_mean():
    image = np.stack([np.zeros((4, 4)), np.ones((4, 4))])
    assert set(pixels(image_png(image, (0.0, 1.0), "CHW")).ravel()) == {128}


@pytest.mark.parametrize(("shape", "layout"), [((2, 50), "CL"), ((50,), "other")])
def test_signals_are_drawn_as_lines(shape, layout):
    signal = np.broadcast_to(np.linspace(0, 1, 50), shape)
    picture = pixels(image_png(signal, (0.0, 1.0), layout))
    dark = picture.sum(-1) < 3 * 255
    assert picture.shape[1] >= 256
    assert dark.any(axis=0).all()
    assert dark[-1, 0]
    assert dark[0, -1]
    assert not dark[0, 0]


def test_attributions_of_signals_are_drawn_as_a_strip():
    picture = pixels(attribution_png(np.eye(4)[:2], "CL", signed=False))
    assert picture.shape == (64, 256, 3)
    assert (picture == picture[:1]).all()


@pytest.mark.parametrize("shape", [(4, 4), (16,), (2, 3, 4)])
def test_rows_of_any_shape_can_be_drawn(shape):
    values = np.random.default_rng(0).normal(size=shape)
    for layout in ("CHW", "HWC", "CL", "other"):
        assert pixels(attribution_png(values, layout, signed=True)).ndim == 3
        assert pixels(image_png(values, None, layout)).ndim == 3


def test_each_kind_of_plugin_has_its_pictures():
    rng = np.random.default_rng(0)
    arrays = {name: rng.random((2, 1, 4, 4)) for name in ("attributions", "images", "adversarial")}

    def names(kind, inputs=None):
        found = pictures(kind, arrays, inputs=inputs, layout="CHW", bounds=(0, 1))
        assert all(len(item) == 2 for item in found.values())
        return set(found)

    assert names("attribution") == {"attributions"}
    assert names("synthesis") == {"images"}
    assert names("attack") == {"adversarial"}
    assert names("attack", np.zeros((2, 1, 4, 4))) == {"adversarial", "perturbation"}
    assert names("metric") == set()
    assert pictures("attribution", {}, inputs=None, layout="CHW", bounds=None) == {}


def test_a_perturbation_is_grey_where_nothing_changed():
    inputs = np.full((1, 1, 2, 2), 0.5)
    moved = inputs.copy()
    moved[0, 0, 0, 0] += 0.01
    moved[0, 0, 1, 1] -= 0.01
    drawn = pictures(
        "attack", {"adversarial": moved}, inputs=inputs, layout="CHW", bounds=(0.0, 1.0)
    )
    picture = pixels(drawn["perturbation"][0])
    assert picture[0, 0, 0] == 255
    assert picture[0, -1, 0] == 128
    assert picture[-1, -1, 0] == 0
    same = pictures(
        "attack", {"adversarial": inputs}, inputs=inputs, layout="CHW", bounds=(0.0, 1.0)
    )
    assert set(pixels(same["perturbation"][0]).ravel()) == {128}


def test_attributions_are_signed_where_any_of_their_values_is_negative():
    values = np.ones((2, 1, 4, 4))
    values[1] = -1
    first, second = draw_all("attribution", {"a": values}, layout="CHW", bounds=None)["a"]
    assert pixels(first)[0, 0, 0] > pixels(first)[0, 0, 2]
    assert pixels(second)[0, 0, 2] > pixels(second)[0, 0, 0]
