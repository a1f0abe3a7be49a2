"""Blur, windows, spectra and total variation over any layout, by slow re-implementations."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from interpret_plugins.synthesis.spatial import (
    Axes,
    blur,
    limited,
    muted,
    octave_sizes,
    pink,
    resample,
    resize,
    total_variation,
    total_variation_gradient,
)
from interpret_server.testing import classifier

LAYOUTS = {
    "flat": ((7,), Axes((), ())),
    "signal": ((3, 9), Axes((2,), (1,))),
    "image": ((3, 5, 6), Axes((2, 3), (1,))),
    "image, channels last": ((5, 6, 3), Axes((1, 2), (3,))),
    "volume": ((2, 4, 3, 5), Axes((2, 3, 4), (1,))),
}
layouts = pytest.mark.parametrize(("shape", "axes"), LAYOUTS.values(), ids=LAYOUTS.keys())


def _batch(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(2, *shape, dtype=torch.float64)


def _slow_total_variation(x: Tensor, axes: Axes, beta: float) -> float:
    """One row, pixel by pixel."""
    spatial = [axis - 1 for axis in axes.spatial]
    total = 0.0
    for index in itertools.product(*(range(size) for size in x.shape)):
        squares = 0.0
        for axis in spatial:
            if index[axis] + 1 < x.shape[axis]:
                neighbour = tuple(i + (a == axis) for a, i in enumerate(index))
                squares += (float(x[neighbour]) - float(x[index])) ** 2
        total += squares ** (beta / 2)
    return total


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((4,), "other", Axes((), ())),
        ((3, 8), "CL", Axes((2,), (1,))),
        ((3, 8, 8), "CHW", Axes((2, 3), (1,))),
        ((8, 8, 3), "HWC", Axes((1, 2), (3,))),
        ((1, 4, 4, 4), "other", Axes((2, 3, 4), (1,))),
    ],
)
def test_axes_follow_the_layout(shape: tuple[int, ...], layout: str, expected: Axes) -> None:
    size = int(np.prod(shape))
    model = classifier(nn.Sequential(nn.Flatten(), nn.Linear(size, 2)), shape, input_layout=layout)
    assert Axes.of(model) == expected


@layouts
@pytest.mark.parametrize("beta", [1.0, 2.0, 3.0])
def test_total_variation_equals_a_loop(shape: tuple[int, ...], axes: Axes, beta: float) -> None:
    x = _batch(shape)
    expected = [_slow_total_variation(row, axes, beta) for row in x]
    assert total_variation(x, axes, beta).tolist() == pytest.approx(expected, rel=1e-12)


@layouts
def test_total_variation_gradient_equals_differences_of_the_loop(
    shape: tuple[int, ...], axes: Axes
) -> None:
    x, step = _batch(shape), 1e-5
    gradient = total_variation_gradient(x, axes)
    for index in list(itertools.product(*(range(size) for size in shape)))[:12]:
        up, down = x[0].clone(), x[0].clone()
        up[index] += step
        down[index] -= step
        slow = [_slow_total_variation(row, axes, 2) for row in (up, down)]
        assert gradient[0][index].item() == pytest.approx(
            (slow[0] - slow[1]) / (2 * step), abs=1e-7
        )


@layouts
def test_total_variation_gradient_equals_autograd(shape: tuple[int, ...], axes: Axes) -> None:
    x = _batch(shape).requires_grad_()
    (expected,) = torch.autograd.grad(total_variation(x, axes).sum(), x)
    torch.testing.assert_close(total_variation_gradient(x.detach(), axes), expected)


def test_total_variation_has_a_finite_gradient_on_constant_inputs() -> None:
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(total_variation(x, Axes((2, 3), (1,)), 1.0).sum(), x)
    assert gradient.abs().max() == 0


@layouts
@pytest.mark.parametrize("sigma", [0.4, 1.0, 5.0])
def test_blur_equals_scipy(shape: tuple[int, ...], axes: Axes, sigma: float) -> None:
    x = _batch(shape)
    expected = x.numpy()
    for axis in axes.spatial:
        expected = gaussian_filter1d(expected, sigma, axis=axis)
    np.testing.assert_allclose(blur(x, axes, sigma).numpy(), expected, atol=1e-12)


def test_resize_equals_bilinear_interpolation() -> None:
    x = _batch((3, 5, 6))
    expected = torch.nn.functional.interpolate(x, size=(8, 11), mode="bilinear")
    torch.testing.assert_close(resize(x, Axes((2, 3), (1,)), (8, 11)), expected)
    last = resize(x.movedim(1, -1), Axes((1, 2), (3,)), (8, 11))
    torch.testing.assert_close(last.movedim(-1, 1), expected)


def _slow_resample(row: Tensor, axis: int, window: list[float], size: int) -> Tensor:
    """One row along one axis, by numpy's interpolation of the row with its mirror images."""
    old = row.shape[axis]
    start, end = window
    position = start + (np.arange(size) + 0.5) / size * (end - start) - 0.5
    plain = row.numpy()
    mirrored = np.concatenate([np.flip(plain, axis), plain, np.flip(plain, axis)], axis)
    grid = np.arange(-old, 2 * old)
    seen = np.apply_along_axis(lambda line: np.interp(position, grid, line), axis, mirrored)
    return torch.from_numpy(seen)


