"""Regularised gradient ascent on centred inputs: its settings, the named presets, and one step.

The order of a step is that of the reference implementation of Yosinski et al. 2015, "Understanding
neural networks through deep visualization", section 3: clip, gradient, decay, blur, pixels of
small norm to 0, pixels of small contribution to 0. The limit of the spectrum comes after the blur.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from .spatial import Axes, blur, limited, pixels

_BYTE = 255.0  # published steps and noise are of pixels of 0 to 255


class Policy(StrEnum):
    """How the rate and the gradient g of a row make its step."""

    CONSTANT = "constant"  # rate * g
    PROGRESS = "progress"  # min(rate, progress / |g|^2) * g: the value rises by about `progress`
    NORMALIZED = "normalized"  # rate * g / mean(|g|)


@dataclass(frozen=True)
class Settings:
    """Settings of an ascent, all in units of centred inputs z (width of the bounds = 1).

    Args:
        steps: gradient steps in all, shared among the octaves.
        policy: how the step is made of the gradient.
        rate: learning rate; its meaning depends on the policy.
        rate_end: the last rate over the first; between them it changes in equal differences.
        rivals: weight r of the other classes in what is maximised, `S_c - r log sum exp(S_k)`
            over k other than c; 1 is the log odds. For classes only.
        progress: rise of the target's value per step that `Policy.PROGRESS` aims at.
        l2: weight of the penalty `l2 * |z|^2`.
        decay: share of z taken away after each step.
        blur_sigma: blur of z in pixels, every `blur_every` steps (0: never).
        gradient_blur: blur of the gradient in pixels, from the first step to the last.
        spectrum: power of 1/f by which the gradient's Fourier amplitudes are multiplied, from the
            first step to the last.
        lowest_frequency: cycles per largest axis; lower frequencies are multiplied as this one.
        chroma: share of the gradient's differences between a pixel's channels that is kept.
        spectrum_limit: standard deviation of the image of 1/f amplitudes that no band of half an
            octave may be stronger than (0: no limit).
        norm_percentile: pixels whose norm lies below this percentile are set to the centre.
        contribution_percentile: the same for |sum over channels of z * gradient|.
        views: how many views of the image the gradients of a step are summed over.
        zoom: smallest and largest share of each axis that a view shows.
        mirror: half of the views are mirrored along the last axis.
        jitter: how far a view may lie outside the image, in pixels.
        noise: standard deviation of the noise under which each gradient is taken.
        contrast: standard deviation of the logarithm of a view's contrast, and twice that of the
            brightness of its channels.
        settle: share of the steps, at the end, on the image as it is: one view, no noise.
        average: share of the steps, at the end, whose images' mean is the result.
        octaves: sizes to work through, coarse to fine.
        octave_ratio: each size over the one before.
        start_noise: standard deviation of the noise added to the start.
        clip: keep z inside the model's bounds.
    """

    steps: int
    policy: Policy
    rate: float
    rate_end: float = 1.0
    rivals: float = 0.0
    progress: float = 2.0
    l2: float = 0.0
    decay: float = 0.0
    blur_sigma: float = 0.0
    blur_every: int = 0
    gradient_blur: tuple[float, float] = (0.0, 0.0)
    spectrum: tuple[float, float] = (0.0, 0.0)
    lowest_frequency: float = 1.0
    chroma: float = 1.0
    spectrum_limit: float = 0.0
    norm_percentile: float = 0.0
    contribution_percentile: float = 0.0
    views: int = 1
    zoom: tuple[float, float] = (1.0, 1.0)
    mirror: bool = False
    jitter: int = 0
    noise: float = 0.0
    contrast: float = 0.0
    settle: float = 0.0
    average: float = 0.0
    octaves: int = 1
    octave_ratio: float = 1.4
    start_noise: float = 0.0
    clip: bool = True

    def at(self, schedule: tuple[float, float], step: int) -> float:
        """The value at a step of what runs from the first value to the second."""
        first, last = schedule
        return first + (last - first) * step / self.steps

    def rate_at(self, step: int) -> float:
        """The learning rate at a step."""
        return self.at((self.rate, self.rate * self.rate_end), step)

    def updated(self, values: Mapping[str, Any]) -> "Settings":
        """The same settings with those of `values` that are not None."""
        return replace(self, **{key: value for key, value in values.items() if value is not None})


def _octaves(sizes: tuple[int, ...], channels: int) -> Settings:
    smallest = min(sizes, default=1)
    jitter = min(12, max(smallest // 16, 1))
    if smallest < 64:
        return Settings(
            steps=200,
            rivals=1.0,
            policy=Policy.NORMALIZED,
            rate=2.4 / _BYTE,
            decay=0.002,
            gradient_blur=(0.7, 0.3),
            jitter=jitter,
            noise=0.2,
            settle=0.1,
            start_noise=0.02,
        )
    common = Settings(
        steps=200,
        policy=Policy.NORMALIZED,
        rate=2.4 / _BYTE,
        decay=0.002,
        blur_sigma=0.5,
        blur_every=4,
        jitter=jitter,
        settle=0.1,
        octaves=3,
        start_noise=0.02,
    )
    if len(sizes) != 2:
        return replace(common, gradient_blur=(2.0, 0.6))
    return replace(
        common,
        rivals=0.5,
        rate_end=1 / 6,
        views=2,
        zoom=(0.4, 1.0),
        mirror=True,
        contrast=0.3,
        spectrum=(1.2, 0.8),
        lowest_frequency=2.0,
        spectrum_limit=0.2,
        chroma=0.3 if channels == 3 else 1.0,
        settle=0.0,
        average=0.2,
    )


def _yosinski(steps: int, size: float, **settings: Any) -> Settings:
    """Published regularisation, by steps of a mean size in 0 to 255.

    The published rates, 100 or a rise of 2 a step, are made for the gradients of one network. Those
    of other networks are smaller by orders: the regularisation then wipes out every step.
    """
    return Settings(
        steps=steps,
        policy=Policy.NORMALIZED,
        rate=size / _BYTE,
        start_noise=10 / _BYTE,
        **settings,
    )


_PRESETS: Mapping[str, Callable[[tuple[int, ...], int], Settings]] = {
    "octaves": _octaves,
    "simonyan": lambda sizes, channels: Settings(
        steps=200, policy=Policy.CONSTANT, rate=0.1, l2=0.1
    ),
    "yosinski_1": lambda sizes, channels: _yosinski(
        500, 4, blur_sigma=0.5, blur_every=4, norm_percentile=50
    ),
    "yosinski_2": lambda sizes, channels: _yosinski(750, 25, decay=0.3, norm_percentile=20),
    "yosinski_3": lambda sizes, channels: _yosinski(
        1000, 5, decay=1e-4, blur_sigma=1.0, blur_every=4
    ),
    "yosinski_4": lambda sizes, channels: _yosinski(
        1000, 5, blur_sigma=0.5, blur_every=4, contribution_percentile=90
    ),
}


def preset(name: str, sizes: tuple[int, ...], channels: int = 1) -> Settings:
    """A named preset for inputs of these spatial sizes (none for a flat vector) and channels."""
    return _PRESETS[name](sizes, channels)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """`(N,)` values shaped to multiply `like`, `(N, ...)`."""
    return values.view(-1, *(1,) * (like.dim() - 1))


def ascend(z: Tensor, gradient: Tensor, step: int, settings: Settings, axes: Axes) -> Tensor:
    """One step after the gradient was taken at (clipped) `z`: ascent, decay, blur, thresholds.

    Args:
        z, gradient: `(N, *shape)`; a row's step depends on that row alone.
        step: its number, from 0.
    """
    size, rate_now = gradient.flatten(1), settings.rate_at(step)
    tiny = torch.finfo(gradient.dtype).tiny
    match settings.policy:
        case Policy.CONSTANT:
            rate = torch.full_like(size[:, 0], rate_now)
        case Policy.PROGRESS:
            rate = (settings.progress / size.square().sum(1).clamp_min(tiny)).clamp(max=rate_now)
        case Policy.NORMALIZED:
            rate = rate_now / size.abs().mean(1).clamp_min(tiny)
    z = (z + per_row(rate, z) * gradient) * (1 - settings.decay)
    if settings.blur_every and step % settings.blur_every == 0:
        z = blur(z, axes, settings.blur_sigma)
    if settings.spectrum_limit:
        z = limited(z, axes, settings.spectrum_limit)
    if settings.norm_percentile:
        z = _keep_large(z, pixels(z.square(), axes).sqrt(), settings.norm_percentile)
    if settings.contribution_percentile:
        share = pixels(z * gradient, axes).abs()
        z = _keep_large(z, share, settings.contribution_percentile)
    return z


def _keep_large(z: Tensor, importance: Tensor, percentile: float) -> Tensor:
    threshold = torch.quantile(importance.flatten(1), percentile / 100, dim=1)
    return torch.where(importance < per_row(threshold, importance), 0, z)
