"""Quantised operators against onnxruntime, and straight-through gradients against float models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto
from onnx_node import Node as Case
from onnx_table import weights

from interpret_server.models.onnx import import_model, runtime, to_module

U8, I8, I32, F32 = np.uint8, np.int8, np.int32, np.float32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def scale(*values: float) -> np.ndarray:
    return np.array(values if len(values) > 1 else values[0], F32)


def integers(kind: type, *shape: int, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(kind)
    high = min(limits.max, 255) + 1
    return np.random.default_rng(seed).integers(max(limits.min, -128), high, shape).astype(kind)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, shape).astype(F32)


def microsoft(
    operator: str,
    inputs: Sequence[Any],
    attributes: Mapping[str, Any] | None = None,
    fed: Sequence[int] = (0,),
    result: Any = U8,
) -> Case:
    rank = np.asarray(inputs[fed[0]]).ndim
    return Case(
        operator, inputs, attributes or {}, fed, domain="com.microsoft", results=[(result, rank)]
    )


A, B = integers(U8, 4, 6), integers(U8, 6, 5, seed=1)
SA, SB, SY = scale(0.02), scale(0.05), scale(0.3)
PER_COLUMN = np.linspace(0.01, 0.2, 5, dtype=F32)
X, W, W8 = integers(U8, 2, 3, 9, 8), integers(U8, 4, 3, 3, 3, seed=1), integers(I8, 4, 3, 3, 3)
PER_CHANNEL = np.linspace(0.01, 0.2, 4, dtype=F32)
BIAS = np.array([100, -2000, 30, 4000], I32)
TABLE = integers(U8, 2, 3, 40, 8)
CASES = [
    *(
        Case("QuantizeLinear", (numbers(3, 5, 7) * 40, scale(0.7), np.array(zero, kind)))
        for kind, zero in ((U8, 128), (U8, 3), (I8, -7), (np.uint16, 300), (np.int16, -5))
    ),
    Case("QuantizeLinear", (np.arange(-300, 300, dtype=F32) / 2, scale(1.0), np.array(3, U8))),
    Case("QuantizeLinear", (numbers(3, 5), scale(0.03))),
    Case("QuantizeLinear", (numbers(3, 5), PER_COLUMN, integers(I8, 5)), {"axis": -1}),
    Case("QuantizeLinear", (numbers(3, 5), PER_COLUMN[:3], integers(U8, 3)), {"axis": 0}),
    Case("QuantizeLinear", (numbers(3, 5), PER_COLUMN, integers(U8, 5)), opset=13),
    Case(
        "QuantizeLinear",
        (numbers(2, 7, 3), np.abs(numbers(2, 3, 3)) + 0.1, integers(U8, 2, 3, 3)),
        {"axis": 1, "block_size": 3},
    ),
    Case("QuantizeLinear", (numbers(3, 5), scale(0.03)), {"output_dtype": TensorProto.INT16}),
    *(
        Case("DequantizeLinear", (integers(kind, 3, 5), scale(0.7), np.array(zero, kind)))
        for kind, zero in ((U8, 128), (I8, -7), (np.uint16, 300), (np.int16, -5))
    ),
    Case("DequantizeLinear", (integers(I32, 3, 5) * 10**7, scale(0.7))),
    Case("DequantizeLinear", (integers(U8, 3, 5), PER_COLUMN, integers(U8, 5)), {"axis": 1}),
    Case(
        "DequantizeLinear",
        (integers(U8, 2, 7, 3), np.abs(numbers(2, 3, 3)) + 0.1, integers(U8, 2, 3, 3)),
        {"axis": 1, "block_size": 3},
    ),
    *(Case("DynamicQuantizeLinear", (x,), outputs=3) for x in (numbers(3, 4), -(numbers(4) ** 2))),
    Case("DynamicQuantizeLinear", (np.zeros((2, 3), F32),), outputs=3),
    Case("MatMulInteger", (A, B, np.array(7, U8), np.array(250, U8))),
    Case("MatMulInteger", (integers(U8, 2, 4, 6), integers(I8, 6, 5)), fed=(0, 1)),
    Case("MatMulInteger", (A, B, np.array(7, U8), integers(U8, 5))),
    Case("MatMulInteger", (np.full((1, 33000), 255, U8), np.full((33000, 1), 255, U8))),
    Case("ConvInteger", (X, W, np.array(3, U8), np.array(250, U8)), {"pads": [1, 2, 0, 1]}),
    Case("ConvInteger", (X, W), {"strides": [2, 2]}),
    *(
        Case(
            "QLinearConv",
            (X, SA, np.array(3, U8), w, w_scale, w_zero, SY, np.array(9, U8), *bias),
            {"pads": [1, 1, 1, 1], **attributes},
        )
        for w, w_scale, w_zero, bias, attributes in (
            (W, SB, np.array(99, U8), (), {}),
            (W8, PER_CHANNEL, np.zeros(4, I8), (BIAS,), {"strides": [2, 1]}),
            (W8[:, :1].repeat(3, 0)[:6], SB, np.array(0, I8), (BIAS.repeat(2)[:6],), {"group": 3}),
        )
    ),
    Case("QLinearMatMul", (A, SA, np.array(7, U8), B, SB, np.array(9, U8), SY, np.array(3, U8))),
    Case(
        "QLinearMatMul",
        (A, SA, np.array(7, U8), B.astype(I8), PER_COLUMN, np.zeros(5, I8), SY, np.array(3, U8)),
    ),
    Case(
        "QLinearMatMul",
        (
            integers(I8, 2, 4, 6),
            SA,
            np.array(7, I8),
            integers(I8, 2, 6, 5),
            SB,
            np.array(9, I8),
            SY,
            np.array(3, I8),
        ),
        fed=(0, 3),
    ),
    *(
        microsoft(
            "QGemm",
            (A.T if a else A, SA, np.array(7, U8), b.T if t else b, bs, bz, c, *y),
            {"transA": a, "transB": t, "alpha": 0.5},
            result=U8 if y else F32,
        )
        for a, t, b, bs, bz, c, y in (
            (0, 0, B, SB, np.array(9, U8), None, (SY, np.array(3, U8))),
            (1, 0, B, SB, np.array(9, U8), integers(I32, 5), (SY, np.array(3, U8))),
            (0, 1, B.astype(I8), PER_COLUMN, np.zeros(5, I8), integers(I32, 5), ()),
        )
    ),
    *(
        microsoft(name, (A, SA, np.array(7, U8), A[::-1].copy(), SB, np.array(9, U8), SY, zero))
        for name in ("QLinearAdd", "QLinearMul")
        for zero in (np.array(3, U8), np.array(128, U8))
    ),
    microsoft(
        "QLinearAdd",
        (
            A.astype(I8),
            SA,
            np.array(7, I8),
            integers(I8, 6),
            SB,
            np.array(-9, I8),
            SY,
            np.array(-3, I8),
        ),
        fed=(0, 3),
        result=I8,
    ),
    microsoft(
        "QLinearConv",
        (
            np.ascontiguousarray(np.moveaxis(X, 1, -1)),
            *(SA, np.array(3, U8), W8, PER_CHANNEL, np.zeros(4, I8), SY, np.array(9, U8), BIAS),
        ),
        {"pads": [1, 1, 1, 1], "channels_last": 1},
    ),
    microsoft(
        "NhwcMaxPool", (integers(U8, 2, 9, 8, 3),), {"kernel_shape": [3, 2], "pads": [1] * 4}
    ),
    *(
        microsoft(name, (TABLE, scale(0.05), np.array(130, U8), y_scale, zero), attributes)
        for name, y_scale, zero, attributes in (
            ("QLinearSigmoid", scale(1 / 256), np.array(0, U8), {}),
            ("QLinearLeakyRelu", scale(0.04), np.array(60, U8), {"alpha": 0.2}),
            ("QLinearGlobalAveragePool", scale(0.002), np.array(50, U8), {}),
            ("QLinearGlobalAveragePool", scale(0.06), np.array(50, U8), {"channels_last": 1}),
            ("QLinearSoftmax", scale(1 / 256), np.array(0, U8), {"axis": -1, "opset": 13}),
            (
                "QLinearAveragePool",
                scale(0.05),
                np.array(100, U8),
                {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]},
            ),
            (
                "QLinearAveragePool",
                scale(0.05),
                np.array(100, U8),
                {"kernel_shape": [3, 2], "channels_last": 1},
            ),
        )
    ),
    microsoft(
        "QLinearConcat",
        (SY, np.array(30, U8), A, SA, np.array(7, U8), A.T[:4], scale(0.4), np.array(9, U8)),
        {"axis": 1},
        fed=(2,),
    ),
]
CASES += [
    microsoft(
        "QLinearWhere",
        (
            A > 128,
            A,
            SA,
            np.array(7, U8),
            A[::-1].copy(),
            SB,
            np.array(9, U8),
            SY,
            np.array(3, U8),
        ),
        fed=fed,
    )
    for fed in ((1,), (4,), (0, 1, 4))
]
# Sums of floating-point numbers, which differ by rounding.
INEXACT = [
    microsoft(
        "DynamicQuantizeMatMul", (numbers(4, 6), B, SB, np.array(9, U8), weights(5)), result=F32
    ),
    microsoft(
        "DynamicQuantizeMatMul",
        (numbers(4, 6), B.astype(I8), PER_COLUMN, np.zeros(5, I8)),
        result=F32,
    ),
    microsoft(
        "MatMulIntegerToFloat",
        (A, B, SA, SB, np.array(7, U8), np.array(9, U8), weights(5)),
        result=F32,
    ),
    microsoft(
        "MatMulIntegerToFloat", (A, B.astype(I8), SA, PER_COLUMN, np.array(7, U8)), result=F32
    ),
    *(
        microsoft(
            "MatMulNBits",
            (
                numbers(3, 40),
                integers(U8, 5, 3, 16 * bits // 8),
                np.abs(weights(15)) + 0.1,
                *zeros,
            ),
            {"K": 40, "N": 5, "bits": bits, "block_size": 16},
            result=F32,
        )
        for bits, zeros in (
            (4, ()),
            (4, (integers(U8, 10),)),
            (8, ()),
            (8, (integers(U8, 15),)),
        )
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_quantised_operator_is_exact(case, path):
    inputs = case.write(path)
    reference = runtime(path).run(*inputs)
    for ours, expected in zip(to_module(path)(*inputs), reference, strict=True):
        assert ours.dtype == expected.dtype
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_integers_carried_as_numbers_are_the_same(case, path):
    inputs = case.write(path)
    expected = to_module(path)(*inputs)
    for straight_through in (False, True):
        graph = import_model(path, straight_through=straight_through).graph
        found = graph(*inputs)
        for ours, value in zip([found] if len(expected) == 1 else found, expected, strict=True):
            if case.operator != "DynamicQuantizeLinear":  # which has one range per row there
                assert torch.equal(ours.double(), value.double())


@pytest.mark.parametrize("case", INEXACT, ids=str)
def test_product_of_integers_gives_floating_point_numbers(case, path):
    inputs = case.write(path)
    expected = runtime(path).run(*inputs)
    torch.testing.assert_close(to_module(path)(*inputs), tuple(expected), rtol=1e-5, atol=1e-5)