@layouts
def test_resample_equals_interpolation_of_the_mirrored_row(
    shape: tuple[int, ...], axes: Axes
) -> None:
    x = _batch(shape)
    count = len(axes.spatial)
    windows = torch.tensor([[[0.7, 3.2], [4.5, -1.25], [-2.0, 6.0]]] * 2, dtype=torch.float64)
    windows[1] += 0.3
    sizes = (4, 7, 2)[:count]
    seen = resample(x, axes, windows[:, :count], sizes)
    for row in range(2):
        expected = x[row]
        for number, axis in enumerate(axes.spatial):
            window = windows[row, number].tolist()
            expected = _slow_resample(expected, axis - 1, window, sizes[number])
        torch.testing.assert_close(seen[row], expected)


@layouts
def test_resample_of_whole_axes_is_resize(shape: tuple[int, ...], axes: Axes) -> None:
    x = _batch(shape)
    sizes = axes.sizes(x.shape)
    windows = torch.tensor([[0.0, size] for size in sizes]).view(1, -1, 2).expand(2, -1, 2)
    new = tuple(size + 3 for size in sizes)
    torch.testing.assert_close(resample(x, axes, windows, new), resize(x, axes, new))
    torch.testing.assert_close(resample(x, axes, windows, sizes), x)
    if sizes:
        turned = resample(x, axes, windows.flip(-1), sizes)
        torch.testing.assert_close(turned, x.flip(axes.spatial))


def test_resample_passes_gradients_to_the_pixels_it_shows() -> None:
    x = _batch((1, 4, 6)).requires_grad_()
    windows = torch.tensor([[[1.0, 3.0], [2.0, 4.0]], [[0.0, 4.0], [0.0, 6.0]]])
    seen = resample(x, Axes((2, 3), (1,)), windows, (2, 2))
    (gradient,) = torch.autograd.grad(seen[0].sum(), x)
    expected = torch.zeros(4, 6, dtype=torch.float64)
    expected[1:3, 2:4] = 1
    assert torch.equal(gradient[0, 0], expected)
    assert not gradient[1].any()


def test_octaves_run_from_coarse_to_the_full_size_and_leave_out_small_ones() -> None:
    assert octave_sizes((224, 224), 3, 1.4, 64) == [(114, 114), (160, 160), (224, 224)]
    assert octave_sizes((100, 80), 3, 1.4, 64) == [(100, 80)]
    assert octave_sizes((8, 8), 3, 1.4, 64) == [(8, 8)]
    assert octave_sizes((), 3, 1.4, 64) == [()]


