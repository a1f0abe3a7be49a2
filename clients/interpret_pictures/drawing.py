"""The pictures of a result, by the names of its tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from . import maps
from .arrays import Floats, channels_first, clipped, finite, reduced, resized, top_positions
from .bars import bars
from .canvas import png
from .colors import colored, covering
from .images import Bounds, image, rgb
from .objects import cut, cutout
from .options import Channels, Rendering, Style
from .sheets import grid, scatter, sheet
from .signals import plot

Files = dict[str, tuple[bytes, ...]]

_ATTRIBUTIONS = ("attributions", "token_attributions")
_IMAGES = ("images", "adversarial", "crops")
_LAYERS = ("activations", "filters")
_ACROSS = 6  # pictures of a comparison side by side
_MOST_THUMBNAILS = 400
_MOST_BARS = 256  # longer rows without a layout are drawn as signals
_NO_INPUT = {
    Style.OVERLAY: "there is no input to draw an overlay on",
    Style.OBJECT_MASK: "there is no image to cut an object out of",
}


@dataclass(frozen=True, eq=False)
class Scene:
    """What a result's rows are about.

    Args:
        inputs: `(N, *row)`, or None.
        layout: of a row: `CHW`, `HWC`, `CL`, `tokens` (positions first) or `other`.
        bounds: of the inputs.
        names: of the tokens or the features, for each row.
        classes: of each row, where they are known.
        labels: of the classes.
    """

    inputs: Floats | None = None
    layout: str = "other"
    bounds: Bounds = None
    names: Sequence[Sequence[str]] = ()
    classes: Sequence[int] | None = None
    labels: Sequence[str] = ()

    def row(self, index: int) -> Floats | None:
        """A row's input."""
        return None if self.inputs is None else self.inputs[index]


@dataclass(frozen=True, eq=False)
class Drawn:
    """PNG files by name, one per row, and sentences about some rows."""

    pictures: Files = field(default_factory=dict)
    warnings: dict[str, tuple[int, ...]] = field(default_factory=dict)


def draw(arrays: Mapping[str, Floats], rendering: Rendering, scene: Scene) -> Drawn:
    """Draw what a result holds, by the names of its tensors, up to their first dot.

    `attributions` and `token_attributions` are drawn in every style, under their own name where the
    style is `auto` and as `attributions.overlay` and so on otherwise; an object mask comes with
    `.object_cutout`. Where there are several, `comparison` shows them side by side in the first
    style. `images`, `adversarial` and `crops` are drawn as they are, with `perturbation` for the
    difference to the inputs: grey where nothing changed, scaled to its largest change. Of
    `activations` and `filters` every channel is a tile. `positions` `(N, 2)` are one picture of
    points, and one of the inputs in their places where those are images. Other tensors have none.

    Args:
        arrays: the result's tensors `(N, *row)`.
        rendering: how.
        scene: the inputs and what is known of them.
    """
    pictures: Files = {}
    warnings: dict[str, tuple[int, ...]] = {}
    attributed: dict[str, Floats] = {}
    for name, rows in arrays.items():
        kind, _, part = name.partition(".")
        if kind in _ATTRIBUTIONS:
            flat = kind == "attributions" or rows.ndim < 3
            drawn = draw_attributions(name, rows, rendering, scene if flat else Scene())
            pictures |= drawn.pictures
            warnings |= drawn.warnings
            attributed[part or name] = rows
        elif kind in _IMAGES:
            pictures[name] = draw_images(rows, scene)
        elif kind in _LAYERS:
            tiles = [tiled(row) for row in rows]
            pictures |= {name: tuple(png(tile) for tile in tiles if tile is not None)}
        elif kind == "positions" and rows.ndim == 2 and rows.shape[1] == 2:
            pictures |= draw_positions(name, rows, scene)
        if name == "adversarial" and scene.inputs is not None:
            changes = rows - scene.inputs
            pictures["perturbation"] = tuple(
                png(image(change, _symmetric(change), scene.layout)) for change in changes
            )
    if len(attributed) > 1:
        pictures["comparison"] = draw_comparison(attributed, rendering, scene)
    return Drawn({name: files for name, files in pictures.items() if files}, warnings)


