"""One self-contained HTML page of pictures."""

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray

_WIDE = 2  # pictures of a line that are shown where they are wide

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .2rem; }
h3 { font-size: .9rem; font-weight: 600; margin: .7rem 0 .2rem; }
p { margin: .2rem 0 .6rem; max-width: 60rem; }
.line { display: grid; grid-template-columns: repeat(10, minmax(4.5rem, 1fr)); gap: .5rem;
        overflow-x: auto; }
.large { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr));
         gap: .8rem; }
.large img { image-rendering: auto; }
code { display: block; font-size: .7rem; text-align: left; overflow-wrap: anywhere;
       opacity: .75; }
.wide { display: flex; flex-wrap: wrap; gap: 1rem; }
.wide figure { max-width: 34rem; }
.wide img { width: auto; max-width: 100%; max-height: 26rem; image-rendering: auto; }
figure { margin: 0; }
figcaption { font-size: .75rem; text-align: center; }
img { width: 100%; image-rendering: pixelated; border-radius: 3px; display: block; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; vertical-align: top; }
"""


@dataclass(frozen=True)
class Cell:
    """A PNG picture and the line under it, with the call that made it where that is told."""

    png: bytes
    caption: str
    call: str = ""

    @property
    def wide(self) -> bool:
        """Whether the picture holds more than one digit's width shows: curves, bars, many tiles."""
        width, height = struct.unpack(">II", self.png[16:24])  # of PNG's first chunk
        return bool(width > 500 or width > 2 * height or height > 2 * width)

    def html(self) -> str:
        """The picture as a figure."""
        data = base64.b64encode(self.png).decode()
        caption = escape(self.caption)
        call = f"<code>{escape(self.call)}</code>" if self.call else ""
        return (
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}{call}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Section:
    """A heading, a sentence, and lines of pictures.

    Args:
        title: the heading.
        text: the sentence.
        lines: what stands above each line, and its pictures.
        large: the pictures are shown large and without hard pixels, as photographs.
    """

    title: str
    text: str
    lines: dict[str, list[Cell]]
    large: bool = False

    @classmethod
    def originals(cls, images: NDArray[np.float32], captions: Sequence[str]) -> "Section":
        """The inputs as they are."""
        from interpret_pictures.canvas import png
        from interpret_pictures.images import image as drawn

        cells = [
            Cell(png(drawn(image, (0.0, 1.0))), caption)
            for image, caption in zip(images, captions, strict=True)
        ]
        return cls("originals", "Held-out digits; no network has seen them.", {"inputs": cells})

    def html(self) -> str:
        """The section as HTML."""
        lines = [_line(name, cells, self.large) for name, cells in self.lines.items()]
        return f"<h2>{escape(self.title)}</h2><p>{escape(self.text)}</p>{''.join(lines)}"


def _line(name: str, cells: Sequence[Cell], large: bool) -> str:
    if large:
        shown = "".join(cell.html() for cell in cells)
        return f'<h3>{escape(name)}</h3><div class="large">{shown}</div>'
    wide = any(cell.wide for cell in cells)
    shown = "".join(cell.html() for cell in (cells[:_WIDE] if wide else cells))
    more = f", the first {_WIDE} of {len(cells)}" if wide and len(cells) > _WIDE else ""
    kind = "wide" if wide else "line"
    return f'<h3>{escape(name + more)}</h3><div class="{kind}">{shown}</div>'


@dataclass
class Gallery:
    """The page: facts, a table, sections."""

    title: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def fact(self, name: str, value: str) -> None:
        """A line at the top."""
        self.facts.append((name, value))

    def row(self, plugin: str, difference: str, summary: str) -> None:
        """A line of the table of plugins."""
        self.rows.append((plugin, difference, summary))

    def add(self, section: Section) -> None:
        """A section of pictures."""
        self.sections.append(section)

    def html(self) -> str:
        """The whole page."""
        facts = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in self.facts
        )
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        plugins = "<tr><th>plugin</th><th>files differ by</th><th>what came out</th></tr>"
        table = f"<table>{plugins}{rows}</table>" if rows else ""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head>"
            f"<body><h1>{escape(self.title)}</h1>"
            f"<table>{facts}</table>{table}"
            f"{''.join(section.html() for section in self.sections)}</body></html>\n"
        )
