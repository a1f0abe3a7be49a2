"""Encoded images into rows of a classifier's input."""

import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from interpret_server.errors import InvalidRequest
from interpret_server.models import images
from interpret_server.models.images import decode_images
from interpret_server.models.manifest import InputSpec

SHAPE = (3, 4, 6)


def _encode(
    pixels: NDArray[np.uint8], file_format: str = "PNG", mode: str | None = None, **options: object
) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, file_format, **options)
    return stream.getvalue()


def _pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _decode(
    data: bytes,
    shape: tuple[int, ...] = SHAPE,
    layout: str = "CHW",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    **fields: object,
) -> torch.Tensor:
    spec = InputSpec.model_validate(fields)
    (row,) = decode_images([data], spec, shape=shape, layout=layout, bounds=bounds)
    return row


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)])
def test_pixels_fill_the_bounds(bounds: tuple[float, float]) -> None:
    pixels = _pixels(4, 6, 3)
    lower, upper = bounds
    expected = torch.from_numpy(pixels).permute(2, 0, 1).double() / 255 * (upper - lower) + lower
    row = _decode(_encode(pixels), bounds=bounds)
    assert row.dtype is torch.float32
    torch.testing.assert_close(row.double(), expected, rtol=1e-6, atol=1e-6)
    assert row.min() >= lower
    assert row.max() <= upper


def test_channels_follow_the_manifests_colour_order_and_layout() -> None:
    pixels = _pixels(4, 6, 3)
    data, rgb = _encode(pixels), torch.from_numpy(pixels) / 255
    torch.testing.assert_close(_decode(data, color="BGR"), rgb.flip(2).permute(2, 0, 1))
    torch.testing.assert_close(_decode(data, (4, 6, 3), "HWC"), rgb)
    grey = torch.from_numpy(np.array(Image.fromarray(pixels).convert("L"))) / 255
    torch.testing.assert_close(_decode(data, (1, 4, 6))[0], grey)


def test_transparency_is_laid_over_white() -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:2, :, 3] = 255
    row = _decode(_encode(pixels))
    assert torch.equal(row[:, :2], torch.zeros(3, 2, 6))
    assert torch.equal(row[:, 2:], torch.ones(3, 2, 6))


def test_sixteen_bit_pictures_are_scaled_not_clipped() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 6), 32896, np.uint16)).save(stream, "PNG")
    torch.testing.assert_close(
        _decode(stream.getvalue(), (1, 4, 6)), torch.full((1, 4, 6), 128 / 255)
    )


def test_the_exif_orientation_turns_the_picture_upright() -> None:
    pixels = _pixels(6, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    row = _decode(_encode(pixels, exif=exif))
    expected = torch.from_numpy(np.rot90(pixels, -1).copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(row, expected)


def test_the_shorter_side_is_resized_and_the_centre_cropped() -> None:
    pixels = _pixels(40, 31, 3)
    resized = Image.fromarray(pixels).resize((16, 21), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(resized)[5:15, 3:13]).permute(2, 0, 1) / 255
    row = _decode(_encode(pixels), (3, 10, 10), resize=16, crop=10)
    torch.testing.assert_close(row, expected)


def test_without_sizes_the_picture_just_covers_the_input() -> None:
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255  # the middle third is all that a square input shows
    row = _decode(_encode(pixels), (3, 10, 10))
    assert row[:, :, 1:-1].min() > 0.99


def test_every_picture_is_a_row() -> None:
    encoded = [_encode(_pixels(4, 6, 3)), _encode(255 - _pixels(4, 6, 3))]
    rows = decode_images(encoded, InputSpec(), shape=SHAPE, layout="CHW", bounds=(0, 1))
    assert rows.shape == (2, *SHAPE)
    torch.testing.assert_close(rows.sum(0), torch.ones(SHAPE))


def test_jpeg_is_decoded_close_to_the_original() -> None:
    pixels = np.full((4, 6, 3), 200, np.uint8)
    row = _decode(_encode(pixels, "JPEG", quality=95))
    torch.testing.assert_close(row, torch.full(SHAPE, 200 / 255), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("data", "fields", "sentence"),
    [
        (b"", {}, "neither a JPEG nor a PNG"),
        (b"not an image", {}, "neither a JPEG nor a PNG"),
        (_encode(_pixels(4, 6, 3), "GIF"), {}, "neither a JPEG nor a PNG"),
        (_encode(_pixels(40, 60, 3))[:200], {}, "truncated or corrupt"),
        (_encode(_pixels(4, 6, 3)), {"crop": 3}, "inputs[0].crop"),
        (_encode(_pixels(40, 60, 3)), {"resize": [3, 6]}, "the model takes 4 x 6"),
    ],
)
def test_a_bad_picture_is_named_by_its_place(
    data: bytes, fields: dict[str, object], sentence: str
) -> None:
    spec = InputSpec.model_validate(fields)
    good = [_encode(_pixels(4, 6, 3))] if not fields else []
    with pytest.raises(InvalidRequest) as caught:
        decode_images([*good, data], spec, shape=SHAPE, layout="CHW", bounds=(0, 1))
    assert caught.value.violations[0].field == f"inputs.images[{len(good)}]"
    assert sentence in caught.value.message


def test_a_picture_of_too_many_pixels_is_refused_before_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = _encode(np.zeros((100, 100, 3), np.uint8))
    monkeypatch.setattr(images, "MAX_PIXELS", 9_999)
    with pytest.raises(InvalidRequest, match="100 x 100 pixels are too many"):
        _decode(data)


@pytest.mark.parametrize("limit", [1_000, 1_500])
def test_pillows_own_limit_is_an_error_too(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # warns at the limit, fails at twice it
    with pytest.raises(InvalidRequest, match="too large"):
        _decode(_encode(np.zeros((40, 50, 3), np.uint8)))


def test_a_thin_picture_is_not_blown_up() -> None:
    with pytest.raises(InvalidRequest, match="pixels are too many"):
        _decode(_encode(np.zeros((1, 20_000, 3), np.uint8)), resize=224)


@pytest.mark.parametrize(
    ("shape", "layout", "bounds", "fields", "sentence"),
    [
        ((10,), "other", (0, 1), {}, "no image"),
        (SHAPE, "CHW", None, {}, "inputs[0].bounds"),
        ((4, 4, 6), "CHW", (0, 1), {}, "4 channels"),
        (SHAPE, "CHW", (0, 1), {"color": "GRAY"}, "GRAY does not fit an input of 3 channels"),
    ],
)
def test_a_model_that_takes_no_pictures_says_so(
    shape: tuple[int, ...],
    layout: str,
    bounds: tuple[float, float] | None,
    fields: dict[str, object],
    sentence: str,
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _decode(_encode(_pixels(4, 6, 3)), shape, layout, bounds, **fields)
    assert sentence in caught.value.message
