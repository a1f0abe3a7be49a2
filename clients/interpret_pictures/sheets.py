"""Many pictures in one: contact sheets, channels side by side, points in the plane."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .arrays import Floats, clipped, finite, unit
from .canvas import (
    FAINT,
    INK,
    PAPER,
    as_bytes,
    enlarged,
    fitting,
    sized,
    width_of,
    write,
)
from .colors import class_color, colored
from .options import Colors

_LETTERS = 15
_SMALL = 11
_GAP, _LINE = 10, 22
_MOST_TILES = 256
_BETWEEN = (222, 222, 222)


def sheet(
    rows: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    columns: int | None = None,
    side: int = 224,
    titles: Sequence[str] = (),
) -> Image.Image:
    """Pictures side by side, each under its name.

    Args:
        rows: name -> picture (a Pillow image, or a PNG file's bytes): one row, or several.
        columns: how many side by side, at most; None for as many as there are.
        side: the width and the height that each picture is scaled to fit.
        titles: a line above every row.
    """
    given = [rows] if isinstance(rows, Mapping) else list(rows)
    lines: list[tuple[str, list[tuple[str, Any]]]] = []
    for index, row in enumerate(given):
        cells = list(row.items())
        step = columns or max(1, len(cells))
        parts = [cells[start : start + step] for start in range(0, len(cells), step)] or [[]]
        title = titles[index] if index < len(titles) else ""
        lines += [(title if part is parts[0] else "", part) for part in parts]
    across = max((len(cells) for _, cells in lines), default=0)
    shown = [[_fitted(_opened(item), side) for _, item in cells] for _, cells in lines]
    tallest = [max((tile.height for tile in tiles), default=0) for tiles in shown]
    heights = [
        tall + _LINE + _GAP + (_LINE if title else 0)
        for tall, (title, _) in zip(tallest, lines, strict=True)
    ]
    canvas = Image.new("RGB", (across * (side + _GAP) + _GAP, sum(heights) + _GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    top = _GAP
    for index, (title, cells) in enumerate(lines):
        start = top
        if title:
            text = fitting(title, _LETTERS, canvas.width - 2 * _GAP)
            write(draw, (_GAP, start), text, _LETTERS)
            start += _LINE
        for column, ((name, _), tile) in enumerate(zip(cells, shown[index], strict=True)):
            left = _GAP + column * (side + _GAP)
            text, size = sized(name, _LETTERS, _SMALL, side)
            write(draw, (left + side / 2, start + _LETTERS - size), text, size, anchor="ma")
            down = start + _LINE + (tallest[index] - tile.height) // 2
            left += (side - tile.width) // 2
            frame = (left - 1, down - 1, left + tile.width, down + tile.height)
            draw.rectangle(frame, outline=_BETWEEN)
            canvas.paste(tile, (left, down))
        top += heights[index]
    return canvas


def grid(
    maps: Floats,
    names: Sequence[str] = (),
    *,
    columns: int | None = None,
    together: bool = True,
    percentile: float = 99.5,
    colors: Colors = Colors.AUTO,
) -> Image.Image:
    """The channels of a layer, or the weights of filters, as tiles.

    Of more than 256 tiles the first are drawn.

    Args:
        maps: `(K, H, W)`, in two colours around zero where a value is negative; or `(K, H, W, 3)`,
            in their own colours, with zero in the middle where a value is negative.
        names: a line above every tile.
        columns: how many side by side; None for about a square.
        together: one scale for all tiles; otherwise each has its own.
        percentile: of the magnitudes that are clipped.
        colors: of `(K, H, W)`.
    """
    values = finite(maps)[:_MOST_TILES]
    if values.ndim not in (3, 4) or (values.ndim == 4 and values.shape[3] != 3):
        raise ValueError(f"maps have shape {list(values.shape)}, not (K, H, W) or (K, H, W, 3)")
    around_zero = bool((values < 0).any())
    scaled = (
        clipped(values, percentile)
        if together
        else np.stack([clipped(value, percentile) for value in values])
    )
    if values.ndim == 4:
        pixels = as_bytes(unit(scaled, (-1 if around_zero else 0, 1)))
    else:
        pixels = colored(scaled, colors, signed=around_zero)
    side = 160 if len(values) <= 9 else 96 if len(values) <= 64 else 56
    across = columns or int(np.ceil(np.sqrt(len(values))))
    tiles = [Image.fromarray(enlarged(tile, side)) for tile in pixels]
    width, height = (max((tile.size[axis] for tile in tiles), default=1) for axis in (0, 1))
    gap, line = 4, 18 if names else 0
    down = -(-len(tiles) // across)
    canvas = Image.new(
        "RGB", (across * (width + gap) + gap, down * (height + gap + line) + gap), _BETWEEN
    )
    draw = ImageDraw.Draw(canvas)
    for index, tile in enumerate(tiles):
        x = gap + index % across * (width + gap)
        y = gap + index // across * (height + gap + line)
        if index < len(names):
            write(draw, (x + width / 2, y), fitting(names[index], 13, width), 13, anchor="ma")
        canvas.paste(tile, (x, y + line))
    return canvas


def scatter(
    positions: Floats,
    classes: Sequence[int] | None = None,
    *,
    labels: Mapping[int, str] | Sequence[str] = (),
    thumbnails: Sequence[Any] = (),
    side: int = 720,
) -> Image.Image:
    """Points in the plane, coloured by class or shown as small pictures.

    Args:
        positions: `(N, 2)`; the second coordinate grows upwards.
        classes: one for each point; None for one colour.
        labels: names of the classes, by class.
        thumbnails: one picture for each point (a Pillow image, or a PNG file's bytes), framed in
            the class's colour.
        side: of the square that the points fill.
    """
    points = finite(positions)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"positions have shape {list(points.shape)}, not (N, 2)")
    seen = sorted({int(item) for item in classes}) if classes is not None else []
    ranks = {item: rank for rank, item in enumerate(seen)}
    colors = [
        class_color(ranks[int(item)]) for item in (classes if classes is not None else ())
    ] or [class_color(0)] * len(points)
    names = [_name(item, labels) for item in seen]
    legend = max((min(width_of(name, 13), 180) for name in names), default=-30) + 30
    canvas = Image.new("RGB", (side + legend, side), PAPER)
    tile = 0 if not len(thumbnails) else int(np.clip(side / np.sqrt(len(points)) / 1.5, 20, 64))
    edge = 16 + tile / 2
    low, span = points.min(0, initial=np.inf), np.ptp(points, axis=0) if len(points) else 1.0
    shares = (points - low) / np.where(span > 0, span, 1) + np.where(span > 0, 0, 0.5)
    x = edge + shares[:, 0] * (side - 2 * edge)
    y = side - edge - shares[:, 1] * (side - 2 * edge)
    if tile:
        draw = ImageDraw.Draw(canvas)
        for index in range(len(points)):
            shown = _fitted(_opened(thumbnails[index]), tile)
            left, top = round(x[index] - shown.width / 2), round(y[index] - shown.height / 2)
            canvas.paste(shown, (left, top))
            box = (left - 2, top - 2, left + shown.width + 1, top + shown.height + 1)
            draw.rectangle(box, outline=colors[index], width=2)
    else:
        canvas = _dots(canvas, x, y, colors, 5 if len(points) < 500 else 3)
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, 0, side - 1, side - 1), outline=FAINT)
    for rank, name in enumerate(names[: side // 20 - 1]):
        middle = 18 + 20 * rank
        draw.ellipse((side + 8, middle - 5, side + 18, middle + 5), fill=class_color(rank))
        write(draw, (side + 24, middle), fitting(name, 13, 180), 13, anchor="lm", fill=INK)
    return canvas


def _dots(
    canvas: Image.Image, x: Floats, y: Floats, colors: Sequence[Any], radius: int
) -> Image.Image:
    large = canvas.resize((canvas.width * 2, canvas.height * 2))
    draw = ImageDraw.Draw(large)
    for across, down, color in zip(2 * x, 2 * y, colors, strict=True):
        box = (across - 2 * radius, down - 2 * radius, across + 2 * radius, down + 2 * radius)
        draw.ellipse(box, fill=color, outline=PAPER, width=2)
    return large.resize(canvas.size, Image.Resampling.BOX)


def _name(item: int, labels: Mapping[int, str] | Sequence[str]) -> str:
    if isinstance(labels, Mapping):
        return labels.get(item, str(item))
    return labels[item] if 0 <= item < len(labels) else str(item)


def _opened(item: Any) -> Image.Image:
    image = Image.open(io.BytesIO(item)) if isinstance(item, bytes) else item
    return image.convert("RGB")


def _fitted(image: Image.Image, side: int) -> Image.Image:
    """The picture at the largest size that fits a square; a small one stays sharp."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    how = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    return image.resize(size, how)
