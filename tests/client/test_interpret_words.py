"""What the words of the `interpret` command mean, without a server."""

from pathlib import Path

import numpy as np
import pytest

from interpret_client.cli._arguments import merge_manifest, parse_targets, parse_value
from interpret_client.cli._output import pairs, table
from interpret_client.cli.plugins import parameter_rows


def test_parameter_types_in_words() -> None:
    schema = {
        "properties": {
            "sizes": {"type": "array", "items": {"type": "integer"}},
            "any": {},
            "kind": {"const": "tv"},
            "many": {"type": "array"},
            "one": {"oneOf": [{"type": "number", "maximum": 1}, {"$ref": "#/$defs/Missing"}]},
        }
    }
    types = {row[0]: row[1] for row in parameter_rows(schema)}
    assert types == {
        "sizes": "list of integer",
        "any": "any",
        "kind": "tv",
        "many": "list",
        "one": "number <= 1 | Missing",
    }


def test_flags_change_the_first_listed_input() -> None:
    manifest = {"inputs": [{"name": "x", "shape": [1]}, {"name": "y"}]}
    merged = merge_manifest(manifest, {"shape": [2]})
    assert merged == {"inputs": [{"name": "x", "shape": [2]}, {"name": "y"}]}
    assert manifest["inputs"][0]["shape"] == [1]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], None),
        (["3"], 3),
        (["3,5"], [3, 5]),
        (["3", "5,6"], [3, 5, 6]),
        (["layer:features.3"], {"layer": "features.3"}),
        (["layer:/a/Relu_1"], {"layer": "/a/Relu_1"}),
        (["layer:/a/Relu/channel:17"], {"layer": "/a/Relu", "channel": 17}),
        (["layer:a/neuron:1,2,3"], {"layer": "a", "neuron": [1, 2, 3]}),
        (["layer:a", "layer:b"], [{"layer": "a"}, {"layer": "b"}]),
    ],
)
def test_targets_in_words(texts: list[str], expected: object) -> None:
    assert parse_targets(texts) == expected


def test_direction_is_read_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.arange(3))
    target = parse_targets([f"layer:a/direction:{tmp_path / 'd.npy'}"])
    assert target["layer"] == "a"
    assert target["direction"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ('"3"', "3"),
        ("linf", "linf"),
        ("8/255", 8 / 255),
        ("-1/2", -0.5),
        ("[1, 2]", [1, 2]),
    ],
)
def test_parameter_values_in_words(text: str, expected: object) -> None:
    assert parse_value(text) == expected


def test_names_of_a_strangers_file_do_not_command_the_terminal() -> None:
    from rich.console import Console

    out = Console(width=80)
    with out.capture() as captured:
        out.print(table(("layer",), [("\x1b[2J\x07\u202ename\nof two lines",)]))
        out.print(pairs([("labels", "\x9bcat é")]))
    text = captured.get()
    assert "\ufffd[2J\ufffd\ufffdname" in text
    assert "\ufffdcat é" in text
    assert not any("\x1b" in line or "\x9b" in line for line in text.replace("\x1b[1m", "").split())
