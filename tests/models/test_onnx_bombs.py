"""Small ONNX files that ask for terabytes, or for years of computing."""

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from loading_files import load
from onnx_chain import node, save

from interpret_server.errors import InvalidModel
from interpret_server.models.onnx import import_model, to_module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


ONE = np.ones(1, np.float32)
LONG = np.array([2**40], np.int64)
ADD = node("Add", "x c")
FOLDED: dict[str, tuple[list[onnx.NodeProto], dict[str, Any]]] = {
    "constant of shape": ([node("ConstantOfShape", "n", "c"), ADD], {"n": LONG}),
    "expand": ([node("Expand", "one n", "b"), node("Exp", "b", "c"), ADD], {"one": ONE, "n": LONG}),
    "tile": ([node("Tile", "one n", "c"), ADD], {"one": ONE, "n": LONG}),
    "range": (
        [node("Range", "zero n step", "c"), ADD],
        {"zero": np.float32(0), "n": np.float32(2**40), "step": np.float32(1)},
    ),
    "one-hot": (
        [node("OneHot", "zero n pair", "c"), ADD],
        {"zero": np.zeros(2, np.int64), "n": LONG, "pair": np.array([0, 1], np.float32)},
    ),
    "pad": (
        [node("Pad", "one n", "c"), ADD],
        {"one": ONE, "n": np.array([0, 2**40], np.int64)},
    ),
    "resize": (
        [node("Resize", "one _ n", "c"), ADD],
        {"one": np.ones((1, 1), np.float32), "n": np.array([2**20, 2**20], np.float32)},
    ),
    "product": (
        [node("MatMul", "column row", "c"), ADD],
        {"column": np.ones((2**17, 1), np.float32), "row": np.ones((1, 2**17), np.float32)},
    ),
    "pick": (
        [node("Gather", "one pick", "b0")]
        + [node("Concat", f"b{i} b{i}", f"b{i + 1}", axis=0) for i in range(44)]
        + [node("Identity", "b44", "c"), ADD],
        {"one": ONE, "pick": np.zeros(1, np.int64)},
    ),
    "eye": (
        [node("ConstantOfShape", "n", "b"), node("EyeLike", "b", "c"), ADD],
        {"n": np.array([2**20, 2**20], np.int64)},
    ),
    "products without end": (
        [node("ConstantOfShape", "n", "c0")]
        + [node("MatMul", f"c{i} c{i}", f"c{i + 1}") for i in range(4)]
        + [node("ReduceSum", "c4", "c"), ADD],
        {"n": np.array([11000, 11000], np.int64)},
    ),
    "one convolution": (
        [
            node("ConstantOfShape", "n", "image"),
            node("ConstantOfShape", "k", "kernel"),
            node("Conv", "image kernel", "b"),
            node("ReduceMax", "b", "c"),
            ADD,
        ],
        {"n": np.array([1, 1, 8192, 8192]), "k": np.array([1, 1, 4096, 4096])},
    ),
    "one pooling": (
        [
            node("ConstantOfShape", "n", "image"),
            node("MaxPool", "image", "b", kernel_shape=[4096, 4096]),
            node("ReduceMax", "b", "c"),
            ADD,
        ],
        {"n": np.array([1, 1, 8192, 8192])},
    ),
}
COMPUTED = {
    "tile": ([node("Tile", "x n")], {"n": np.array([1, 2**40], np.int64)}),
    "expand": (
        [node("Expand", "x n", "b"), node("Exp", "b")],
        {"n": np.array([2**36, 1, 4], np.int64)},
    ),
    "pad": ([node("Pad", "x n")], {"n": np.array([0, 0, 0, 2**40], np.int64)}),
    "resize": ([node("Resize", "x _ n")], {"n": np.array([1, 2**40], np.float32)}),
}


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
