"""The demonstration, whole: a real server process, every plugin, both files."""

import re
from pathlib import Path

import numpy as np
import pytest

from interpret_server.demo import main
from interpret_server.demo.digits import load_digits
from interpret_server.registry import Registry


def test_the_training_halves_and_the_held_out_digits_are_disjoint() -> None:
    parts = load_digits()
    assert [len(part) for part in parts] == [750, 750, 297]
    images = np.concatenate([part.images for part in parts])
    assert images.min() == 0.0
    assert images.max() == 1.0
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


@pytest.mark.timeout(600)
def test_the_gallery_shows_every_plugin_on_both_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(tmp_path / "out")
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    refused = {"attention_rollout"}  # the network has no attention
    refused.add("style_transfer")  # there is no image whose style would suit digits
    for registration in Registry.installed():
        plugin = registration.plugin
        assert f"<h2>{plugin.name}</h2>" in page
        if any(role.required for role in plugin.models.values()):
            refused.add(plugin.name)
    assert set(re.findall(r"<h2>(\w+)</h2><p>[^<]* Left out: ", page)) == refused
    for model in ("digits-torchscript", "digits-onnx"):
        assert page.count(f"· {model}") >= 8
    assert "http" not in re.sub(r'src="data:[^"]*"', "", page), "the page must be self-contained"
    judged = re.search(r"judge right on (\d+) of 10", page)
    assert judged is not None
    assert int(judged[1]) >= 8
    assert "index.html" in capsys.readouterr().out.replace("\n", "")
