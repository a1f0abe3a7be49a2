"""Results as PNG pictures: heatmaps, images and one-dimensional signals. Imports no torch."""

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.floating]
Pixels = NDArray[np.uint8]

MIN_SIDE = 256  # smaller pictures are enlarged by a whole factor
STRIP_HEIGHT = 64  # of a heatmap over a signal
PLOT_HEIGHT = 128  # of a signal's line
PERCENTILE = 99.0

# Black through violet and orange to pale yellow, evenly rising in lightness.
_SEQUENTIAL = (
    (0, 0, 4),
    (66, 10, 104),
    (147, 38, 103),
    (221, 81, 58),
    (252, 165, 10),
    (252, 255, 164),
)
# Blue for values below zero, white at zero, red above.
_DIVERGING = (
    (5, 48, 97),
    (67, 147, 195),
    (209, 229, 240),
    (255, 255, 255),
    (253, 219, 199),
    (214, 96, 77),
    (103, 0, 31),
)
_DRAWN = {"attribution": "attributions", "synthesis": "images", "attack": "adversarial"}


def attribution_png(array: Floats, layout: str, signed: bool) -> bytes:
    """A heatmap of one row's attribution.

    A pixel shows the channel of the largest absolute value. Values beyond the 99th percentile of
    those are clipped.

    Args:
        array: one row, in `layout`.
        layout: `CHW`, `HWC`, `CL` or `other`.
        signed: blue for negative, white for zero and red for positive values; otherwise the
            absolute value, from black to pale yellow.
    """
    channels = _channels_first(array, layout)
    strongest = np.abs(channels).argmax(0)[None]
    values = np.take_along_axis(channels, strongest, 0)[0]
    limit = float(np.percentile(np.abs(values), PERCENTILE)) or float(np.abs(values).max())
    unit = values / limit if limit > 0 else np.zeros_like(values)
    position = (np.clip(unit, -1, 1) + 1) / 2 if signed else np.clip(np.abs(unit), 0, 1)
    pixels = _colour(position, _DIVERGING if signed else _SEQUENTIAL)
    if pixels.shape[0] == 1:
        pixels = np.repeat(pixels, STRIP_HEIGHT, axis=0)
        return _png(_enlarge(pixels, width_only=True))
    return _png(_enlarge(pixels))


def image_png(array: Floats, bounds: tuple[float, float] | None, layout: str) -> bytes:
    """One row as an image: the lower bound is black, the upper one full intensity.

    Images of one or three channels are drawn as they are, others as their mean over the channels;
    signals are drawn as lines.

    Args:
        array: one row, in `layout`.
        bounds: of the values; None for the row's own smallest and largest value.
        layout: `CHW`, `HWC`, `CL` or `other`.
    """
    channels = _channels_first(array, layout)
    lower, upper = bounds or (float(channels.min()), float(channels.max()))
    unit = np.clip((channels - lower) / ((upper - lower) or 1.0), 0, 1)
    if unit.shape[1] == 1:
        return _png(_lines(unit[:, 0]))
    if unit.shape[0] != 3:
        unit = unit.mean(0, keepdims=True)
    grey = np.broadcast_to(unit, (3, *unit.shape[1:]))
    return _png(_enlarge(_bytes(np.moveaxis(grey, 0, 2))))


def draw_all(
    kind: str,
    arrays: Mapping[str, Floats],
    *,
    layout: str,
    bounds: tuple[float, float] | None,
) -> dict[str, tuple[bytes, ...]]:
    """Draw every array `(N, *row)`: heatmaps for the kind `attribution`, images for others."""
    if kind == "attribution":
        return {
            name: tuple(attribution_png(row, layout, bool((rows < 0).any())) for row in rows)
            for name, rows in arrays.items()
        }
    return {
        name: tuple(image_png(row, bounds, layout) for row in rows) for name, rows in arrays.items()
    }


def pictures(
    kind: str,
    arrays: Mapping[str, Floats],
    *,
    inputs: Floats | None,
    layout: str,
    bounds: tuple[float, float] | None,
) -> dict[str, tuple[bytes, ...]]:
    """The pictures of a result, by name, one PNG per row.

    Args:
        kind: of the plugin. `attribution`: `attributions`; `synthesis`: `images`; `attack`:
            `adversarial`, and `perturbation` (grey where nothing changed, scaled to its largest
            change); others have none.
        arrays: the result's tensors `(N, *row)`.
        inputs: as the caller gave them.
        layout: of one row.
        bounds: of the inputs.
    """
    name = _DRAWN.get(kind)
    if name is None or name not in arrays:
        return {}
    drawn = draw_all(kind, {name: arrays[name]}, layout=layout, bounds=bounds)
    if name == "adversarial" and inputs is not None:
        changes = arrays[name] - inputs
        drawn["perturbation"] = tuple(
            image_png(change, _symmetric(change), layout) for change in changes
        )
    return drawn


def _symmetric(change: Floats) -> tuple[float, float]:
    largest = float(np.abs(change).max()) or 1.0
    return -largest, largest


def _channels_first(array: Floats, layout: str) -> Floats:
    """One row as `(channels, height, width)`; a signal has height 1."""
    values = np.nan_to_num(np.asarray(array, dtype=np.float64))
    if layout == "HWC" and values.ndim == 3:
        return np.moveaxis(values, 2, 0)
    if values.ndim == 3:
        return values
    if values.ndim == 2 and layout == "CL":
        return values[:, None, :]
    if values.ndim == 2:
        return values[None]
    return values.reshape(1, 1, -1)


def _colour(position: Floats, anchors: tuple[tuple[int, int, int], ...]) -> Pixels:
    stops = np.linspace(0, 1, len(anchors))
    table = np.array(anchors, dtype=np.float64)
    return (
        np.stack([np.interp(position, stops, table[:, channel]) for channel in range(3)], axis=-1)
        .round()
        .astype(np.uint8)
    )


def _bytes(unit: Floats) -> Pixels:
    return (unit * 255).round().astype(np.uint8)


def _lines(unit: Floats) -> Pixels:
    """One curve per channel `(C, L)` of values in [0, 1], 1 at the top."""
    factor = max(1, -(-MIN_SIDE // unit.shape[1]))
    length = unit.shape[1] * factor
    canvas = np.full((PLOT_HEIGHT, length, 3), 255, dtype=np.uint8)
    positions = np.linspace(0, unit.shape[1] - 1, length)
    for index, channel in enumerate(unit):
        colour = _colour(np.array(0.15 + 0.6 * index / max(1, len(unit) - 1)), _SEQUENTIAL)
        curve = np.interp(positions, np.arange(unit.shape[1]), channel)
        height = ((1 - curve) * (PLOT_HEIGHT - 1)).round().astype(int)
        before = np.concatenate([height[:1], height[:-1]])
        for column, (start, end) in enumerate(zip(before, height, strict=True)):
            canvas[min(start, end) : max(start, end) + 1, column] = colour
    return canvas


def _enlarge(pixels: Pixels, *, width_only: bool = False) -> Pixels:
    shorter = pixels.shape[1] if width_only else min(pixels.shape[:2])
    factor = max(1, -(-MIN_SIDE // shorter))
    pixels = np.repeat(pixels, factor, axis=1)
    return pixels if width_only else np.repeat(pixels, factor, axis=0)


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
