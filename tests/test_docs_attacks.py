"""The page about attacks agrees with the installed plugins."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest

from interpret_server.plugin import Capability, Kind, Plugin
from interpret_server.registry import Registry

PAGE = Path(__file__).parents[1] / "docs" / "attacks.md"
NEEDS = {
    "gradients": {Capability.GRADIENT, Capability.SCORES, Capability.BOUNDS},
    "scores": {Capability.SCORES, Capability.BOUNDS},
    "classes": {Capability.BOUNDS},
}
SHARED = {"targeted", "norm", "epsilon", "confirm_small_epsilon"}  # described above the tables


class Row(NamedTuple):
    paper: str
    formula: str
    parameters: dict[str, str]
    norms: str
    needs: str
    use: str


def rows() -> dict[str, Row]:
    """Name -> row of the tables of attacks."""
    found: dict[str, Row] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 6 or not (named := re.match(r"`(\w+)`<br>(.+)", cells[0])):
            continue
        assert named[1] not in found, f"{named[1]} has two rows"
        parameters = dict(re.findall(r"`(\w+)=([^`]*)`", cells[2]))
        found[named[1]] = Row(named[2], cells[1], parameters, *cells[3:])
    return found


def ours() -> list[Plugin[Any, Any]]:
    installed = (registration.plugin for registration in Registry.installed())
    return [plugin for plugin in installed if plugin.kind is Kind.ATTACK]


def shown(text: str) -> Any:
    """A default as the page has it: JSON, or a name."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def described_above(plugin: Plugin[Any, Any]) -> set[str]:
    """Parameters that the tables leave out, `loss` only where it has its usual default."""
    loss = plugin.params_type.model_fields.get("loss")
    return SHARED | ({"loss"} if loss is not None and loss.default == "cross_entropy" else set())


@pytest.mark.parametrize("plugin", ours(), ids=lambda plugin: plugin.name)
def test_every_attack_has_a_row_that_agrees_with_its_plugin(plugin: Plugin[Any, Any]) -> None:
    row = rows()[plugin.name]
    assert row.paper
    assert row.formula
    assert row.use
    assert plugin.requires == NEEDS[row.needs]
    defaults = json.loads(plugin.params_type().model_dump_json())
    assert set(row.parameters) == set(defaults) - described_above(plugin)
    for name, text in row.parameters.items():
        expected = "all" if isinstance(defaults[name], list) else defaults[name]
        assert shown(text) == expected, name


@pytest.mark.parametrize("plugin", ours(), ids=lambda plugin: plugin.name)
def test_the_norms_are_those_of_the_plugin(plugin: Plugin[Any, Any]) -> None:
    row, field = rows()[plugin.name], plugin.params_type.model_fields.get("norm")
    named = re.findall(r"`(\w+)`", row.norms)
    assert row.norms
    assert ("box" in row.norms) == ("lower" in plugin.tensors)
    if field is None:
        assert not named
    else:
        assert set(named) == set(get_args(field.annotation))
        assert named[0] == field.default


def test_no_row_is_about_an_attack_that_is_not_installed() -> None:
    assert set(rows()) == {plugin.name for plugin in ours()}


def test_every_corruption_is_named() -> None:
    text = PAGE.read_text(encoding="utf-8")
    (plugin,) = [plugin for plugin in ours() if plugin.name == "corruptions"]
    assert all(f"`{name}`" in text for name in plugin.params_type().corruptions)


def test_the_versions_of_auto_attack_run_what_the_page_says() -> None:
    from interpret_plugins.attacks.auto_attack import AutoAttackParams, Version, stages

    text = PAGE.read_text(encoding="utf-8")
    for version in get_args(Version):
        (line,) = re.findall(rf"^\| `{version}` \|(.*)\|$", text, re.MULTILINE)
        named = tuple(re.findall(r"`(\w+)`", line))
        assert named == stages(AutoAttackParams(version=version))
