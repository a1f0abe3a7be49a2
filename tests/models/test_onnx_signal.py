"""Spectra and windows put together, against onnxruntime, the reference and torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx_text import write
from torch import nn
from torch.nn import functional as F

from interpret_server.models.onnx import import_model, runtime, to_module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def check_gradient(path: Path, x: torch.Tensor) -> None:
    module = to_module(path).double()
    assert torch.autograd.gradcheck(
        lambda x: module(x)[0], (x.double().requires_grad_(),), fast_mode=True
    )


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        (1, ""),
        (2, ""),
        (1, "<onesided: int = 1>"),  # of real numbers only
        (1, "<inverse: int = 1>"),
        (2, "<inverse: int = 1>"),
    ],
)
@pytest.mark.parametrize("length", ["", "length"])
def test_fourier_transform_agrees_with_the_reference(parts, options, length, path):
    write(
        path,
        f"""
        transform (float[n, 3, 8, {parts}] x) => (float[n, 3, k, p] y) {{
            length = Constant <value: tensor = int64 {{6}}> ()
            axis = Constant <value: tensor = int64 {{2}}> ()
            y = DFT {options} (x, {length}, axis)
        }}""",
        20,
    )
    for rows in (1, 3):
        x = torch.randn(rows, 3, 8, parts)
        (expected,) = ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})
        for form in (to_module(path)(x)[0], import_model(path).graph(x)):
            torch.testing.assert_close(
                form, torch.from_numpy(np.asarray(expected, np.float32)), rtol=1e-4, atol=1e-5
            )
    check_gradient(path, x)


@pytest.mark.parametrize("axis", [1, 2])
def test_the_axis_is_an_attribute_before_opset_20(axis, path):
    text = f"transform (float[n, 4, 8, 1] x) => (float[n, 4, 8, 2] y) {{ y = DFT<axis={axis}>(x) }}"
    write(path, text, 17)
    x = torch.randn(2, 4, 8, 1)
    expected = torch.view_as_real(torch.fft.fft(x[..., 0], dim=axis))
    torch.testing.assert_close(to_module(path)(x)[0], expected)
    torch.testing.assert_close(runtime(path).run(x)[0], expected, rtol=1e-4, atol=1e-5)


SPECTROGRAM = """
spectrogram (float[n, 64] x) => (float[n, k, 4] y) {
    axes = Constant <value: tensor = int64[1] {2}> ()
    step = Constant <value: tensor = int64 {8}> ()
    size = Constant <value: tensor = int64 {16}> ()
    bands = Constant <value: tensor = int64 {4}> ()
    rate = Constant <value: tensor = int64 {8000}> ()
    low = Constant <value: tensor = float {20.0}> ()
    high = Constant <value: tensor = float {4000.0}> ()
    last = Constant <value: tensor = int64[1] {-1}> ()
    window = HannWindow (size)
    signal = Unsqueeze (x, axes)
    bins = STFT (signal, step, window, size)
    squares = Mul (bins, bins)
    power = ReduceSum <keepdims: int = 0> (squares, last)
    filters = MelWeightMatrix (bands, size, rate, low, high)
    y = MatMul (power, filters)
}"""


def test_mel_spectrogram_agrees_with_the_reference(path):
    write(path, SPECTROGRAM, 18)
    graph = import_model(path).graph
    for rows in (1, 3):
        x = torch.randn(rows, 64)
        (expected,) = ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})
        torch.testing.assert_close(graph(x), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
        windows = x.unfold(1, 16, 8) * torch.hann_window(16)
        power = torch.fft.rfft(windows).abs().square()
        (linear,) = (m for m in graph.modules() if isinstance(m, nn.Linear))
        torch.testing.assert_close(graph(x), power @ linear.weight.t(), rtol=1e-4, atol=1e-4)
    assert torch.autograd.gradcheck(graph.double(), (x.double().requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize(
    ("options", "keywords"),
    [
        ("", {}),
        ("<strides = [2, 1]>", {"stride": (2, 1)}),
        ("<dilations = [1, 2], pads = [1, 0, 1, 0]>", {"dilation": (1, 2), "padding": (1, 0)}),
    ],
)
def test_windows_put_together_equal_torchs_fold(options, keywords, path):
    write(
        path,
        f"""
        folded (float[n, 12, k] x) => (float[n, 2, 7, 6] y) {{
            image = Constant <value: tensor = int64[2] {{7, 6}}> ()
            block = Constant <value: tensor = int64[2] {{3, 2}}> ()
            y = Col2Im {options} (x, image, block)
        }}""",
        18,
    )
    count = F.unfold(torch.zeros(1, 2, 7, 6), (3, 2), **keywords).shape[2]
    x = torch.randn(3, 12, count)
    expected = F.fold(x, (7, 6), (3, 2), **keywords)
    torch.testing.assert_close(import_model(path).graph(x), expected)
    check_gradient(path, x)
