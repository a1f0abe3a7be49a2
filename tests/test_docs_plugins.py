"""The pages about attribution, metrics, internals and synthesis agree with the plugins."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from interpret_server.plugin import Capability, Inputs, Kind, Plugin
from interpret_server.registry import Registry

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    Kind.ATTRIBUTION: ("attribution.md", "internals.md"),
    Kind.INTERNALS: ("internals.md",),
    Kind.METRIC: ("metrics.md",),
    Kind.SYNTHESIS: ("synthesis.md",),
    Kind.PRIOR: ("synthesis.md",),
}
NEEDS = {
    "gradients": Capability.GRADIENT,
    "layers": Capability.LAYERS,
    "rectifiers": Capability.RECTIFIERS,
    "scores": Capability.SCORES,
    "deterministic": Capability.DETERMINISTIC,
}
IN_PROSE = {"compare"}  # described below the table of metrics
PRESETS = {"class_visualization"}  # null parameters are settings of a preset, in a table of theirs
MADE = {Kind.SYNTHESIS, Kind.PRIOR}  # whose rows say whether inputs are needed
MOST_BYTES = 1_500_000


class Row(NamedTuple):
    paper: str
    formula: str
    parameters: dict[str, str]
    needs: frozenset[Capability]
    inputs: bool
    use: str


def rows() -> dict[str, Row]:
    """Name -> row of the tables of methods and metrics, on all pages."""
    found: dict[str, Row] = {}
    for page in sorted({page for pages in PAGES.values() for page in pages}):
        for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) != 5 or not (named := re.match(r"`(\w+)`<br>(.+)", cells[0])):
                continue
            assert named[1] not in found, f"{named[1]} has two rows"
            found[named[1]] = Row(
                named[2],
                cells[1],
                dict(re.findall(r"`(\w+)=([^`]*)`", cells[2])),
                frozenset(NEEDS[word] for word in re.findall(r"\w+", cells[3]) if word != "inputs"),
                "inputs" in cells[3],
                cells[4],
            )
    return found


def ours() -> list[Plugin[Any, Any]]:
    return [
        registration.plugin
        for registration in Registry.installed()
        if registration.plugin.kind in PAGES and registration.plugin.name not in IN_PROSE
    ]


def shown(text: str) -> Any:
    """A default as the page has it: JSON, or a name."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def of_method(default: Any) -> Any:
    """Second plugins are shown by their names."""
    if isinstance(default, list):
        return [of_method(item) for item in default]
    return default["plugin"] if isinstance(default, dict) and "plugin" in default else default


@pytest.mark.parametrize("plugin", ours(), ids=lambda plugin: plugin.name)
def test_every_method_has_a_row_that_agrees_with_its_plugin(plugin: Plugin[Any, Any]) -> None:
    row = rows()[plugin.name]
    assert row.paper
    assert row.formula
    assert row.use
    assert row.needs == plugin.requires
    assert row.inputs == (plugin.kind in MADE and plugin.inputs is Inputs.REQUIRED)
    dumped = json.loads(plugin.params_type().model_dump_json())
    defaults = {name: of_method(value) for name, value in dumped.items()}
    shared = {"method"} if plugin.kind is Kind.METRIC else set()
    if plugin.name in PRESETS:
        shared = {name for name, value in defaults.items() if value is None}
    assert set(row.parameters) == set(defaults) - shared
    for name, text in row.parameters.items():
        value = defaults[name]
        wanted = pytest.approx(value, rel=1e-3) if isinstance(value, float) else value
        assert shown(text) == wanted, name


def test_no_row_is_about_a_method_that_is_not_installed() -> None:
    assert set(rows()) == {plugin.name for plugin in ours()}


@pytest.mark.parametrize(
    "plugin",
    [plugin for plugin in ours() if plugin.kind is not Kind.PRIOR],
    ids=lambda plugin: plugin.name,
)
def test_every_method_has_a_picture(plugin: Plugin[Any, Any]) -> None:
    pages = "".join((DOCS / page).read_text(encoding="utf-8") for page in PAGES[plugin.kind])
    assert re.search(rf"\]\(pictures/{plugin.name}\.(jpg|png)\)", pages)


def test_pictures_are_small_and_every_one_is_shown() -> None:
    pictures = sorted((DOCS / "pictures").iterdir())
    assert sum(picture.stat().st_size for picture in pictures) < MOST_BYTES
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    for picture in pictures:
        assert f"](pictures/{picture.name})" in pages, f"{picture.name} is shown nowhere"
