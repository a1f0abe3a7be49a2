"""Attributions of tokens and of tabular features: one bar for each, with its name and its sign."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .arrays import Floats, Mask, finite
from .canvas import FAINT, PAPER, fitting, number, width_of, write
from .colors import two_colors
from .options import Colors

MOST = 48  # bars of one picture
_ROW, _LETTERS = 20, 13
_NAMES, _BARS = 200, 360  # pixels at most, and of the longest bars together
_EDGE, _GAP = 12, 8
_PALE = (205, 205, 205)


def bars(
    values: Floats,
    names: Sequence[str] = (),
    *,
    colors: Colors = Colors.AUTO,
    bold: Mask | None = None,
) -> Image.Image:
    """Horizontal bars in the order of the values: red to the right above zero, blue to the left.

    Of more than 48 values those of the largest magnitude are drawn, still in their order.

    Args:
        values: `(L,)`.
        names: one for each value; none for their positions.
        colors: the map that the two colours are taken from.
        bold: `(L,)`: the others are drawn pale.
    """
    numbers = finite(values).ravel()
    texts = list(names) or [str(position) for position in range(len(numbers))]
    if len(texts) != len(numbers):
        raise ValueError(f"{len(texts)} names for {len(numbers)} values")
    drawn = np.sort(np.argsort(-np.abs(numbers), kind="stable")[:MOST])
    largest = float(np.abs(numbers).max(initial=0.0)) or 1.0
    labels = [fitting(texts[index], _LETTERS, _NAMES) for index in drawn]
    shown = [number(float(numbers[index])) for index in drawn]
    name_width = max((width_of(label, _LETTERS) for label in labels), default=0)
    value_width = max((width_of(text, _LETTERS) for text in shown), default=0) + _GAP
    below, above = (numbers < 0).any(), (numbers > 0).any() or not (numbers < 0).any()
    reach = _BARS / (int(below) + int(above))
    left = _EDGE + name_width + _GAP + (value_width if below else 0)
    zero = left + (reach if below else 0)
    width = int(left + _BARS + (value_width if above else 0) + _EDGE)
    more = len(numbers) - len(drawn)
    height = 2 * _EDGE + _ROW * (len(drawn) + (1 if more else 0))
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    signs = two_colors(colors).tolist()
    for line, index in enumerate(drawn.tolist()):
        value, middle = float(numbers[index]), _EDGE + _ROW * (line + 0.5)
        write(draw, (_EDGE + name_width, middle), labels[line], _LETTERS, anchor="rm")
        end = zero + value / largest * reach
        low, high = sorted((zero, end))
        if value:
            box = (round(low), middle - 7, round(high) - 1, middle + 6)
            fill = tuple(signs[value > 0]) if bold is None or bold[index] else _PALE
            draw.rectangle((*box[:2], max(box[0], box[2]), box[3]), fill=fill)
        outside = end + (4 if value >= 0 else -4)
        write(draw, (outside, middle), shown[line], _LETTERS, anchor="lm" if value >= 0 else "rm")
    draw.line((zero, _EDGE - 4, zero, _EDGE + _ROW * len(drawn) + 3), fill=FAINT)
    if more:
        text = f"and {more} of smaller magnitude"
        write(draw, (_EDGE, height - _EDGE), text, _LETTERS, anchor="ls", fill=FAINT)
    return image
