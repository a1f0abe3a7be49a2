"""Attributions of images: heatmaps, two colours around zero, overlays and top-k masks."""

import numpy as np
from PIL import Image

from .arrays import Floats, Mask, channels_first, clipped, reduced, resized, top_positions
from .canvas import picture
from .colors import colored, covering
from .images import Bounds, gray, rgb
from .options import Backdrop, Rendering

DEFAULT = Rendering()
_DIMMED = 0.35  # brightness around a top-k mask


def heatmap(
    attributions: Floats, options: Rendering = DEFAULT, *, layout: str = "CHW"
) -> Image.Image:
    """The magnitudes of one row, from black to pale yellow.

    Args:
        attributions: one row in `layout`, with or without its channel axis.
        options: `channels`, `percentile` and `colors` count.
        layout: `CHW`, `HWC` or `other`.
    """
    values = clipped(values_of(attributions, layout, options), options.percentile)
    return picture(colored(values, options.colors, signed=False))


def signed(
    attributions: Floats, options: Rendering = DEFAULT, *, layout: str = "CHW"
) -> Image.Image:
    """One row around zero: blue for negative, white for zero and red for positive values.

    Args: as `heatmap`.
    """
    values = clipped(values_of(attributions, layout, options), options.percentile)
    return picture(colored(values, options.colors, signed=True))


def overlay(
    attributions: Floats,
    image: Floats,
    options: Rendering = DEFAULT,
    *,
    layout: str = "CHW",
    bounds: Bounds = None,
    two_colored: bool | None = None,
) -> Image.Image:
    """The input, covered by colour the more the larger its attribution is.

    With u the clipped attribution in [-1, 1], a pixel is `(1 - alpha |u|) input + alpha |u|
    colour(u)`, where the colour is that of a heatmap, or shows the sign alone. An attribution of
    another size than the input's is interpolated to it.

    Args:
        attributions: one row in `layout`, with or without its channel axis.
        image: the input's row in `layout`.
        options: `channels`, `percentile`, `colors`, `alpha` and `backdrop` count.
        layout: `CHW`, `HWC` or `other`.
        bounds: of the input; None for its own smallest and largest value.
        two_colored: colours around zero; None for wherever a value is negative.
    """
    under = rgb(channels_first(image, layout), bounds)
    values = resized(values_of(attributions, layout, options), under.shape[:2])
    values = clipped(values, options.percentile)
    if two_colored is None:
        two_colored = bool((values < 0).any())
    if options.backdrop is Backdrop.GRAY:
        under = gray(under)
    opacity = options.alpha * np.abs(values)[..., None]
    over = covering(values, options.colors, signed=two_colored)
    return picture(((1 - opacity) * under + opacity * over).round().astype(np.uint8))


def top_k(
    attributions: Floats,
    image: Floats | None = None,
    options: Rendering = DEFAULT,
    *,
    layout: str = "CHW",
    bounds: Bounds = None,
) -> Image.Image:
    """The input where its attribution is among the largest, and dark elsewhere.

    Args:
        attributions: one row in `layout`, with or without its channel axis.
        image: the input's row in `layout`; None for a white mask on black.
        options: `channels`, `top` and `backdrop` count.
        layout: `CHW`, `HWC` or `other`.
        bounds: of the input; None for its own smallest and largest value.
    """
    values = values_of(attributions, layout, options)
    if image is None:
        return mask_picture(top_positions(values, options.top))
    pixels = rgb(channels_first(image, layout), bounds)
    kept = top_positions(resized(values, pixels.shape[:2]), options.top)
    around = gray(pixels) if options.backdrop is Backdrop.GRAY else pixels
    dark = (around * _DIMMED).round().astype(np.uint8)
    return picture(np.where(kept[..., None], pixels, dark))


def values_of(attributions: Floats, layout: str, options: Rendering) -> Floats:
    """One value for each position `(H, W)` of a row in `layout`."""
    return reduced(channels_first(attributions, layout), options.channels)


def mask_picture(mask: Mask) -> Image.Image:
    """White where a mask `(H, W)` is true, black elsewhere."""
    return picture(np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1))