@layouts
def test_muted_keeps_a_share_of_the_differences_between_channels(
    shape: tuple[int, ...], axes: Axes
) -> None:
    x = _batch(shape)
    kept = muted(x, axes, 0.3)
    if not axes.channels:
        assert torch.equal(kept, x)
        return
    channels, expected = x.movedim(axes.channels[0], 0), torch.empty_like(x)
    for position in itertools.product(*(range(size) for size in channels.shape[1:])):
        values = channels[(slice(None), *position)]
        grey = sum(values.tolist()) / len(values)
        expected.movedim(axes.channels[0], 0)[(slice(None), *position)] = torch.tensor(
            [grey + 0.3 * (value - grey) for value in values.tolist()], dtype=x.dtype
        )
    torch.testing.assert_close(kept, expected)
    assert torch.equal(muted(x, axes, 1.0), x)


@layouts
@pytest.mark.parametrize("lowest", [1.0, 2.5])
@pytest.mark.parametrize("power", [0.7, 2.0])
def test_pink_equals_numpys_full_transform(
    shape: tuple[int, ...], axes: Axes, power: float, lowest: float
) -> None:
    x = _batch(shape)
    expected = x.numpy()
    if axes.spatial:
        sizes = [x.shape[axis] for axis in axes.spatial]
        grids = np.meshgrid(*(np.fft.fftfreq(size) for size in sizes), indexing="ij")
        frequency = np.maximum(np.sqrt(sum(grid**2 for grid in grids)), lowest / max(sizes))
        view = [x.shape[axis] if axis in axes.spatial else 1 for axis in range(x.dim())]
        spectrum = np.fft.fftn(expected, axes=axes.spatial) / frequency.reshape(view) ** power
        expected = np.fft.ifftn(spectrum, axes=axes.spatial).real
    np.testing.assert_allclose(pink(x, axes, power, lowest).numpy(), expected, atol=1e-10)


@layouts
def test_limited_bands_are_those_of_the_image_of_one_over_f(
    shape: tuple[int, ...], axes: Axes
) -> None:
    x, deviation = 0.5 + _batch(shape), 0.07
    kept = limited(x, axes, deviation)
    if not axes.spatial:
        assert kept is x
        return
    sizes = [x.shape[axis] for axis in axes.spatial]
    grids = np.meshgrid(*(np.fft.fftfreq(size) * max(sizes) for size in sizes), indexing="ij")
    cycles = np.sqrt(sum(grid**2 for grid in grids))
    away = cycles > 0
    power = np.where(away, 1 / np.maximum(cycles, 1) ** 2, 0)
    power *= (deviation * cycles.size) ** 2 / power.sum()
    band = np.where(away, np.floor(2 * np.log2(np.maximum(cycles, 1)) + 1e-6), -1)
    others = tuple(axis for axis in range(1, x.dim()) if axis not in axes.spatial)

    def energies(rows: Tensor) -> np.ndarray:
        squares = np.abs(np.fft.fftn(rows.numpy(), axes=axes.spatial)) ** 2
        squares = squares.mean(others)
        return np.stack([squares[:, band == name].sum(1) for name in np.unique(band)], 1)

    allowed = np.array([power[band == name].sum() for name in np.unique(band)])
    allowed[0] = (0.3 * deviation * cycles.size) ** 2
    before = energies(x)
    assert (before > allowed).any()
    np.testing.assert_allclose(energies(kept), np.minimum(before, allowed), rtol=1e-6)


def test_what_is_weak_enough_is_not_limited() -> None:
    x = 1e-3 * _batch((3, 9, 8))
    torch.testing.assert_close(limited(x, Axes((2, 3), (1,)), 0.2), x)
    torch.testing.assert_close(limited(0 * x, Axes((2, 3), (1,)), 0.2), 0 * x)


@layouts
def test_pink_is_undone_by_the_opposite_power(shape: tuple[int, ...], axes: Axes) -> None:
    x = _batch(shape)
    torch.testing.assert_close(pink(pink(x, axes, 1.3), axes, -1.3), x)


def test_pink_gradients_are_those_of_the_fourier_parameterisation() -> None:
    axes, power = Axes((2, 3), (1,)), 0.8
    weights = _batch((3, 5, 6))
    coefficients = torch.zeros_like(weights, requires_grad=True)
    image = pink(coefficients, axes, power)
    (step,) = torch.autograd.grad((image * weights).sum(), coefficients)
    torch.testing.assert_close(pink(step, axes, power), pink(weights, axes, 2 * power))
