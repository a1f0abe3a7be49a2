"""Attributions as pictures, without a server: the drawing that the server uses itself.

    from interpret_client import pictures

    pictures.overlay(attributions[0], inputs[0], pictures.Rendering(alpha=0.6), bounds=(0, 1))
    mask = pictures.object_mask(attributions[0], inputs[0], bounds=(0, 1))

Every function takes one row and gives a Pillow image, `png` makes a file of it. Needs numpy and
Pillow, and OpenCV (`opencv-python-headless`) for `object_mask` alone.
"""

from interpret_pictures.arrays import top_positions
from interpret_pictures.bars import bars
from interpret_pictures.canvas import png
from interpret_pictures.drawing import Drawn, Scene, draw
from interpret_pictures.images import image
from interpret_pictures.maps import heatmap, overlay, signed, top_k
from interpret_pictures.objects import cutout, object_mask
from interpret_pictures.options import (
    Backdrop,
    Channels,
    Colors,
    OptionError,
    Rendering,
    Style,
)
from interpret_pictures.sheets import grid, scatter, sheet
from interpret_pictures.signals import plot

__all__ = [
    "Backdrop",
    "Channels",
    "Colors",
    "Drawn",
    "OptionError",
    "Rendering",
    "Scene",
    "Style",
    "bars",
    "cutout",
    "draw",
    "grid",
    "heatmap",
    "image",
    "object_mask",
    "overlay",
    "plot",
    "png",
    "scatter",
    "sheet",
    "signed",
    "top_k",
    "top_positions",
]
