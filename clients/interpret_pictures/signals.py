"""Signals as curves over a ruled axis, and what they are attributed."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .arrays import Floats, Mask, Pixels
from .canvas import FAINT, INK, number, width_of, write
from .colors import class_color

HEIGHT = 192
STRIP = 28
_WIDTH = 640
_RIGHT, _TOP, _BOTTOM, _GAP = 16, 10, 24, 6
_SHARPER = 3  # curves are drawn so many times larger and then reduced
_LETTERS = 12
_MOST_POINTS = 4000  # pieces of a very long curve

Curve = tuple[int, int, int]


def plot(
    channels: Floats,
    bounds: tuple[float, float] | None = None,
    *,
    strip: Pixels | None = None,
    tint: Pixels | None = None,
    bold: Mask | None = None,
) -> Image.Image:
    """Curves over the position, with ruled axes.

    Args:
        channels: `(C, L)`: one curve for each channel.
        bounds: of the values' axis; None for the smallest and the largest value.
        strip: `(L, 3)`: colours of a strip below, one for each position.
        tint: `(L, 3)`: colours of the ground behind the curves.
        bold: `(L,)`: positions outside are drawn pale.
    """
    length = channels.shape[1]
    lower, upper = bounds or (float(channels.min()), float(channels.max()))
    if upper <= lower:
        lower, upper = lower - 0.5, upper + 0.5
    texts = [number(value) for value in (lower, upper)]
    left = max(width_of(text, _LETTERS) for text in texts) + 16
    width = _WIDTH - left - _RIGHT
    columns = np.minimum((np.arange(width) + 0.5) * length / width, length - 1).astype(int)
    below = 0 if strip is None else STRIP + _GAP
    canvas = np.full((_TOP + HEIGHT + below + _BOTTOM, _WIDTH, 3), 255, np.uint8)
    ground = canvas[_TOP : _TOP + HEIGHT, left : left + width]
    if tint is not None:
        ground[:] = tint[columns]
    if strip is not None:
        start = _TOP + HEIGHT + _GAP
        canvas[start : start + STRIP, left : left + width] = strip[_strongest(strip, columns)]
    canvas[_TOP : _TOP + HEIGHT, left : left + width] = _curves(
        ground, (channels - lower) / (upper - lower), bold
    )
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, _TOP - 1, left + width, _TOP + HEIGHT), outline=FAINT)
    for text, y in zip(texts, (_TOP + HEIGHT - 1, _TOP), strict=True):
        draw.line((left - 5, y, left - 1, y), fill=FAINT)
        write(draw, (left - 8, y), text, _LETTERS, anchor="rm")
    for position in _ticks(length):
        x = left + (position + 0.5) * width / length
        y = _TOP + HEIGHT + below
        draw.line((x, y, x, y + 4), fill=FAINT)
        write(draw, (x, y + 6), str(position), _LETTERS, anchor="ma")
    return image


def _strongest(strip: Pixels, columns: NDArray[np.int_]) -> NDArray[np.int_]:
    """For each column the position, of those that it covers, whose colour differs most from all."""
    if len(strip) <= len(columns):
        return columns
    usual = np.median(strip.astype(float), axis=0)
    distance = np.abs(strip - usual).sum(1)
    edges = np.append(columns, len(strip))
    return np.array(
        [
            start + int(distance[start : max(start + 1, end)].argmax())
            for start, end in pairwise(edges.tolist())
        ]
    )


def _curves(ground: Pixels, unit: Floats, bold: Mask | None) -> Pixels:
    height, width = ground.shape[:2]
    large = Image.fromarray(ground).resize((width * _SHARPER, height * _SHARPER), 0)
    draw = ImageDraw.Draw(large)
    length = unit.shape[1]
    x = (np.arange(length) + 0.5) * width / length * _SHARPER
    for index, channel in enumerate(np.clip(unit, 0, 1)):
        y = (_SHARPER * 4) + (1 - channel) * (height - 8) * _SHARPER
        color = INK if len(unit) == 1 else class_color(index)
        points = _points(x, y)
        if bold is None:
            _line(draw, points, color)
            continue
        _line(draw, points, (205, 205, 205))
        for start, end in _runs(bold):
            piece = slice(max(0, start - 1), end + 1)
            _line(draw, _points(x[piece], y[piece]), color)
    return np.asarray(large.resize((width, height), Image.Resampling.BOX))


def _points(x: Floats, y: Floats) -> list[tuple[float, float]]:
    """The corners of a curve; of a very long one the lowest and the highest of each short piece."""
    if len(x) > 2 * _MOST_POINTS:
        edges = np.linspace(0, len(x), _MOST_POINTS, endpoint=False).astype(int)
        pairs = np.stack([np.minimum.reduceat(y, edges), np.maximum.reduceat(y, edges)], axis=1)
        x, y = np.repeat(x[edges], 2), pairs.ravel()
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _line(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], color: Curve) -> None:
    if len(points) == 1:
        ((x, y),) = points
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=color)
    else:
        draw.line(points, fill=color, width=_SHARPER + 2, joint="curve")


def _runs(kept: Mask) -> list[tuple[int, int]]:
    """Where runs of true values start and end."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _ticks(length: int) -> list[int]:
    """About six round positions, 0 among them."""
    rough = max(1.0, length / 6)
    power = 10 ** int(np.floor(np.log10(rough)))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return list(range(0, length, max(1, step)))
