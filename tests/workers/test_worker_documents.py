"""Descriptions of models and plugins, and manifests, survive the way to another process."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from worker_values import MANIFEST, MODEL, PLUGIN, damaged

from interpret_server.engine.api import ModelInfo
from interpret_server.engine.describe import describe_plugin
from interpret_server.engine.workers.documents import (
    manifest_from_json,
    manifest_to_json,
    model_from_json,
    model_to_json,
    plugins_from_json,
    plugins_to_json,
)
from interpret_server.engine.workers.errors import ProtocolError
from interpret_server.errors import InvalidRequest
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.registry import Registry


def test_a_model_survives() -> None:
    decoded = model_from_json(model_to_json(MODEL))
    assert repr(decoded.verification) == repr(MODEL.verification)  # nan is not equal to itself
    same = dataclasses.replace(decoded, verification=MODEL.verification)
    assert same == MODEL
    assert isinstance(same.capabilities, frozenset)
    assert same.manifest.model_fields_set == MANIFEST.model_fields_set


def test_plugins_survive() -> None:
    other = dataclasses.replace(PLUGIN, name="fgsm", schema={}, requires=frozenset())
    decoded = plugins_from_json(plugins_to_json((PLUGIN, other)))
    assert decoded == (PLUGIN, other)
    assert type(decoded[0].schema["list"][1]) is float


def test_every_installed_plugin_survives() -> None:
    plugins = tuple(map(describe_plugin, Registry.installed()))
    assert {"saliency", "pgd", "langevin"} <= {plugin.name for plugin in plugins}
    assert plugins_from_json(plugins_to_json(plugins)) == plugins


def _described(path: Path, fields: dict[str, object]) -> ModelInfo:
    manifest = Manifest.model_validate(fields)
    return load_classifier("net", path, manifest, device=torch.device("cpu")).info


def test_a_loaded_model_survives(tmp_path: Path) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    )
    torch.jit.script(network.eval()).save(str(tmp_path / "net.pt"))
    info = _described(tmp_path / "net.pt", {"shape": [3, 8, 8], "bounds": [0, 1]})
    assert len(info.layers) > 3
    assert model_from_json(model_to_json(info)) == info


@pytest.mark.shared_data
@pytest.mark.parametrize("file", ["squeezenet1_1_rgb01.pt", "SqueezeNet1_1_fp32.onnx"])
def test_a_real_model_survives(shared_data: Path, file: str) -> None:
    path = shared_data / "models/imagenet" / file
    info = _described(path, {"shape": [3, 224, 224], "bounds": [0, 255]})
    assert len(info.layers) > 50
    text = model_to_json(info)
    assert model_from_json(text) == info
    assert len(text) < 100_000


@pytest.mark.parametrize(
    "manifest",
    [
        MANIFEST,
        Manifest(),
        Manifest.model_validate({"shape": [3, None], "mean": 0.1, "resize": [1, 2]}),
        Manifest.model_validate({"version": "1", "inputs": [{"dtype": "float32"}]}),
    ],
)
def test_a_manifest_survives_with_what_it_leaves_out(manifest: Manifest) -> None:
    decoded = manifest_from_json(manifest_to_json(manifest))
    assert decoded == manifest
    assert decoded.model_fields_set == manifest.model_fields_set
    for mine, theirs in zip(decoded.inputs, manifest.inputs, strict=True):
        assert mine.model_fields_set == theirs.model_fields_set


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "[" * 100_000,
        '"\ud7ff',
        model_to_json(MODEL).replace('"classes":2', f'"classes":{10**30}'),
        model_to_json(MODEL).replace('"size":1099511627776', f'"size":{2**63}'),
        model_to_json(MODEL).replace('"bounds":[-Infinity,1e-7]', '"bounds":[0]'),
        " " * (13 << 20) + model_to_json(MODEL),
    ],
)
def test_a_wrong_description_of_a_model_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        model_from_json(text)


def test_a_description_that_fits_no_message_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no JSON form"):
        model_to_json(dataclasses.replace(MODEL, labels=("\ud800",)))
    for labels in (("\ud800",), ("x" * 1000,) * 20_000):
        with pytest.raises(InvalidRequest, match="manifest: as JSON"):
            manifest_to_json(Manifest(labels=labels))
    with pytest.raises(ProtocolError, match="to describe"):
        model_to_json(dataclasses.replace(MODEL, labels=("x" * 1000,) * 20_000))


def test_a_damaged_description_is_refused_or_means_something() -> None:
    chance, whole = random.Random(0), model_to_json(MODEL).encode()
    refused = 0
    for _ in range(1000):
        try:
            model_from_json(damaged(whole, chance).decode(errors="replace"))
        except ProtocolError:
            refused += 1
    assert refused > 500
