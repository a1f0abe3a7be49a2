"""Whether a report's page is the one that its figures and samples make.

The page is drawn again and compared part by part. Its text depends on other software than its
plots and its pictures do: a part that differs was tampered with if it was drawn by what draws it
here, and otherwise nothing can be said of it.
"""

import base64
import binascii
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from .claims import Complaint
from .report import bundle
from .report.html import drawn_with
from .report.pictures import fragile_samples
from .report.words import NORMS

_PLOT = '<svg class="plot"', "</svg>"
_PICTURE = 'src="data:image/png;base64,', '"'
_TEXT_BY = ("interpret-server", "jinja2")
_PLOTS_BY = ("interpret-server", "matplotlib", "freetype", "machine")
_PICTURES_BY = ("interpret-server", "pillow", "numpy", "machine")
_SHOWN = ("as it is", "changed", "the change")  # the pictures of a sample
_MOST = 20  # lines that are told
_AROUND = 30  # letters that are told before and after a difference
_PNG = b"\x89PNG\r\n\x1a\n"


class _Page(NamedTuple):
    text: str
    plots: list[str]
    pictures: list[str]

    @classmethod
    def of(cls, page: str) -> "_Page":
        text, plots = _cut(page, *_PLOT)
        text, pictures = _cut(text, *_PICTURE)
        return cls(text, plots, pictures)


def judge_page(told: bundle.Report) -> tuple[list[Complaint], list[str]]:
    """What of a page is not what its report makes.

    Args:
        told: a report whose document and files hold.

    Returns:
        What was tampered with, and what could not be compared.
    """
    from jinja2 import TemplateError

    try:
        page = (told.folder / bundle.HTML).read_bytes().decode()
    except (OSError, ValueError):
        return [_complaint("is missing, or no text")], []
    try:
        ours = bundle.page(told.document, told.folder)
    except (ArithmeticError, LookupError, OSError, TemplateError, TypeError, ValueError) as error:
        return [_complaint(f"cannot be drawn from {bundle.JSON} ({type(error).__name__})")], []
    if page == ours:
        return [], []
    one, other = _Page.of(page), _Page.of(ours)
    complaints: list[Complaint] = []
    notes: list[str] = []
    for what, needs, found in (
        ("text", _TEXT_BY, list(_lines(one.text, other.text))),
        ("plots", _PLOTS_BY, list(_plots(one, other, told))),
        ("pictures", _PICTURES_BY, list(_pictures(one, other, told))),
    ):
        changed = found and _changed(told.document["run"].get("page"), needs)
        if changed:
            notes.append(f"{bundle.HTML}: its {what} could not be compared: {changed}")
        else:
            complaints += found
    return complaints, notes


def _lines(told: str, found: str) -> Iterator[Complaint]:
    ours, theirs = found.split("\n"), told.split("\n")
    differ = [place for place, (x, y) in enumerate(zip(theirs, ours, strict=False)) if x != y]
    if len(ours) != len(theirs):
        place = differ[0] if differ else min(len(ours), len(theirs))
        first = "".join(theirs[place : place + 1])[: 2 * _AROUND]
        yield _complaint(
            f"has {len(theirs)} lines of text, and comes to {len(ours)}; the first that differs "
            f"is {first!r}"
        )
        return
    for place in differ[:_MOST]:
        one, other = _around(theirs[place], ours[place])
        yield _complaint(f"has {one!r}, and comes to {other!r}")
    if len(differ) > _MOST:
        yield _complaint(f"{len(differ) - _MOST} more lines differ")


def _plots(told: _Page, found: _Page, report: bundle.Report) -> Iterator[Complaint]:
    norms = [threat["norm"] for threat in report.document["threats"]]
    for norm, one, other in zip(norms, told.plots, found.plots, strict=False):
        if one != other:
            yield _complaint(f"has a curve in {NORMS[norm]} that is not that of the figures")


def _pictures(told: _Page, found: _Page, report: bundle.Report) -> Iterator[Complaint]:
    samples = [
        (item["row"], item["stage"], shown)
        for item in fragile_samples(report.document)
        for shown in _SHOWN
    ]
    pairs = zip(samples, told.pictures, found.pictures, strict=False)
    for (row, stage, shown), one, other in pairs:
        if one != other and not _same_pixels(one, other):
            problem = f"its picture in {bundle.HTML} ({shown}) does not show its values"
            yield Complaint(row, stage, problem)


def _cut(page: str, start: str, end: str) -> tuple[str, list[str]]:
    """A page without what lies between marks, and what lies there."""
    head, *pieces = page.split(start)
    kept, found = [head], []
    for piece in pieces:
        inner, mark, after = piece.partition(end)
        found.append(inner)
        kept += [start, mark, after]
    return "".join(kept), found


def _changed(before: object, names: Sequence[str]) -> str:
    """What of the software that draws a part is not what drew it."""
    if not isinstance(before, Mapping):
        return f"{bundle.JSON} does not say what drew it"
    now = drawn_with()
    differ = [
        f"{name} {str(before.get(name))[:40]}, here {now[name]}"
        for name in names
        if before.get(name) != now[name]
    ]
    return f"it was drawn with {'; '.join(differ)}" if differ else ""


def _around(one: str, other: str) -> tuple[str, str]:
    """Where two texts first differ."""
    pairs = enumerate(zip(one, other, strict=False))
    first = next((place for place, (x, y) in pairs if x != y), min(len(one), len(other)))
    part = slice(max(0, first - _AROUND), first + _AROUND)
    return one[part], other[part]


def _same_pixels(told: str, found: str) -> bool:
    """Whether two PNG files differ in their compression alone, which is another elsewhere."""
    ours = list(_chunks(base64.b64decode(found)))
    most = max(len(data) for _, data in ours) + 1
    try:
        return list(_chunks(base64.b64decode(told, validate=True), most)) == ours
    except (binascii.Error, struct.error, zlib.error, ValueError):
        return False


def _chunks(png: bytes, most: int = 1 << 30) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG file by kind, the pixels as one and inflated, to `most` bytes.

    Raises:
        ValueError, struct.error, zlib.error: it is no whole PNG file.
    """
    if not png.startswith(_PNG):
        raise ValueError
    place, pixels = len(_PNG), []
    while place < len(png):
        size, kind = struct.unpack_from(">I4s", png, place)
        data = png[place + 8 : place + 8 + size]
        (check,) = struct.unpack_from(">I", png, place + 8 + size)
        if check != zlib.crc32(kind + data):
            raise ValueError
        place += 12 + size
        if kind == b"IDAT":
            pixels.append(data)
        else:
            yield kind, data
    stream = zlib.decompressobj()
    inflated = stream.decompress(b"".join(pixels), most)
    if not stream.eof or stream.unused_data:
        raise ValueError
    yield b"IDAT", inflated


def _complaint(problem: str) -> Complaint:
    return Complaint(None, "", f"{bundle.HTML} {problem}")
