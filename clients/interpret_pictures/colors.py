"""Colour maps."""

import numpy as np

from .arrays import Floats, Pixels
from .options import Colors

Anchors = tuple[tuple[int, int, int], ...]

# Evenly rising in lightness.
_INFERNO: Anchors = (
    (0, 0, 4),
    (66, 10, 104),
    (147, 38, 103),
    (221, 81, 58),
    (252, 165, 10),
    (252, 255, 164),
)
_VIRIDIS: Anchors = (
    (68, 1, 84),
    (65, 68, 135),
    (42, 120, 142),
    (34, 168, 132),
    (122, 209, 81),
    (253, 231, 37),
)
_GRAY: Anchors = ((0, 0, 0), (255, 255, 255))
# Blue for values below zero, white at zero, red above.
_BLUE_RED: Anchors = (
    (5, 48, 97),
    (67, 147, 195),
    (209, 229, 240),
    (255, 255, 255),
    (253, 219, 199),
    (214, 96, 77),
    (103, 0, 31),
)
_MAPS = {
    Colors.INFERNO: _INFERNO,
    Colors.VIRIDIS: _VIRIDIS,
    Colors.GRAY: _GRAY,
    Colors.BLUE_RED: _BLUE_RED,
}
# Told apart by those who see no red or no green, and strong enough to lie over a photograph.
_TWO = ((30, 90, 235), (225, 30, 45))
CLASSES: Anchors = (
    (31, 119, 180),
    (214, 39, 40),
    (44, 160, 44),
    (255, 127, 14),
    (148, 103, 189),
    (23, 160, 180),
    (140, 86, 75),
    (214, 96, 180),
    (110, 110, 110),
    (170, 170, 30),
)


def colored(values: Floats, colors: Colors, *, signed: bool) -> Pixels:
    """The colours of values in [-1, 1], `(..., 3)`.

    Args:
        values: of any shape.
        colors: the map.
        signed: from -1 at the map's start to 1 at its end; otherwise magnitudes, from 0 to 1.
            Magnitudes take the red half of `blue_red`, which has its zero in the middle.
    """
    if colors is Colors.AUTO:
        colors = Colors.BLUE_RED if signed else Colors.INFERNO
    if signed:
        position = (values + 1) / 2
    elif colors is Colors.BLUE_RED:
        position = (np.abs(values) + 1) / 2
    else:
        position = np.abs(values)
    return interpolated(position, _MAPS[colors])


def two_colors(colors: Colors) -> Pixels:
    """The colours of negative and of positive values where their strength is shown otherwise."""
    anchors = _TWO if colors in (Colors.AUTO, Colors.BLUE_RED) else _MAPS[colors]
    return np.array([anchors[0], anchors[-1]], dtype=np.uint8)


def covering(values: Floats, colors: Colors, *, signed: bool) -> Pixels:
    """The colours that values in [-1, 1] lay over an input, where opacity shows their size."""
    if not signed:
        return colored(values, colors, signed=False)
    return np.asarray(two_colors(colors)[(values > 0).astype(int)])


def interpolated(position: Floats, anchors: Anchors) -> Pixels:
    """The colours at positions in [0, 1] between evenly spaced anchors."""
    stops = np.linspace(0, 1, len(anchors))
    table = np.array(anchors, dtype=np.float64)
    return (
        np.stack([np.interp(position, stops, table[:, channel]) for channel in range(3)], axis=-1)
        .round()
        .astype(np.uint8)
    )


def class_color(index: int) -> tuple[int, int, int]:
    """A colour for a class or a curve; they repeat after ten."""
    return CLASSES[index % len(CLASSES)]
