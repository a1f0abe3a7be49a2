"""Plugins answer the same from recorded passes; played back on the CPU, with no Python between."""

from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch

from interpret_server.models import classifier as classifier_module
from interpret_server.models.classifier import Classifier
from interpret_server.models.execution import Execution
from interpret_server.models.targets import TargetKind
from interpret_server.plugin import Plugin
from interpret_server.testing import classifier
from interpret_server.testing.subjects import subjects
from tests.models.tape import Tape
from tests.plugins.attribution.transformers import IMAGE, vision
from tests.test_conformance import POINTS, few
from tests.test_devices import GREY, answer

RUNS = 4  # two, then those whose answers are compared with the recording's, then one of recordings
STEPPING = {"saliency", "pgd", "bim", "integrated_gradients", "smoothgrad", "class_visualization"}


def subject(plugin: Plugin[Any, Any]) -> Classifier:
    if plugin.name == "attention_rollout":
        return classifier(vision().double(), IMAGE, input_layout="CHW")
    return subjects()[GREY]


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_a_plugin_answers_the_same_from_recordings(
    point: EntryPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin: Plugin[Any, Any] = point.load()()
    kinds = sorted(plugin.target_kinds or {TargetKind.NONE})
    kind = TargetKind.CLASS if TargetKind.CLASS in kinds else kinds[0]
    expected = answer(plugin, subject(plugin), few(plugin), kind, far=False)
    tape = Tape()
    monkeypatch.setattr(classifier_module, "recorder_of", lambda device: tape)
    model = subject(plugin)
    model.execution = Execution.RECORDED
    for _ in range(RUNS):
        found = answer(plugin, model, few(plugin), kind, far=False)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        size = float(value.double().abs().nan_to_num(0, 0, 0).max()) if value.numel() else 1.0
        torch.testing.assert_close(
            found[name], value, rtol=1e-6, atol=1e-7 * max(1.0, size), equal_nan=True
        )
    if plugin.name in STEPPING:
        assert tape.played > 2 * tape.recorded > 0
