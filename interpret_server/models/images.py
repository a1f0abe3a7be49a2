"""Encoded images (JPEG, PNG) into rows of a classifier's input."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import InvalidRequest
from .classifier import Bounds
from .manifest import InputSpec

MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG")


def decode_images(
    images: Sequence[bytes],
    spec: InputSpec,
    *,
    shape: tuple[int, ...],
    layout: str,
    bounds: Bounds | tuple[float, float] | None,
) -> Tensor:
    """Decode encoded images into inputs.

    An image is turned upright by its EXIF orientation, laid over white where it is transparent,
    brought into the manifest's colour order, resized (bilinear with antialiasing; one number is
    the shorter side, the other is rounded) and cropped about its centre (an odd pixel stays at
    the bottom and right). Where the manifest states neither size, the image is resized until it
    just covers the input. Black becomes the lower bound and full intensity the upper one; the
    manifest's mean and standard deviation belong to the classifier.

    Args:
        images: one encoded image per row.
        spec: the manifest's input: `color`, `resize`, `crop`.
        shape: of one input row, `(C, H, W)` or `(H, W, C)` with 1 or 3 channels.
        layout: `CHW` or `HWC`.
        bounds: of the input.

    Returns:
        `(N, *shape)` float32 within the bounds.

    Raises:
        InvalidRequest: naming `inputs.images[i]`, or what the manifest must state.
    """
    if layout not in ("CHW", "HWC"):
        raise InvalidRequest.field(
            "inputs.images", "this model's input is no image; send the inputs as a tensor"
        )
    if bounds is None:
        raise InvalidRequest.field(
            "inputs.images",
            "the manifest does not state bounds; give inputs[0].bounds, or send a tensor",
        )
    channels, height, width = shape if layout == "CHW" else (shape[2], *shape[:2])
    color = spec.color or ("GRAY" if channels == 1 else "RGB")
    if channels not in (1, 3) or (channels == 1) != (color == "GRAY"):
        raise InvalidRequest.field(
            "inputs.images",
            f"an image in {color} does not fit an input of {channels} channels; "
            "send the inputs as a tensor",
        )
    lower, upper = bounds
    rows = torch.empty(len(images), *shape)
    for index, data in enumerate(images):
        field = f"inputs.images[{index}]"
        image = _fit(_decode(data, color, field), spec, height, width, field)
        values = np.asarray(image, dtype=np.float32).reshape(height, width, channels)
        if color == "BGR":
            values = values[:, :, ::-1]
        if layout == "CHW":
            values = values.transpose(2, 0, 1)
        rows[index] = torch.from_numpy(np.ascontiguousarray(values))
    return rows.mul_((upper - lower) / 255).add_(lower).clamp_(lower, upper)


def _decode(data: bytes, color: str, field: str) -> Image.Image:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image.width, image.height, field)
        return _opaque(ImageOps.exif_transpose(image)).convert("L" if color == "GRAY" else "RGB")
    except UnidentifiedImageError:
        raise InvalidRequest.field(field, "the bytes are neither a JPEG nor a PNG image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRequest.field(
            field, f"the image is too large; at most {MAX_PIXELS} pixels are decoded"
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError):
        raise InvalidRequest.field(field, "the image is truncated or corrupt") from None


def _check_size(width: int, height: int, field: str) -> None:
    if width * height > MAX_PIXELS:
        raise InvalidRequest.field(
            field, f"{width} x {height} pixels are too many; at most {MAX_PIXELS} are decoded"
        )


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip instead of scale
        wide: NDArray[np.float64] = np.asarray(image, dtype=np.float64)
        return Image.fromarray((wide / 257).round().clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)


def _fit(image: Image.Image, spec: InputSpec, height: int, width: int, field: str) -> Image.Image:
    resize = spec.resize
    if resize is None and spec.crop is None and image.size != (width, height):
        ratio = max(height / image.height, width / image.width)
        resize = (max(height, round(image.height * ratio)), max(width, round(image.width * ratio)))
    if isinstance(resize, int):
        short = min(image.size)
        resize = (round(image.height * resize / short), round(image.width * resize / short))
    if resize is not None and image.size != (resize[1], resize[0]):
        size = max(1, resize[1]), max(1, resize[0])
        _check_size(*size, field)
        image = image.resize(size, Image.Resampling.BILINEAR)
    crop = spec.crop if spec.crop is not None else (height, width)
    crop = (crop, crop) if isinstance(crop, int) else crop
    if crop != (height, width) or image.height < height or image.width < width:
        raise InvalidRequest.field(
            field,
            f"the image is {image.height} x {image.width} after the manifest's resize; the model "
            f"takes {height} x {width}: correct inputs[0].resize and inputs[0].crop",
        )
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))
