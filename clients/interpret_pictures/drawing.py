"""The pictures of a result, by the names of its tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from .arrays import Floats, channels_first, finite
from .bars import bars
from .canvas import png
from .images import Bounds, image, rgb
from .options import Rendering
from .rows import MOST_BARS, Row, draw_row
from .sheets import grid, scatter, sheet
from .signals import plot

Files = dict[str, tuple[bytes, ...]]

_ATTRIBUTIONS = ("attributions", "token_attributions", "randomised")
_IMAGES = ("images", "adversarial", "crops")
_LAYERS = ("activations", "filters")
_ACROSS = 6  # pictures of a comparison side by side
_MOST_THUMBNAILS = 400


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

    def row(self, attributions: Floats, index: int, *, signed: bool) -> Row:
        """A row's attribution with its input; `signed`: some row has a negative value."""
        given = None if self.inputs is None else self.inputs[index]
        names = self.names[index] if index < len(self.names) else ()
        return Row(attributions, given, self.layout, self.bounds, names, signed)


@dataclass(frozen=True, eq=False)
class Drawn:
    """PNG files by name, one per row, and sentences about some rows."""

    pictures: Files = field(default_factory=dict)
    warnings: dict[str, tuple[int, ...]] = field(default_factory=dict)


def draw(arrays: Mapping[str, Floats], rendering: Rendering, scene: Scene) -> Drawn:
    """Draw what a result holds, by the names of its tensors, up to their first dot.

    `attributions`, `token_attributions` and `randomised` are drawn in every style, under their own
    name where the style is `auto` and as `attributions.overlay` and so on otherwise; an object mask
    comes with `.object_cutout`. Where there are several, `comparison` shows them side by side in
    the first style. `images`, `adversarial` and `crops` are drawn as they are, with `perturbation`
    for the difference to the inputs: grey where nothing changed, scaled to its largest change. Of
    `activations` and `filters` every channel is a tile. `positions` `(N, 2)` are one picture of
    points, and one of the inputs in their places where those are images. A `curve`, or what ends in
    `_curve`, `(N, points)` is a curve. Other tensors have no picture.

    Args:
        arrays: the result's tensors `(N, *row)`.
        rendering: how.
        scene: the inputs and what is known of them.
    """
    if scene.inputs is not None and any(len(rows) != len(scene.inputs) for rows in arrays.values()):
        scene = replace(scene, inputs=None)  # what is about other rows
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
        elif kind.endswith("curve") and rows.ndim == 2:
            pictures[name] = tuple(png(plot(finite(row)[None])) for row in rows)
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
        cells: dict[str, Image.Image] = {}
        if scene.inputs is not None:
            cells["input"] = image(scene.inputs[index], scene.bounds, scene.layout)
        for name, rows in methods.items():
            row = scene.row(rows[index], index, signed=signed[name])
            drawn, _ = draw_row(row, style, rendering)
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
        return bars(values) if len(values) <= MOST_BARS else plot(values[None])
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
    signed = bool((rows < 0).any())
    for style in rendering.styles:
        for index, values in enumerate(rows):
            row = scene.row(values, index, signed=signed)
            drawn, problem = draw_row(row, style, rendering)
            for suffix, picture in drawn.items():
                found.setdefault(name + suffix, []).append(png(picture))
            if problem:
                told.setdefault(problem, []).append(index)
    return Drawn(
        {key: tuple(files) for key, files in found.items()},
        {message: tuple(dict.fromkeys(numbers)) for message, numbers in told.items()},
    )


def _symmetric(change: Floats) -> tuple[float, float]:
    largest = float(np.abs(change).max()) or 1.0
    return -largest, largest
