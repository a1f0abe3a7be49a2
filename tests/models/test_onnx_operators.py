"""Operators, one row of a table each, against onnxruntime; gradients against differences."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx_table import CASES, IMAGE, NOT_IN_RUNTIME, Case, weights

from interpret_server.models.onnx import runtime, to_module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def draw(case: Case, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    if case.positive:
        return torch.rand(case.x, dtype=dtype) + 0.5
    return torch.randn(case.x, dtype=dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_agrees_with_onnxruntime(case, path):
    case.write(path)
    x = draw(case)
    reference = runtime(path).run(x)
    for ours, expected in zip(to_module(path)(x), reference, strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", NOT_IN_RUNTIME, ids=str)
def test_operator_that_the_runtime_lacks_agrees_with_the_reference(case, path):
    case.write(path)
    x = draw(case) + 1 if case.positive else draw(case).round()
    expected = ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})
    for ours, value in zip(to_module(path)(x), expected, strict=True):
        torch.testing.assert_close(ours, torch.tensor(value), rtol=2e-5, atol=2e-6)


def test_response_over_an_even_number_of_channels_reaches_further_up(path):
    Case("LRN", (2, 6, 3, 3), {"size": 4, "alpha": 0.5, "beta": 0.75, "bias": 2.0}).write(path)
    x = torch.randn(2, 6, 3, 3)
    (y,) = to_module(path)(x)
    for channel in range(6):
        squares = x[:, max(channel - 1, 0) : channel + 3].square().sum(1)
        expected = x[:, channel] / (2.0 + 0.5 / 4 * squares) ** 0.75
        torch.testing.assert_close(y[:, channel], expected)


def test_broadcasting_before_opset_7_aligns_at_an_axis(path):
    Case("Add", IMAGE, {"broadcast": 1, "axis": 1}, (weights(3),), opset=6).write(path)
    x = torch.randn(IMAGE)
    (y,) = to_module(path)(x)
    assert torch.equal(y, x + torch.tensor(weights(3)).reshape(3, 1, 1))


@pytest.mark.parametrize("case", [case for case in CASES if case.smooth], ids=str)
def test_gradient_agrees_with_differences(case, path):
    case.write(path, np.float64)
    module, x = to_module(path), draw(case, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: [y for y in module(x) if y.is_floating_point()], (x,), fast_mode=True
    )
