"""The example that shows all methods side by side."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import interpret_client
from interpret_client import pictures

FILE = Path(__file__).parents[2] / "examples" / "attribution_sheet.py"


def example() -> Any:
    spec = importlib.util.spec_from_file_location("attribution_sheet", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_sheet_of_all_methods(
    served_digits: str, digit_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("saliency", "occlusion", "attention_rollout")
    listed = interpret_client.Client.plugins

    def few(client: interpret_client.Client, kind: str) -> Any:
        return [item for item in listed(client, kind) if item.name in names]

    monkeypatch.setattr(interpret_client.Client, "plugins", few)
    inputs = np.load(digit_files / "digits.npy")[:1]
    with interpret_client.connect(served_digits) as client:
        made = example().attribution_sheet(client, "digits", inputs)
        cells = {"input": pictures.image(inputs[0], (0, 1))}
        for name in ("occlusion", "saliency"):
            found = client.run(name, "digits", inputs)
            cells[name] = found.picture(inputs=inputs, layout="CHW", bounds=(0, 1))
    assert made == pictures.sheet(cells, columns=6, side=176)
