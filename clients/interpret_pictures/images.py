"""Inputs as images."""

import numpy as np
from PIL import Image

from .arrays import Floats, Pixels, channels_first, unit
from .canvas import as_bytes, picture
from .signals import plot

Bounds = tuple[float, float] | None


def image(row: Floats, bounds: Bounds = None, layout: str = "CHW") -> Image.Image:
    """One row as an image: the lower bound is black, the upper one full intensity.

    Images of one or three channels are drawn as they are, others as their mean over the channels;
    signals are drawn as curves.

    Args:
        row: in `layout`.
        bounds: of the values; None for the row's own smallest and largest value.
        layout: `CHW`, `HWC`, `CL`, `tokens` or `other`.
    """
    channels = channels_first(row, layout)
    if channels.shape[1] == 1:
        return plot(channels[:, 0], bounds)
    return picture(rgb(channels, bounds))


def rgb(channels: Floats, bounds: Bounds) -> Pixels:
    """Channels `(C, H, W)` as pixels `(H, W, 3)`."""
    values = unit(channels, bounds)
    if len(values) not in (1, 3):
        values = values.mean(0, keepdims=True)
    return as_bytes(np.moveaxis(np.broadcast_to(values, (3, *values.shape[1:])), 0, 2))


def gray(pixels: Pixels) -> Pixels:
    """Pixels `(H, W, 3)` without their colours, by the luma of ITU-R BT.601."""
    luma = (pixels @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
    return np.repeat(luma[..., None], 3, axis=-1)
