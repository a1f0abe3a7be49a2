"""Pictures of fragile samples: as they are, changed, and the change made large enough to see."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from interpret_pictures.arrays import Floats, channels_first, finite
from interpret_pictures.bars import bars
from interpret_pictures.canvas import png
from interpret_pictures.images import rgb
from interpret_pictures.signals import plot

from ...models.manifest import InputSpec, Manifest

SIDE = 192  # of an image's longer side at most, in pixels
_MOST_BARS = 24
_SMALL = 64  # up to here a page shows the pixels of an image as squares


@dataclass(frozen=True)
class Change:
    """Pictures of a sample and its adversarial example, as PNG files.

    Args:
        original, adversarial: within the bounds.
        difference: grey, or zero, where nothing changed.
        magnified: by how much the difference's contrast is above that of the other two.
        image: whether they are images, not plots.
        pixels: whether they are small images, to be enlarged without smoothing.
    """

    original: bytes
    adversarial: bytes
    difference: bytes
    magnified: float
    image: bool
    pixels: bool


def draw(document: Mapping[str, Any], folder: Path) -> dict[str, Change]:
    """Pictures of all fragile samples that a report names, by the stage and row of the example.

    Args:
        document: the report.
        folder: with `inputs/` and `examples/`.
    """
    painter = Painter.of(document["origin"])
    return {
        picture_key(item): painter.change(
            _row(folder, item["input"]), _row(folder, item["example"])
        )
        for item in fragile_samples(document)
    }


def fragile_samples(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Those of every threat model and of corruptions."""
    for part in (*document["threats"], document["corruptions"] or {"fragile": []}):
        yield from part["fragile"]


def picture_key(item: Mapping[str, Any]) -> str:
    """What names the pictures of a fragile sample."""
    return f"{item['stage']} {item['row']}"


@dataclass(frozen=True)
class Painter:
    """Draws rows of a model's input.

    Args:
        layout: `CHW`, `HWC`, `CL` or `other`.
        bounds: of the values.
        features: names of the values, or none.
        reverse: whether the channels are blue, green, red.
    """

    layout: str
    bounds: tuple[float, float]
    features: tuple[str, ...] = ()
    reverse: bool = False

    @classmethod
    def of(cls, origin: Mapping[str, Any]) -> "Painter":
        """As the model's manifest says, or as its input's shape suggests."""
        about = _input_of(origin["manifest"])
        layout = about.layout or _layout(origin["input_shape"])
        low, high = origin["bounds"]
        return cls(layout, (low, high), about.features or (), about.color == "BGR")

    def change(self, before: Floats, after: Floats) -> Change:
        """Draw a sample and what became of it.

        Args:
            before, after: one row each, of the same shape.
        """
        old, new = self._channels(before), self._channels(after)
        width = self.bounds[1] - self.bounds[0]
        largest = float(np.abs(new - old).max(initial=0.0)) or width / 2
        symmetric = (-largest, largest)
        return Change(
            png(self._drawn(old, self.bounds)),
            png(self._drawn(new, self.bounds)),
            png(self._drawn(new - old, symmetric)),
            width / (2 * largest),
            image=old.shape[1] > 1,
            pixels=old.shape[1] > 1 and max(old.shape[1:]) <= _SMALL,
        )

    def _channels(self, row: Floats) -> Floats:
        channels = channels_first(np.asarray(row), self.layout)
        return channels[::-1] if self.reverse and len(channels) == 3 else channels

    def _drawn(self, channels: Floats, bounds: tuple[float, float]) -> Image.Image:
        count, height, width = channels.shape
        if height > 1:
            return _fitted(Image.fromarray(rgb(channels, bounds)))
        values = finite(channels[:, 0])
        if count == 1 and width <= _MOST_BARS:
            return bars(values[0], self.features if len(self.features) == width else ())
        return plot(values, bounds)


def _input_of(manifest: str) -> InputSpec:
    try:
        return Manifest.model_validate(json.loads(manifest)).input
    except (ValueError, ValidationError):
        return InputSpec()


def _layout(shape: list[int]) -> str:
    if len(shape) == 3:
        return "CHW" if shape[0] in (1, 3) or shape[2] not in (1, 3) else "HWC"
    return "CL" if len(shape) == 2 else "other"


def _fitted(image: Image.Image) -> Image.Image:
    scale = SIDE / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _row(folder: Path, place: Mapping[str, Any]) -> Floats:
    rows = np.load(folder / place["file"], mmap_mode="r", allow_pickle=False)
    row: Floats = rows[place["row"]]
    return row
