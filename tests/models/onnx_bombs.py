"""Graphs of a few nodes that ask for terabytes, or for years of computing."""

from typing import Any

import numpy as np
import onnx
from onnx_chain import node

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
