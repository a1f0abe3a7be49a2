"""The object that a saliency map lies on, cut out of its image."""

import warnings
from typing import Any

import numpy as np
from PIL import Image

from .arrays import Floats, Mask, Pixels, channels_first, reduced, resized
from .canvas import picture
from .images import Bounds, rgb
from .options import Channels, Rendering

DEFAULT = Rendering()
MAX_SIDE = 384  # longer sides are reduced to this for the cut
_ROUNDS = 5
_SMALLEST = 16  # pixels that the colours of an object or of a background are learned from


def object_mask(
    saliency: Floats,
    image: Floats,
    options: Rendering = DEFAULT,
    *,
    layout: str = "CHW",
    bounds: Bounds = None,
) -> Mask:
    """Where the object is that a saliency map lies on, `(H, W)`.

    Pixels above the `foreground` quantile of the saliency are the object's, those up to the
    `background` quantile are not; a graph cut over the image's colours decides about the others,
    and its largest connected part is the object. Where the map or the image does not allow that,
    the mask is empty and a warning says why.

    Source: Simonyan, Vedaldi & Zisserman 2013, "Deep Inside Convolutional Networks", section 3.2,
    with the quantiles 95% and 30%. The cut is GrabCut: Rother, Kolmogorov & Blake 2004. Unlike the
    paper, the saliency is evened out first (`smoothing`), since raw gradients vary from pixel to
    pixel.

    Args:
        saliency: one row in `layout`, with or without its channel axis; the largest magnitude over
            the channels counts.
        image: the input's row in `layout`, of any number of channels.
        options: `foreground`, `background` and `smoothing` count.
        layout: `CHW`, `HWC` or `other`.
        bounds: of the image; None for its own smallest and largest value.
    """
    mask, problem = cut(saliency, image, options, layout=layout, bounds=bounds)
    if problem:
        warnings.warn(problem, stacklevel=2)
    return mask


def cut(
    saliency: Floats, image: Floats, options: Rendering, *, layout: str, bounds: Bounds
) -> tuple[Mask, str]:
    """The mask of `object_mask`, and why it is empty."""
    pixels = rgb(channels_first(image, layout), bounds)
    size = pixels.shape[:2]
    values = np.abs(reduced(channels_first(saliency, layout), Channels.MAX_ABS))
    factor = min(1.0, MAX_SIDE / max(size))
    inner = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
    empty = np.zeros(size, dtype=bool)
    values = resized(values, inner)
    if values.max() <= values.min():
        return empty, "no object was cut out: the attribution is the same everywhere"

    import cv2

    if inner != size:
        pixels = np.asarray(cv2.resize(pixels, inner[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    if options.smoothing:
        sigma = max(options.smoothing * min(inner), 1e-3)
        values = cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    inside = values > np.quantile(values, options.foreground)
    outside = ~inside & (values <= np.quantile(values, options.background))
    for seeds, what in ((inside, "the object"), (outside, "the background")):
        if seeds.sum() < min(_SMALLEST, values.size // 20 or 1):
            return empty, f"no object was cut out: no positions are sure to belong to {what}"
    if not np.ptp(pixels):
        return empty, "no object was cut out: the image has one colour"
    found = _largest(_grab(cv2, np.ascontiguousarray(pixels), inside, outside))
    if inner != size:
        found = cv2.resize(found.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return found, ""


def cutout(image: Floats, mask: Mask, *, layout: str = "CHW", bounds: Bounds = None) -> Image.Image:
    """The image where a mask `(H, W)` is true, on white."""
    pixels = rgb(channels_first(image, layout), bounds)
    return picture(np.where(mask[..., None], pixels, np.uint8(255)))


def _grab(cv2: Any, pixels: Pixels, inside: Mask, outside: Mask) -> Mask:
    labels = np.full(inside.shape, cv2.GC_PR_BGD, np.uint8)
    labels[inside], labels[outside] = cv2.GC_FGD, cv2.GC_BGD
    background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)  # its clustering of colours starts at random
    cv2.grabCut(pixels, labels, None, background, foreground, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    found: Mask = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return found


def _largest(mask: Mask) -> Mask:
    """The largest 8-connected part."""
    import cv2

    count, parts, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return mask
    largest: Mask = parts == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax()
    return largest
