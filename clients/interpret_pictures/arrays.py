"""From rows in any layout to values at positions."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .options import Channels

Floats = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def channels_first(row: Floats, layout: str) -> Floats:
    """One row as `(channels, height, width)`; a signal has height 1.

    Args:
        row: of any number of axes; values that are not numbers count as zero, infinite ones as
            the largest that is finite.
        layout: `CHW`, `HWC`, `CL`, `tokens` (positions first) or `other`.
    """
    values = finite(row)
    if layout == "HWC" and values.ndim == 3:
        return np.moveaxis(values, 2, 0)
    if values.ndim == 3:
        return values
    if values.ndim == 2 and layout == "CL":
        return values[:, None, :]
    if values.ndim == 2 and layout == "tokens":
        return values.T[:, None, :]
    if values.ndim == 2:
        return values[None]
    return values.reshape(1, 1, -1)


def finite(values: Floats) -> Floats:
    """The values in double precision, without any that is no number or infinite."""
    numbers = np.asarray(values, dtype=np.float64)
    known = np.isfinite(numbers)
    if known.all():
        return numbers
    largest = float(np.abs(numbers[known]).max(initial=0.0))
    return np.nan_to_num(numbers, nan=0.0, posinf=largest, neginf=-largest)


def reduced(channels: Floats, how: Channels = Channels.AUTO) -> Floats:
    """`(C, H, W)` as one value for each position, `(H, W)`."""
    if how is Channels.SUM:
        return np.asarray(channels.sum(0))
    if how is Channels.MEAN:
        return np.asarray(channels.mean(0))
    strongest = np.abs(channels).argmax(0)[None]
    return np.asarray(np.take_along_axis(channels, strongest, 0)[0])


def clipped(values: Floats, percentile: float) -> Floats:
    """Values in [-1, 1]: divided by the percentile of their magnitudes, then clipped.

    Where that percentile is zero, the largest magnitude takes its place.
    """
    magnitudes = np.abs(values)
    limit = float(np.percentile(magnitudes, percentile)) or float(magnitudes.max())
    return np.asarray(np.clip(values / limit, -1, 1) if limit > 0 else np.zeros_like(values))


def unit(values: Floats, bounds: tuple[float, float] | None) -> Floats:
    """Values in [0, 1]: from the lower bound to the upper, or from the smallest to the largest."""
    lower, upper = bounds or (float(values.min()), float(values.max()))
    return np.asarray(np.clip((values - lower) / ((upper - lower) or 1.0), 0, 1))


def resized(values: Floats, size: tuple[int, int]) -> Floats:
    """A map `(H, W)` at another size, by bilinear interpolation."""
    if values.shape == size:
        return values
    scale = float(np.abs(values).max()) or 1.0  # Pillow computes in single precision
    small = Image.fromarray((values / scale).astype(np.float32))
    large = small.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(large, dtype=np.float64) * scale


def top_positions(values: Floats, share: float) -> Mask:
    """Where magnitudes are among the largest.

    Args:
        values: of any shape.
        share: in (0, 1]: `round(share * positions)` are kept, at least one; of equal ones the
            first. A position with the value zero is never kept.
    """
    magnitudes = np.abs(values).ravel()
    count = max(1, round(share * magnitudes.size))
    kept = np.zeros(magnitudes.size, dtype=bool)
    kept[np.argsort(-magnitudes, kind="stable")[:count]] = True
    return (kept & (magnitudes > 0)).reshape(values.shape)
