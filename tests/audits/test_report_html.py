"""The page of a report: what it shows, that it needs nothing else, and that names do no harm."""

import dataclasses
import io
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from PIL import Image
from report_findings import ORIGIN, SPEC, input_of, make, write_files

from interpret_server.audits.report import document as documents
from interpret_server.audits.report import html, pictures
from interpret_server.audits.report.pictures import Painter

VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """Elements, text and addresses of a page; every element must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "data")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[str, dict]:
    folder = tmp_path_factory.mktemp("audit")
    write_files(make(), folder)
    document = documents.build(make())
    return html.render(document, pictures.draw(document, folder)), document


def test_the_verdict_comes_first_then_warnings_then_figures(shown):
    text, document = shown
    page = Page(text)
    places = [
        page.text.index(words)
        for words in (
            document["verdict"],
            "Findings and warnings",
            "Gradients vanish.",
            "Changes measured in L∞",
            "What each attack contributed",
            "Most fragile samples",
            "Classes",
            "Provenance",
            "interpret audit replay FOLDER",
        )
    ]
    assert places == sorted(places)
    assert page.text.index(document["verdict"]) < page.text.index("clean accuracy")
    assert "SHA-256 " + "ab" * 32 in re.sub(r"\s+", " ", page.text)


def test_the_page_needs_nothing_else(shown):
    page = Page(shown[0])
    assert "script" not in page.tags
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not re.findall(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", shown[0])


def test_the_page_is_the_same_whenever_made(shown, tmp_path):
    write_files(make(), tmp_path)
    document = documents.build(make())
    assert html.render(document, pictures.draw(document, tmp_path)) == shown[0]


def test_the_page_is_the_same_whatever_the_users_plots_look_like(shown, tmp_path):
    write_files(make(), tmp_path)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.family": "serif", "axes.grid": True}):
        text = html.render(shown[1], pictures.draw(shown[1], tmp_path))
        assert matplotlib.rcParams["lines.linewidth"] == 9
    assert text == shown[0]


def test_seven_fragile_samples_have_three_pictures_each(shown):
    assert shown[0].count('src="data:image/png;base64,') == 7 * 3
    assert "cat → dog" in Page(shown[0]).text


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=//evil onerror=alert(1)>',
    "{{ 7 * 7 }} $x$ \u202e\x07 " + "long" * 50,
)


def test_names_do_no_harm(tmp_path):
    origin = dataclasses.replace(
        ORIGIN, labels=HOSTILE, model="</svg><b>$a_1", data="<u>", manifest='{"a": "</pre><b>"}'
    )
    spec = SPEC.model_copy(update={"title": "</title><script>x</script>"})
    findings = make(origin=origin, spec=spec)
    write_files(findings, tmp_path)
    document = documents.build(findings)
    text = html.render(document, pictures.draw(document, tmp_path))
    page = Page(text)
    assert not {"script", "u"} & set(page.tags)
    assert "onerror" not in " ".join(re.findall(r"<img[^>]*>", text))
    assert "<script>alert(1)</script> →" in page.text
    assert "{{ 7 * 7 }} $x$" in page.text
    assert "\u202e" not in html.class_name(2, list(HOSTILE))
    assert len(html.class_name(2, list(HOSTILE))) < 70
    assert page.tags.count("svg") == 1
    assert page.tags.count("title") == 1


def test_classes_without_names_have_numbers():
    assert html.class_name(4, ["a"]) == "class 4"
    assert html.class_name(-1, ["a"]) == "class -1"


def test_an_audit_that_ended_early_says_so():
    page = Page(html.render(documents.build(make(planned=40)), {}))
    assert "The budget ended the audit with 30 samples of 40 untried." in page.text


def test_a_clean_bill_is_given_only_without_warnings():
    attacks = {"linf:0.1:pgd": {0: 0.1, 1: 0.1, 2: None}}
    findings = make([0, 1, 2], [0, 1, 2], attacks, claims=frozenset())
    plan = findings.audit.plan.model_copy(update={"notes": ()})
    audit = dataclasses.replace(findings.audit, plan=plan)
    good = documents.build(dataclasses.replace(findings, audit=audit, units=[]))
    assert "No sign of masked gradients." in Page(html.render(good, {})).text
    told = documents.build(dataclasses.replace(findings, audit=audit))
    assert "No sign of masked gradients." not in Page(html.render(told, {})).text


def test_corruptions_are_a_map(tmp_path):
    attacks = {
        "corruption:fog:1": {0: None, 1: None, 2: 0.5},
        "corruption:motion_blur:2": {0: 0.5, 1: None, 2: 0.5},
    }
    findings = make([0, 1, 2], [0, 1, 2], attacks, claims=frozenset())
    write_files(findings, tmp_path)
    document = documents.build(findings)
    page = Page(html.render(document, pictures.draw(document, tmp_path)))
    assert "motion blur" in page.text
    assert "broken by 2 corruptions" in page.text
    assert "svg" not in page.tags


def test_nothing_finished_is_a_page_too():
    attacks = {"linf:0.1:pgd": {}, "minimal:linf:fab": {}}
    page = Page(html.render(documents.build(make([], [], attacks, planned=8)), {}))
    assert "nothing can be said" in page.text


def test_of_many_classes_the_weakest_are_shown():
    labels = list(range(60))
    attacks = {"linf:0.3:pgd": {row: 0.3 if row == 50 else None for row in range(60)}}
    document = documents.build(make(labels, labels, attacks, claims=frozenset()))
    text = Page(html.render(document, {})).text
    assert "The 40 weakest of 60 classes" in text
    assert "class 50" in text
    assert "class 59" not in text


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_pictures_show_the_very_values():
    before = input_of(3)
    after = np.clip(before + np.float32(0.25), 0, 1)
    change = Painter("CHW", (0.0, 1.0)).change(before, after)
    np.testing.assert_array_equal(pixels(change.original)[..., 0], np.round(before[0] * 255))
    np.testing.assert_array_equal(pixels(change.adversarial)[..., 0], np.round(after[0] * 255))
    assert change.magnified == pytest.approx(2)
    assert pixels(change.difference).max() == 255
    assert (change.image, change.pixels) == (True, True)


def test_an_unchanged_sample_is_grey():
    row = input_of(0)
    change = Painter("CHW", (0.0, 1.0)).change(row, row)
    assert set(pixels(change.difference).ravel()) == {128}


def test_large_images_are_made_smaller():
    row = np.random.default_rng(0).random((3, 500, 250), np.float32)
    change = Painter("CHW", (0.0, 1.0)).change(row, row * 0.5)
    assert pixels(change.original).shape == (192, 96, 3)
    assert not change.pixels


@pytest.mark.parametrize(
    ("manifest", "shape", "layout"),
    [
        ("{}", [3, 8, 8], "CHW"),
        ("{}", [8, 8, 1], "HWC"),
        ("{}", [2, 90], "CL"),
        ("{}", [5], "other"),
        ('{"layout": "HWC"}', [3, 8, 3], "HWC"),
        ("no manifest", [3, 8, 8], "CHW"),
    ],
)
def test_the_layout_is_the_manifests_or_that_of_the_shape(manifest, shape, layout):
    origin = {"manifest": manifest, "input_shape": shape, "bounds": [0, 1]}
    assert Painter.of(origin).layout == layout


def test_blue_comes_first_where_the_manifest_says_so():
    origin = {"manifest": '{"color": "BGR"}', "input_shape": [3, 4, 4], "bounds": [0, 255]}
    row = np.zeros((3, 4, 4), np.float32)
    row[0] = 255
    change = Painter.of(origin).change(row, row)
    np.testing.assert_array_equal(pixels(change.original)[0, 0], [0, 0, 255])


@pytest.mark.parametrize("shape", [(4,), (60,), (1, 90), (3, 90)])
def test_vectors_and_signals_are_bars_and_curves(shape):
    row = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    painter = Painter("CL" if len(shape) == 2 else "other", (-1.0, 1.0), tuple("abcd"))
    change = painter.change(row, row + np.float32(0.1))
    assert not change.image
    assert pixels(change.original).std() > 0
    assert change.original != change.adversarial