def draw_comparison(
    methods: Mapping[str, Floats], rendering: Rendering, scene: Scene
) -> tuple[bytes, ...]:
    """For every row its input and all its attributions side by side, in the first style."""
    style = rendering.styles[0]
    signed = {name: bool((rows < 0).any()) for name, rows in methods.items()}
    sheets = []
    for index in range(len(next(iter(methods.values())))):
        given = scene.row(index)
        cells = {} if given is None else {"input": image(given, scene.bounds, scene.layout)}
        for name, rows in methods.items():
            drawn, _ = draw_row(rows[index], style, rendering, scene, index, signed[name])
            if drawn:
                cells[name] = list(drawn.values())[-1]
        sheets.append(png(sheet(cells, columns=_ACROSS)))
    return tuple(sheets)


def draw_positions(name: str, rows: Floats, scene: Scene) -> Files:
    """Rows as points in the colours of their classes, and as their inputs."""
    plain = scatter(rows, scene.classes, labels=scene.labels)
    drawn: Files = {name: (png(plain),)}
    inputs = scene.inputs
    if inputs is None or len(rows) > _MOST_THUMBNAILS or inputs.ndim < 3:
        return drawn
    maps_of = [channels_first(row, scene.layout) for row in inputs]
    if scene.layout in ("CHW", "HWC", "other") and maps_of[0].shape[1] > 1:
        small = [Image.fromarray(rgb(row, scene.bounds)) for row in maps_of]
        shown = scatter(rows, scene.classes, labels=scene.labels, thumbnails=small)
        drawn[f"{name}.inputs"] = (png(shown),)
    return drawn


def tiled(row: Floats) -> Image.Image | None:
    """A layer's values or a filter's weights, a tile for each channel; None for too many axes.

    Args:
        row: `(C, H, W)`, where three channels with negative values are one tile in colour; filters
            `(F, C, H, W)`, one below the other; a matrix, one tile; or a vector, as bars or curve.
            Axes of one place do not count.
    """
    values = np.squeeze(finite(row))
    if values.ndim < 2:
        values = values.reshape(-1)
        return bars(values) if len(values) <= _MOST_BARS else plot(values[None])
    if values.ndim == 2:
        return grid(values[None])
    if values.ndim == 3:
        colored = len(values) == 3 and bool((values < 0).any())
        return grid(np.moveaxis(values, 0, 2)[None]) if colored else grid(values)
    if values.ndim != 4:
        return None
    if values.shape[1] == 3:
        return grid(np.moveaxis(values, 1, 3))
    across = min(values.shape[1], 16) if values.shape[1] > 1 else None
    return grid(values.reshape(-1, *values.shape[2:]), columns=across)


def draw_images(rows: Floats, scene: Scene) -> tuple[bytes, ...]:
    """Every row as an image or a signal."""
    return tuple(png(image(row, scene.bounds, scene.layout)) for row in rows)


def draw_attributions(name: str, rows: Floats, rendering: Rendering, scene: Scene) -> Drawn:
    """Every row in every style."""
    found: dict[str, list[bytes]] = {}
    told: dict[str, list[int]] = {}
    two_colored = bool((rows < 0).any())
    for style in rendering.styles:
        for index, row in enumerate(rows):
            drawn, problem = draw_row(row, style, rendering, scene, index, two_colored)
            for suffix, picture in drawn.items():
                found.setdefault(name + suffix, []).append(png(picture))
            if problem:
                told.setdefault(problem, []).append(index)
    return Drawn(
        {key: tuple(files) for key, files in found.items()},
        {message: tuple(dict.fromkeys(numbers)) for message, numbers in told.items()},
    )


