"""Random views of an image: where and in what light a row is seen, drawn from its own seed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from interpret_server.noise import normal_rows, uniform_rows

from .ascent import per_row
from .spatial import Axes

_LIGHT = -(1 << 40)  # apart from the draws of windows, which count down from -1


def random_windows(
    seeds: Sequence[int],
    draw: int,
    sizes: Sequence[int],
    *,
    zoom: tuple[float, float] = (1.0, 1.0),
    jitter: Sequence[float] | float = 0.0,
    mirror: bool = False,
) -> Tensor:
    """Windows for `spatial.resample`, `(N, number of axes, 2)` in pixels; row i's from seed i.

    A window shows the same share of every axis, drawn evenly from `zoom`, at a place drawn evenly
    from those inside the image and up to `jitter` pixels beyond.

    Args:
        draw: which of a seed's windows.
        sizes: of the spatial axes.
        zoom: smallest and largest share of an axis; above 1, more than the image is shown.
        jitter: for all axes, or one for each.
        mirror: half of the windows are seen in a mirror along the last axis.
    """
    draws = uniform_rows(seeds, ~draw, torch.empty(len(seeds), len(sizes) + 2))
    size = torch.tensor(sizes, dtype=draws.dtype)
    width = (zoom[0] + (zoom[1] - zoom[0]) * draws[:, :1]) * size
    slack = size - width
    reach = slack.abs() / 2 + torch.as_tensor(jitter)
    start = slack / 2 + (2 * draws[:, 2:] - 1) * reach
    windows = torch.stack([start, start + width], -1)
    if mirror:
        turned = draws[:, 1] < 0.5
        windows[turned, -1] = windows[turned, -1].flip(-1)
    return windows


def random_light(z: Tensor, axes: Axes, seeds: Sequence[int], draw: int, strength: float) -> Tensor:
    """Centred inputs `(N, *shape)` at random contrast, their channels at random brightness.

    Row i becomes `exp(strength * n) * z + strength / 2 * n_c`, n and n_c (one for each channel)
    standard normal, drawn from seed i.
    """
    draws = normal_rows(seeds, _LIGHT - draw, z.new_empty(len(z), 1 + axes.channel_count(z.shape)))
    shape = [size if axis in axes.channels else 1 for axis, size in enumerate(z.shape)]
    brightness = draws[:, 1:].reshape(len(z), *shape[1:])
    return per_row(torch.exp(strength * draws[:, 0]), z) * z + strength / 2 * brightness
