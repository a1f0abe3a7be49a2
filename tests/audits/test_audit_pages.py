"""Pages of reports: a true one holds, and whatever is changed in one is named."""

import base64
import io
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin
from report_findings import make, write_files

from interpret_server.audits import pages
from interpret_server.audits.pages import judge_page
from interpret_server.audits.report import bundle, html, plots

_SOURCE = re.compile(r'src="data:image/png;base64,([^"]*)"')


@pytest.fixture(autouse=True, scope="module")
def _curves() -> Iterator[None]:
    """Equal curves are drawn once, as they take longer than all the rest."""
    drawn: dict[str, str] = {}
    draw = plots.robustness_curve

    def once(threats: Any, norm: str, *, label: str) -> str:
        key = repr((threats, norm, label))
        drawn[key] = drawn.get(key) or draw(threats, norm, label=label)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "robustness_curve", once)
        yield


@pytest.fixture(scope="module")
def true(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    bundle.write(make(), write_files(make(), folder / "audit"), folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def copied(true: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return Path(shutil.copytree(true, tmp_path / "bundle"))


def change(folder: Path, edit: Callable[[str], str]) -> None:
    path = folder / "report.html"
    before = path.read_text()
    path.write_text(edit(before))
    assert path.read_text() != before


def drawn_by(folder: Path, **versions: str) -> None:
    """Say that other software drew the page."""
    document = json.loads((folder / "report.json").read_bytes())
    document["run"]["page"] |= versions
    (folder / "report.json").write_text(json.dumps(document))


def judged(folder: Path) -> tuple[list[str], list[str]]:
    complaints, notes = judge_page(bundle.read(folder))
    return list(map(str, complaints)), notes


def test_a_true_page_holds_and_says_what_drew_it(true: Path):
    assert judged(true) == ([], [])
    document = json.loads((true / "report.json").read_bytes())
    assert document["run"]["page"] == html.drawn_with()
    assert html.drawn_with().keys() == {*pages._TEXT_BY, *pages._PLOTS_BY, *pages._PICTURES_BY}


def test_a_changed_figure_is_named(copied: Path):
    figure = re.search(r"robust, L∞ [^<]*<b>([\d.]+%)</b>", (copied / "report.html").read_text())
    assert figure is not None
    told = figure[0].replace(figure[1], "99.0%")
    change(copied, lambda page: page.replace(figure[0], told))
    (complaint,), notes = judged(copied)
    assert re.match(r"report\.html has '.*99\.0%.*', and comes to '.*'", complaint)
    assert figure[1] in complaint
    assert notes == []


def test_every_changed_line_is_named_up_to_twenty(copied: Path):
    change(copied, lambda page: page.replace("</", " </"))
    complaints, _ = judged(copied)
    assert len(complaints) == 22, "and the curve"
    assert re.fullmatch(r"report\.html \d+ more lines differ", complaints[20])


@pytest.mark.parametrize("added", ["<p>Certified.</p>\n", '<svg class="plot">\n'])
def test_an_added_line_is_named(copied: Path, added: str):
    change(copied, lambda page: page.replace("<section>\n", f"<section>\n{added}", 1))
    complaints, _ = judged(copied)
    assert complaints[0].startswith("report.html has ")
    assert added.strip()[:12] in complaints[0]


def test_a_changed_curve_is_named(copied: Path):
    change(copied, lambda page: page.replace("</svg>", '<path d="M0 0"/></svg>', 1))
    assert judged(copied) == (["report.html has a curve in L∞ that is not that of the figures"], [])


def test_pictures_that_change_places_are_named(copied: Path):
    page = (copied / "report.html").read_text()
    first, second = _SOURCE.findall(page)[:2]
    change(copied, lambda page: page.replace(second, first, 1))
    (complaint,), _ = judged(copied)
    fragile = json.loads((copied / "report.json").read_bytes())["threats"][0]["fragile"][0]
    place = f"sample {fragile['row']}, {fragile['stage']}"
    assert complaint == f"{place}: its picture in report.html (changed) does not show its values"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def saved(image: Image.Image, **options: object) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return encoded(file.getvalue())


def test_a_picture_may_be_compressed_otherwise_and_nothing_else(copied: Path):
    original = _SOURCE.findall((copied / "report.html").read_text())[0]
    data = base64.b64decode(original)
    image = Image.open(io.BytesIO(data))
    other = saved(image, compress_level=0)
    assert other != original
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", (22222).to_bytes(4, "big"))
    darker = saved(image, pnginfo=info)
    longer = saved(image.resize((image.width, image.height + 1)))
    broken = encoded(data[:-20] + bytes(4) + data[-16:])
    change(copied, lambda page: page.replace(original, other, 1))
    assert judged(copied) == ([], [])
    for wrong in (darker, longer, broken, encoded(data[:-30]), encoded(b"GIF89a"), "?", ""):
        change(
            copied,
            lambda page, wrong=wrong: _SOURCE.sub(
                f'src="data:image/png;base64,{wrong}"', page, count=1
            ),
        )
        assert "(as it is) does not show its values" in judged(copied)[0][0]


def test_a_picture_that_inflates_without_end_is_not_inflated(true: Path):
    data = base64.b64decode(_SOURCE.findall((true / "report.html").read_text())[0])
    start = data.index(b"IDAT") - 4
    body = b"IDAT" + zlib.compress(bytes(50_000_000))
    bomb = data[:start] + (len(body) - 4).to_bytes(4, "big") + body
    bomb += zlib.crc32(body).to_bytes(4, "big")
    with pytest.raises(ValueError, match=r"^$"):
        list(pages._chunks(bomb, 1000))


@pytest.mark.parametrize(
    ("software", "edit", "part"),
    [
        ("jinja2", lambda page: page.replace("<h2>", "<h3>", 1), "text"),
        ("freetype", lambda page: page.replace("</svg>", " </svg>", 1), "plots"),
        (
            "pillow",
            lambda page: _SOURCE.sub('src="data:image/png;base64,"', page, count=1),
            "pictures",
        ),
    ],
)
def test_what_other_software_drew_is_not_called_tampered_with(
    copied: Path, software: str, edit: Callable[[str], str], part: str
):
    drawn_by(copied, **{software: "0.9"})
    assert judged(copied) == ([], []), "equal is equal, whoever drew it"
    change(copied, edit)
    now = html.drawn_with()[software]
    reason = f"it was drawn with {software} 0.9, here {now}"
    assert judged(copied) == ([], [f"report.html: its {part} could not be compared: {reason}"])
    other = "jinja2" if software != "jinja2" else "pillow"
    drawn_by(copied, **{software: now, other: "0.9"})
    complaints, notes = judged(copied)
    assert (len(complaints), notes) == (1, [])


def test_a_report_that_does_not_say_what_drew_its_page_cannot_be_compared(copied: Path):
    document = json.loads((copied / "report.json").read_bytes())
    del document["run"]["page"]
    (copied / "report.json").write_text(json.dumps(document))
    change(copied, lambda page: page.replace("<h2>", "<h3>", 1))
    complaints, notes = judged(copied)
    assert complaints == []
    assert "its text could not be compared: report.json does not say what drew it" in notes[0]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_page_that_is_missing_or_no_text_is_named(copied: Path, content: bytes | None):
    (copied / "report.html").unlink()
    if content is not None:
        (copied / "report.html").write_bytes(content)
    assert judged(copied) == (["report.html is missing, or no text"], [])


@pytest.mark.parametrize("run", [{"finished": 1e300}, {"stages": []}, {"seconds": "many"}])
def test_times_that_are_none_are_named(copied: Path, run: dict[str, object]):
    document = json.loads((copied / "report.json").read_bytes())
    document["run"] |= run
    (copied / "report.json").write_text(json.dumps(document))
    (complaint,), _ = judged(copied)
    assert complaint.startswith("report.html cannot be drawn from report.json (")
