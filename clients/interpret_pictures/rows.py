"""One row's attribution in one style: which kind of picture it becomes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import maps
from .arrays import Floats, channels_first, clipped, reduced, resized, top_positions
from .bars import bars
from .colors import colored, covering
from .images import Bounds
from .objects import cut, cutout
from .options import Channels, Rendering, Style
from .signals import plot

MOST_BARS = 256  # longer vectors are drawn as curves

_NO_INPUT = {
    Style.OVERLAY: "there is no input to draw an overlay on",
    Style.OBJECT_MASK: "there is no image to cut an object out of",
}


@dataclass(frozen=True, eq=False)
class Row:
    """What is drawn.

    Args:
        attributions: of one row.
        given: its input, or None.
        layout: of the input: `CHW`, `HWC`, `CL`, `tokens` (positions first) or `other`.
        bounds: of the input.
        names: of its tokens or features, or none.
        signed: whether the style `auto` has two colours.
    """

    attributions: Floats
    given: Floats | None = None
    layout: str = "other"
    bounds: Bounds = None
    names: Sequence[str] = ()
    signed: bool = False

    def two_colored(self, style: Style) -> bool:
        """Whether a style shows signs."""
        return style is Style.SIGNED or (style is not Style.HEATMAP and self.signed)


def draw_row(row: Row, style: Style, options: Rendering) -> tuple[dict[str, Image.Image], str]:
    """The pictures by the suffix of their name, and what is wrong with them.

    Tokens and short vectors become bars; signals, and long vectors, curves; all others images.
    """
    if style is Style.OBJECT_MASK:
        return _object(row, options)
    suffix = "" if style is Style.AUTO else f".{style}"
    channels = channels_first(row.attributions, row.layout)
    values = row.attributions.size if channels.shape[1:] == (1, 1) else channels.shape[2]
    on_signal = row.given is not None and _height(row.given, row.layout) == 1
    if row.layout == "tokens" or (
        channels.shape[1] == 1 and row.layout != "CL" and values <= MOST_BARS
    ):
        return {suffix: _bars(row, style, options)}, ""
    problem = _NO_INPUT.get(style, "") if row.given is None else ""
    if channels.shape[1] == 1:
        return {suffix: _signal(row, style, options, on_signal=on_signal)}, problem
    return {suffix: _map(row, style, options)}, problem


def _height(array: Floats, layout: str) -> int:
    return int(channels_first(array, layout).shape[1])


def _object(row: Row, options: Rendering) -> tuple[dict[str, Image.Image], str]:
    flat = row.layout in ("tokens", "CL") or _height(row.attributions, row.layout) == 1
    if flat or row.given is None or _height(row.given, row.layout) == 1:
        return {}, _NO_INPUT[Style.OBJECT_MASK]
    layout, bounds = row.layout, row.bounds
    mask, problem = cut(row.attributions, row.given, options, layout=layout, bounds=bounds)
    return {
        ".object_mask": maps.mask_picture(mask),
        ".object_cutout": cutout(row.given, mask, layout=layout, bounds=bounds),
    }, problem


def _map(row: Row, style: Style, options: Rendering) -> Image.Image:
    values, given, layout, bounds = row.attributions, row.given, row.layout, row.bounds
    signed = row.two_colored(style)
    if style is Style.TOP_K:
        return maps.top_k(values, given, options, layout=layout, bounds=bounds)
    if style is Style.OVERLAY and given is not None:
        return maps.overlay(
            values, given, options, layout=layout, bounds=bounds, two_colored=signed
        )
    if given is not None:  # a coarse map is interpolated, not enlarged in squares
        height, width = channels_first(given, layout).shape[1:]
        values = resized(maps.values_of(values, layout, options), (height, width))
    draw = maps.signed if signed else maps.heatmap
    return draw(values, options, layout=layout)


def _signal(row: Row, style: Style, options: Rendering, *, on_signal: bool) -> Image.Image:
    values = reduced(channels_first(row.attributions, row.layout), options.channels)
    curves, bounds = values, None
    if on_signal and row.given is not None:
        curves, bounds = channels_first(row.given, row.layout)[:, 0], row.bounds
        values = resized(values, (1, curves.shape[1]))
    if style is Style.TOP_K:
        return plot(curves, bounds, bold=top_positions(values[0], options.top))
    values = clipped(values[0], options.percentile)
    signed = row.two_colored(style)
    if style is not Style.OVERLAY:
        return plot(curves, bounds, strip=colored(values, options.colors, signed=signed))
    colors = covering(values, options.colors, signed=signed)
    opacity = options.alpha * np.abs(values)[:, None]
    tint = ((1 - opacity) * 255 + opacity * colors).round().astype(np.uint8)
    return plot(curves, bounds, tint=tint)


def _bars(row: Row, style: Style, options: Rendering) -> Image.Image:
    how, channels = options.channels, channels_first(row.attributions, row.layout)
    if row.layout == "tokens" and how is Channels.AUTO:
        how = Channels.SUM
    one_place = channels.shape[1:] == (1, 1) and row.layout != "tokens"
    values = channels.ravel() if one_place else reduced(channels, how)[0]
    if style is Style.HEATMAP:
        values = np.abs(values)
    bold = top_positions(values, options.top) if style is Style.TOP_K else None
    names = row.names if len(row.names) == len(values) else ()
    return bars(values, names, colors=options.colors, bold=bold)
