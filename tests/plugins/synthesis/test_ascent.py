"""One step of regularised ascent, against a slow step in numpy."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from interpret_plugins.synthesis.ascent import Policy, Settings, ascend, preset
from interpret_plugins.synthesis.spatial import Axes

Image = NDArray[np.float64]
AXES = Axes((2, 3), (1,))


def _slow_step(z: Image, gradient: Image, step: int, settings: Settings) -> Image:
    """One row `(C, H, W)`, in the published order."""
    size = (gradient**2).sum()
    now = settings.rate * (1 + (settings.rate_end - 1) * step / settings.steps)
    match settings.policy:
        case Policy.CONSTANT:
            rate = now
        case Policy.PROGRESS:
            rate = min(now, settings.progress / size)
        case Policy.NORMALIZED:
            rate = now / np.abs(gradient).mean()
    z = z + rate * gradient
    z = z * (1 - settings.decay)
    if settings.blur_every and step % settings.blur_every == 0:
        z = np.stack([gaussian_filter(channel, settings.blur_sigma) for channel in z])
    if settings.norm_percentile:
        norms = np.sqrt((z**2).sum(0))
        z = z * (norms >= np.percentile(norms, settings.norm_percentile))
    if settings.contribution_percentile:
        shares = np.abs((z * gradient).sum(0))
        z = z * (shares >= np.percentile(shares, settings.contribution_percentile))
    return z


@pytest.mark.parametrize(
    "settings",
    [
        Settings(steps=9, policy=Policy.CONSTANT, rate=0.3),
        Settings(steps=9, policy=Policy.CONSTANT, rate=0.3, rate_end=0.1),
        Settings(steps=9, policy=Policy.NORMALIZED, rate=0.1, rate_end=2.0),
        Settings(steps=9, policy=Policy.PROGRESS, rate=0.3, progress=0.1),
        Settings(steps=9, policy=Policy.PROGRESS, rate=1e-4, progress=0.1),
        Settings(steps=9, policy=Policy.NORMALIZED, rate=0.01, decay=0.3),
        Settings(steps=9, policy=Policy.CONSTANT, rate=0.3, blur_sigma=1.0, blur_every=4),
        Settings(steps=9, policy=Policy.CONSTANT, rate=0.3, norm_percentile=50),
        Settings(steps=9, policy=Policy.CONSTANT, rate=0.3, contribution_percentile=90),
        Settings(
            steps=9,
            policy=Policy.PROGRESS,
            rate=0.5,
            decay=0.1,
            blur_sigma=0.5,
            blur_every=2,
            norm_percentile=20,
            contribution_percentile=30,
        ),
        preset("yosinski_1", (6, 7)),
        preset("yosinski_2", (6, 7)),
        preset("yosinski_3", (6, 7)),
        preset("yosinski_4", (6, 7)),
    ],
)
@pytest.mark.parametrize("step", [0, 1, 4])
def test_step_equals_the_published_order(settings: Settings, step: int) -> None:
    z, gradient = torch.randn(2, 3, 3, 6, 7, dtype=torch.float64)
    expected = np.stack(
        [_slow_step(a, b, step, settings) for a, b in zip(z.numpy(), gradient.numpy(), strict=True)]
    )
    actual = ascend(z, gradient, step, settings, AXES)
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-12)


def test_pixels_of_a_flat_vector_are_its_values() -> None:
    z, gradient = torch.tensor([[1.0, -3.0, 2.0, 0.5]]), torch.zeros(1, 4)
    settings = Settings(steps=1, policy=Policy.CONSTANT, rate=1.0, norm_percentile=50)
    kept = ascend(z, gradient, 0, settings, Axes((), ()))
    assert kept.tolist() == [[0.0, -3.0, 2.0, 0.0]]


def test_a_zero_gradient_moves_nothing() -> None:
    z = torch.randn(1, 1, 4, 4)
    for policy in Policy:
        settings = Settings(steps=1, policy=policy, rate=1.0)
        assert torch.equal(ascend(z, torch.zeros_like(z), 1, settings, AXES), z)


def test_published_presets_have_the_published_regularisation() -> None:
    found = [preset(f"yosinski_{number}", (227, 227)) for number in (1, 2, 3, 4)]
    assert [item.steps for item in found] == [500, 750, 1000, 1000]
    assert [item.decay for item in found] == [0, 0.3, 1e-4, 0]
    assert [(item.blur_sigma, item.blur_every) for item in found if item.blur_every] == [
        (0.5, 4),
        (1.0, 4),
        (0.5, 4),
    ]
    assert [item.norm_percentile for item in found] == [50, 20, 0, 0]
    assert [item.contribution_percentile for item in found] == [0, 0, 0, 90]


def test_the_default_preset_knows_photos_from_grey_images_signals_and_small_images() -> None:
    photo, grey = preset("octaves", (224, 200), 3), preset("octaves", (224, 200), 1)
    assert photo.chroma < grey.chroma == 1
    assert photo.spectrum == grey.spectrum != (0, 0)
    for plain in (preset("octaves", (500,), 3), preset("octaves", (32, 32), 3)):
        assert (plain.zoom, plain.mirror, plain.chroma) == ((1, 1), False, 1)
        assert plain.gradient_blur != (0, 0)
    assert photo.steps <= 300
