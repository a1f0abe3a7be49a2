"""Random windows: inside their limits, drawn from a row's own seed."""

import pytest
import torch

from interpret_plugins.synthesis.spatial import Axes
from interpret_plugins.synthesis.views import random_light, random_windows

SEEDS = tuple(range(400))


def test_windows_keep_to_the_zoom_and_the_jitter() -> None:
    windows = random_windows(SEEDS, 3, (100, 50), zoom=(0.4, 0.8), jitter=[10.0, 5.0])
    width = windows[..., 1] - windows[..., 0]
    share = width / torch.tensor([100.0, 50.0])
    torch.testing.assert_close(share[:, 0], share[:, 1])
    assert 0.4 <= share.min() < 0.41
    assert 0.79 < share.max() <= 0.8
    beyond = torch.maximum(-windows[..., 0], windows[..., 1] - torch.tensor([100.0, 50.0]))
    assert (beyond.amax(0) <= torch.tensor([10.0, 5.0]) + 1e-4).all()
    assert (beyond.amax(0) > torch.tensor([8.0, 4.0])).all()


def test_windows_of_more_than_the_image_hold_it() -> None:
    windows = random_windows(SEEDS, 0, (30,), zoom=(1.2, 1.5))
    assert (windows[..., 0] <= 1e-4).all()
    assert (windows[..., 1] >= 30 - 1e-4).all()


def test_without_zoom_and_jitter_the_window_is_the_image() -> None:
    windows = random_windows((1, 2), 0, (7, 9))
    assert windows.tolist() == [[[0, 7], [0, 9]]] * 2


def test_half_of_the_windows_are_mirrored_along_the_last_axis() -> None:
    windows = random_windows(SEEDS, 0, (20, 20), zoom=(0.5, 1.0), mirror=True)
    turned = windows[..., 1] < windows[..., 0]
    assert not turned[:, 0].any()
    assert 150 < turned[:, 1].sum() < 250


def test_a_seed_and_a_draw_decide_a_window() -> None:
    together = random_windows(SEEDS, 5, (20, 20), zoom=(0.5, 1.0), jitter=2.0, mirror=True)
    alone = random_windows(SEEDS[7:8], 5, (20, 20), zoom=(0.5, 1.0), jitter=2.0, mirror=True)
    assert torch.equal(together[7:8], alone)
    other = random_windows(SEEDS[7:8], 6, (20, 20), zoom=(0.5, 1.0), jitter=2.0, mirror=True)
    assert not torch.equal(alone, other)


def test_a_row_without_space_has_no_windows() -> None:
    assert random_windows((1, 2), 0, ()).shape == (2, 0, 2)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((3, 4, 5), Axes((2, 3), (1,))), ((4, 5, 3), Axes((1, 2), (3,))), ((6,), Axes((), ()))],
)
def test_light_is_one_contrast_for_a_row_and_one_brightness_for_a_channel(
    shape: tuple[int, ...], axes: Axes
) -> None:
    z = torch.randn(len(SEEDS), *shape, dtype=torch.float64)
    dark = random_light(torch.zeros_like(z), axes, SEEDS, 3, 0.4)
    contrast = (random_light(z, axes, SEEDS, 3, 0.4) - dark) / z
    first = contrast.flatten(1)[:, :1].reshape(-1, *(1 for _ in shape))
    torch.testing.assert_close(contrast, first.expand_as(z))
    assert contrast.log().std().item() == pytest.approx(0.4, rel=0.1)
    if axes.spatial:
        torch.testing.assert_close(dark, dark.mean(axes.spatial, keepdim=True).expand_as(dark))
        assert dark[0].unique().numel() == 3
    assert dark.std().item() == pytest.approx(0.2, rel=0.1)


def test_a_seed_and_a_draw_decide_the_light() -> None:
    z, axes = torch.randn(5, 3, 4, 4), Axes((2, 3), (1,))
    together = random_light(z, axes, SEEDS[:5], 2, 0.3)
    assert torch.equal(random_light(z[4:], axes, SEEDS[4:5], 2, 0.3), together[4:])
    assert not torch.equal(random_light(z[4:], axes, SEEDS[4:5], 1, 0.3), together[4:])