def draw_row(
    row: Floats,
    style: Style,
    options: Rendering,
    scene: Scene,
    index: int,
    two_colored: bool,
) -> tuple[dict[str, Image.Image], str]:
    """One row in one style: pictures by the suffix of their name, and what is wrong with them."""
    suffix = "" if style is Style.AUTO else f".{style}"
    given = scene.row(index)
    problem = _NO_INPUT.get(style, "") if given is None else ""
    if _is_bars(row, scene.layout):
        names = scene.names[index] if index < len(scene.names) else ()
        shown, what = _bars(row, style, options, scene.layout, names), "tokens and features"
        problem = "" if style is Style.OVERLAY else problem
    elif channels_first(row, scene.layout).shape[1] == 1:
        shown, what = _signal(row, given, style, options, scene, two_colored), "signals"
    elif style is Style.OBJECT_MASK and given is not None:
        mask, problem = cut(row, given, options, layout=scene.layout, bounds=scene.bounds)
        return {
            ".object_mask": maps.mask_picture(mask),
            ".object_cutout": cutout(given, mask, layout=scene.layout, bounds=scene.bounds),
        }, problem
    else:
        shown, what = _map(row, given, style, options, scene, two_colored), "images"
    if shown is None:
        return {}, problem or f"no object is cut out of {what}"
    return {suffix: shown}, problem


def _map(
    row: Floats,
    given: Floats | None,
    style: Style,
    options: Rendering,
    scene: Scene,
    two_colored: bool,
) -> Image.Image | None:
    layout, bounds = scene.layout, scene.bounds
    if style is Style.OBJECT_MASK:
        return None
    if style is Style.TOP_K:
        return maps.top_k(row, given, options, layout=layout, bounds=bounds)
    if style is Style.OVERLAY and given is not None:
        return maps.overlay(
            row, given, options, layout=layout, bounds=bounds, two_colored=two_colored
        )
    if given is not None:  # a coarse map is interpolated, not enlarged in squares
        size = channels_first(given, layout).shape[1:]
        row = resized(maps.values_of(row, layout, options), (size[0], size[1]))
    if _two_colors(style, two_colored):
        return maps.signed(row, options, layout=layout)
    return maps.heatmap(row, options, layout=layout)


def _signal(
    row: Floats,
    given: Floats | None,
    style: Style,
    options: Rendering,
    scene: Scene,
    two_colored: bool,
) -> Image.Image | None:
    if style is Style.OBJECT_MASK:
        return None
    values = reduced(channels_first(row, scene.layout), options.channels)
    curves, bounds = values, None
    if given is not None:
        curves, bounds = channels_first(given, scene.layout)[:, 0], scene.bounds
        values = resized(values, (1, curves.shape[1]))
    if style is Style.TOP_K:
        return plot(curves, bounds, bold=top_positions(values[0], options.top))
    values = clipped(values[0], options.percentile)
    signed = _two_colors(style, two_colored)
    if style is not Style.OVERLAY:
        return plot(curves, bounds, strip=colored(values, options.colors, signed=signed))
    colors = covering(values, options.colors, signed=signed)
    opacity = options.alpha * np.abs(values)[:, None]
    tint = ((1 - opacity) * 255 + opacity * colors).round().astype(np.uint8)
    return plot(curves, bounds, tint=tint)


def _bars(
    row: Floats, style: Style, options: Rendering, layout: str, names: Sequence[str]
) -> Image.Image | None:
    if style is Style.OBJECT_MASK:
        return None
    how = options.channels
    if layout == "tokens" and how is Channels.AUTO:
        how = Channels.SUM
    values = reduced(channels_first(row, layout), how)[0]
    if style is Style.HEATMAP:
        values = np.abs(values)
    bold = top_positions(values, options.top) if style is Style.TOP_K else None
    names = names if len(names) == len(values) else ()
    return bars(values, names, colors=options.colors, bold=bold)


def _is_bars(row: Floats, layout: str) -> bool:
    return layout == "tokens" or (layout == "other" and row.ndim == 1 and row.size <= _MOST_BARS)


def _two_colors(style: Style, two_colored: bool) -> bool:
    return style is Style.SIGNED or (style is not Style.HEATMAP and two_colored)


def _symmetric(change: Floats) -> tuple[float, float]:
    largest = float(np.abs(change).max()) or 1.0
    return -largest, largest
