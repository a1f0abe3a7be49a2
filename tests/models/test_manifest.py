"""Manifests from JSON and TOML, and the errors that name their fields."""

import json
import subprocess
import sys

import pytest

from interpret_server.errors import InvalidRequest
from interpret_server.models.manifest import (
    Format,
    Manifest,
    OutputKind,
    manifest_from_json,
    manifest_from_toml,
)

TOML = """
format = "onnx"
labels = ["cat", "dog"]
max_batch = 8

[output]
kind = "probabilities"

[[inputs]]
shape = [3, 32, 32]
bounds = [0, 255]
mean = [104, 117, 123]
std = 58
color = "BGR"
resize = 36
crop = [32, 32]
"""


def test_a_toml_manifest_is_read_whole() -> None:
    manifest = manifest_from_toml(TOML)
    assert manifest.format is Format.ONNX
    assert manifest.labels == ("cat", "dog")
    assert manifest.max_batch == 8
    assert manifest.output.kind is OutputKind.PROBABILITIES
    assert manifest.input.shape == (3, 32, 32)
    assert manifest.input.bounds == (0.0, 255.0)
    assert manifest.input.mean == (104.0, 117.0, 123.0)
    assert manifest.input.std == 58.0
    assert manifest.input.resize == 36
    assert manifest.input.crop == (32, 32)


def test_json_round_trips() -> None:
    manifest = manifest_from_toml(TOML)
    assert manifest_from_json(manifest.model_dump_json()) == manifest


def test_a_sole_inputs_fields_may_stand_at_the_top_level() -> None:
    short = manifest_from_json('{"shape": [1, 28, 28], "bounds": [0, 1], "labels": ["a", "b"]}')
    long = manifest_from_json(
        '{"inputs": [{"shape": [1, 28, 28], "bounds": [0, 1]}], "labels": ["a", "b"]}'
    )
    assert short == long


@pytest.mark.parametrize("text", ["", "  \n", "{}"])
def test_nothing_is_an_empty_manifest(text: str) -> None:
    assert manifest_from_json(text) == Manifest()
    assert manifest_from_json(text).input.shape is None


@pytest.mark.parametrize(
    ("fields", "path", "sentence"),
    [
        ({"bounds": [1, 0]}, "manifest.inputs[0].bounds", "lower bound must be below"),
        ({"bounds": [0]}, "manifest.inputs[0].bounds", "required"),
        ({"shape": [3, 0]}, "manifest.inputs[0].shape", "sizes must be positive"),
        ({"shape": "3"}, "manifest.inputs[0].shape", "should be a valid tuple"),
        ({"std": [1, 0, 1]}, "manifest.inputs[0].std", "must be positive"),
        ({"std": 0}, "manifest.inputs[0].std", "must be positive"),
        ({"mean": "grey"}, "manifest.inputs[0].mean", "should be a valid"),
        ({"inputs": [{}, {"color": "CMYK"}]}, "manifest.inputs[1].color", "'RGB', 'BGR' or 'GRAY'"),
        ({"output": {"kind": "scores"}}, "manifest.output.kind", "'logits', 'probabilities'"),
        ({"output": {"index": -1}}, "manifest.output.index", "greater than or equal to 0"),
        ({"max_batch": 0}, "manifest.max_batch", "greater than or equal to 1"),
        ({"labels": []}, "manifest", "labels: give at least one name"),
        ({"classes": 10}, "manifest.classes", "no such field"),
        ({"inputs": [{"size": 3}]}, "manifest.inputs[0].size", "no such field"),
        ({"bounds": [0, 1], "inputs": [{"shape": [3]}]}, "manifest", "belong inside inputs"),
        ({"format": "keras"}, "manifest.format", "'torchscript', 'onnx' or 'exported_program'"),
        ({"bounds": [0, float("inf")]}, "manifest.inputs[0].bounds", "finite"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, object], path: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        manifest_from_json(json.dumps(fields))
    (violation,) = caught.value.violations
    assert violation.field == path
    assert sentence in violation.description
    assert path in caught.value.message
    assert "pydantic" not in caught.value.message


def test_every_wrong_field_has_its_violation() -> None:
    with pytest.raises(InvalidRequest) as caught:
        manifest_from_json('{"max_batch": 0, "version": 3, "bounds": [2, 1]}')
    assert {violation.field for violation in caught.value.violations} == {
        "manifest.max_batch",
        "manifest.version",
        "manifest.inputs[0].bounds",
    }


@pytest.mark.parametrize(
    ("read", "text", "sentence"),
    [
        (manifest_from_json, "{", "not JSON"),
        (manifest_from_json, "[1]", "a table of fields is needed"),
        (manifest_from_json, "[" * 100_000, "not JSON"),
        (manifest_from_toml, "bounds = [0,", "not TOML"),
        (manifest_from_toml, "bounds = [1, 0]", "manifest.inputs[0].bounds"),
    ],
)
def test_a_text_that_is_no_manifest_is_refused(read: object, text: str, sentence: str) -> None:
    assert callable(read)
    with pytest.raises(InvalidRequest) as caught:
        read(text)
    assert sentence in caught.value.message


def test_manifests_and_repositories_import_no_torch() -> None:
    script = (
        "import sys, interpret_server.models.manifest, interpret_server.models.repository, "
        "interpret_server.models.formats; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
