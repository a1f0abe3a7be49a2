"""Pixels to pictures: sizes, letters, PNG."""

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .arrays import Floats, Pixels

MIN_SIDE = 256  # smaller pictures are enlarged by a whole factor
MAX_SIDE = 4096  # to which enlarging goes at most
INK = (32, 32, 32)
FAINT = (150, 150, 150)
PAPER = (255, 255, 255)


def png(image: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def picture(pixels: Pixels) -> Image.Image:
    """Pixels `(H, W, 3)`, enlarged by a whole factor where a side is short."""
    return Image.fromarray(enlarged(pixels))


def enlarged(pixels: Pixels, side: int = MIN_SIDE) -> Pixels:
    """Pixels repeated a whole number of times, until the shorter side is at least `side`."""
    shorter, longer = sorted(pixels.shape[:2])
    factor = max(1, min(-(-side // shorter), MAX_SIDE // longer))
    return np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)


def as_bytes(unit: Floats) -> Pixels:
    """Values in [0, 1] as 0 to 255."""
    return (unit * 255).round().astype(np.uint8)


@lru_cache(maxsize=16)
def font(size: int) -> Any:
    """The letters that come with Pillow."""
    return ImageFont.load_default(size)


def width_of(text: str, size: int) -> int:
    """How many pixels wide a line is."""
    return int(np.ceil(font(size).getlength(text)))


def sized(text: str, largest: int, smallest: int, width: int) -> tuple[str, int]:
    """A line in the largest letters that fit, cut short if none do, and their size."""
    for size in range(largest, smallest, -1):
        if fitting(text, size, width) == text:
            return text, size
    return fitting(text, smallest, width), smallest


def fitting(text: str, size: int, width: int) -> str:
    """A line cut short with dots until it is no wider than `width` pixels."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    if width_of(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if width_of(text[:middle].rstrip() + "…", size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"


def write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int = 13,
    *,
    anchor: str = "la",
    fill: tuple[int, int, int] = INK,
) -> None:
    """Write a line; `anchor` as Pillow has it: horizontally l, m, r, vertically a, m, s."""
    draw.text(at, text, font=font(size), anchor=anchor, fill=fill)


def number(value: float) -> str:
    """A number in few letters."""
    text = f"{value:.3g}"
    return "0" if text == "-0" else text
