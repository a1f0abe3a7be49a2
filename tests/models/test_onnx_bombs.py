"""Small ONNX files that ask for terabytes, or for years of computing."""

import resource
import time
from pathlib import Path

import numpy as np
import pytest
from loading_files import load
from onnx_bombs import ADD, COMPUTED, FOLDED
from onnx_chain import node, save

from interpret_server.errors import InvalidModel
from interpret_server.models.onnx import import_model, to_module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def peak() -> int:
    """Most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.parametrize("read", [import_model, to_module])
@pytest.mark.parametrize("name", [*FOLDED, *(f"of the input: {name}" for name in COMPUTED)])
def test_a_small_file_cannot_ask_for_much(name, read, path):
    nodes, stored = COMPUTED[name[14:]] if name.startswith("of the") else FOLDED[name]
    save(path, nodes, stored)
    assert path.stat().st_size < 2**21
    before, started = peak(), time.monotonic()
    with pytest.raises(InvalidModel, match=r"accepted|shapes do not fit"):
        read(path)
    assert time.monotonic() - started < 20
    assert peak() - before < 2600


def test_many_constants_cannot_take_much_together(path, monkeypatch):
    monkeypatch.setattr("interpret_server.models.onnx.allowance.MAX_CONSTANTS", 64 * 2**20)
    nodes = [node("ConstantOfShape", "n", f"c{i}") for i in range(20)]
    nodes += [node("Sum", " ".join(f"c{i}" for i in range(20)), "c"), ADD]
    save(path, nodes, {"n": np.array([2**20], np.int64)})
    with pytest.raises(InvalidModel, match="computes constants"):
        import_model(path)


def test_opening_a_bomb_to_serve_it_runs_nothing_of_it(path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", None)  # which folds constants unasked
    save(path, *FOLDED["constant of shape"])
    with pytest.raises(InvalidModel, match="at most"):
        load(path, inputs=[{"bounds": (0, 1)}])
