"""The colours of images: brightness alone, and the colours of one image given to another."""

import torch
from torch import Tensor

from .spatial import Axes

_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, ITU-R BT.601


def brightened(x: Tensor, other: Tensor, axes: Axes) -> Tensor:
    """`x` with the brightness of `other`, and its own colours.

    Brightness is the luma of three channels, taken as red, green and blue; the mean of any other
    number. What has no channel axis is `other` as it is.
    """
    if len(axes.channels) != 1:
        return other
    (axis,) = axes.channels
    count = x.shape[axis]
    weights = _LUMA if count == len(_LUMA) else (1 / count,) * count
    view = [-1 if number == axis else 1 for number in range(x.dim())]
    change = ((other - x) * x.new_tensor(weights).view(view)).sum(axis, keepdim=True)
    return x + change


def recoloured(x: Tensor, other: Tensor, axes: Axes) -> Tensor:
    """`x` with each pixel mapped linearly, so that means and covariances are those of `other`.

    `x' = C_other^(1/2) C_x^(-1/2) (x - mean_x) + mean_other` (Gatys et al. 2016, "Preserving color
    in neural artistic style transfer", section on color histogram matching). What has no channel
    axis stays as it is; directions in which `x` does not vary are left out.
    """
    if len(axes.channels) != 1:
        return x
    (axis,) = axes.channels
    own, aim = (rows.movedim(axis, 1).flatten(2) for rows in (x, other))
    means = own.mean(2, keepdim=True), aim.mean(2, keepdim=True)
    mapping = _power(_covariance(aim), 0.5) @ _power(_covariance(own), -0.5)
    mapped = mapping @ (own - means[0]) + means[1]
    return mapped.reshape(x.movedim(axis, 1).shape).movedim(1, axis)


def _covariance(pixels: Tensor) -> Tensor:
    centred = pixels - pixels.mean(2, keepdim=True)
    return centred @ centred.mT / pixels.shape[2]


def _power(matrices: Tensor, exponent: float) -> Tensor:
    """Symmetric positive matrices to a power; what is 0 stays 0."""
    values, vectors = torch.linalg.eigh(matrices)
    least = values.amax(1, keepdim=True) * 10 * torch.finfo(values.dtype).eps
    powers = torch.where(values > least, values.clamp_min(1e-30) ** exponent, 0)
    found: Tensor = vectors * powers[:, None] @ vectors.mT
    return found
