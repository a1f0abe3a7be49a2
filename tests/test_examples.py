"""The example plugins keep the contract, and both ways of installing one work."""

import importlib
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from interpret_server.models.targets import Targets
from interpret_server.plugin import Batch, Job, Plugin
from interpret_server.registry import Registry
from interpret_server.testing import classifier, conformance

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def folder() -> Registry:
    registry = Registry()
    registry.add_folder(EXAMPLES / "plugin_dir")
    return registry


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """The distribution as pip would lay it out: its module and its metadata on the path."""
    project = tomllib.loads((EXAMPLES / "entry_point_plugin/pyproject.toml").read_text())["project"]
    metadata = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = ["[interpret_server.plugins]"]
    points: dict[str, str] = project["entry-points"]["interpret_server.plugins"]
    lines += [f"{name} = {value}" for name, value in points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES / "entry_point_plugin")
    importlib.invalidate_caches()
    yield Registry.installed()
    sys.modules.pop("interpret_linear_evidence", None)


def plugin(registry: Registry, name: str) -> Plugin[Any, Any]:
    registration = registry.get(name)
    assert registration is not None
    return registration.plugin


def test_the_single_file_plugin_keeps_the_contract(folder: Registry) -> None:
    assert folder.names() == ("gradient_norm",)
    conformance(plugin(folder, "gradient_norm"))


def test_the_distributed_plugin_keeps_the_contract(installed: Registry) -> None:
    registration = installed.get("linear_evidence")
    assert registration is not None
    assert (registration.origin, registration.version) == ("interpret-linear-evidence", "1.0.0")
    assert "saliency" in installed.names()
    conformance(registration.plugin)
    conformance(
        registration.plugin,
        tensors=lambda model, rows: {"baseline": model.neutral(rows)},
    )


@pytest.mark.parametrize("order", [1, 2])
def test_gradient_norm_of_a_linear_classifier_is_that_of_its_weights(
    folder: Registry, order: int
) -> None:
    layer = nn.Linear(6, 3)
    made = plugin(folder, "gradient_norm")
    labels = torch.tensor([2, 0])
    batch = Batch(torch.rand(2, 6), Targets.classes(labels), (0, 0))
    result = made.run(classifier(layer, (6,)), batch, made.params_type(order=order), Job())
    expected = torch.linalg.vector_norm(layer.weight[labels], ord=order, dim=1)
    torch.testing.assert_close(result.gradient_norm, expected)


def test_linear_evidence_adds_up_to_the_change_of_a_linear_classifier(installed: Registry) -> None:
    layer = nn.Linear(6, 3)
    made = plugin(installed, "linear_evidence")
    x, baseline, labels = torch.rand(2, 6), torch.rand(2, 6), torch.tensor([2, 0])
    batch = Batch(x, Targets.classes(labels), (0, 1), {"baseline": baseline})
    result = made.run(classifier(layer, (6,)), batch, made.params_type(), Job())
    change = (layer(x) - layer(baseline)).gather(1, labels.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(result.total, change)
