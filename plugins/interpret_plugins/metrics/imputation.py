"""Places of images and signals guessed from the places around them."""

import torch
from torch import Tensor

_MOST_STEPS = 10_000


def impute(images: Tensor, removed: Tensor) -> Tensor:
    """Images in which every removed place is the weighted mean of those around it.

    Neighbours weigh 1/6, diagonal ones 1/12, over the sum of those that there are. The linear
    system is solved by conjugate gradients, each image and channel by itself, to the precision of
    their type.

    Args:
        images: `(N, C, H, W)`.
        removed: `(N, H, W)` bool, the places to guess; some place of each row must be left.
    """
    channels = images.shape[1]
    values = images.flatten(0, 1)
    free = removed.repeat_interleave(channels, 0).to(images)
    weight = _around(torch.ones_like(values[:1]))

    def apply(guess: Tensor) -> Tensor:
        return free * (weight * guess - _around(guess))

    known = values * (1 - free)
    right = free * _around(known)
    guess = free * (_sum(known) / _sum(1 - free))
    rest = right - apply(guess)
    direction, size = rest, _sum(rest * rest)
    enough = _sum(right * right) * torch.finfo(images.dtype).eps ** 2 * 4
    for _ in range(_MOST_STEPS):
        going = size > enough
        if not going.any():
            break
        image = apply(direction)
        # A solved image takes no further step, whatever the others need.
        step = torch.where(going, size / _sum(direction * image).where(going, size), 0)
        guess = guess + step * direction
        rest = rest - step * image
        following = _sum(rest * rest)
        direction = rest + direction * torch.where(going, following / size, 0)
        size = torch.where(going, following, size)
    return (known + guess).reshape(images.shape)


def _around(values: Tensor) -> Tensor:
    """The weighted sum around each place.

    [1 2 1] along both axes gives 12 times that, and 4 times the place itself.
    """
    across = 2 * values
    across[..., 1:] += values[..., :-1]
    across[..., :-1] += values[..., 1:]
    both = 2 * across
    both[..., 1:, :] += across[..., :-1, :]
    both[..., :-1, :] += across[..., 1:, :]
    return (both - 4 * values) / 12


def _sum(values: Tensor) -> Tensor:
    return values.sum((1, 2), keepdim=True)
