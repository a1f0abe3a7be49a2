"""Rotation of images about their centre."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .spatial import Axes


def rotate(x: Tensor, axes: Axes, angles: Tensor) -> Tensor:
    """Row i turned by `angles[i]` in the plane of its last two spatial axes; differentiable.

    By linear interpolation; beyond the edges the row is mirrored with its edge pixel repeated. What
    has one spatial axis, or none, stays as it is.

    Args:
        angles: `(N,)` in radians, from the last axis but one towards the last, as `torch.rot90`.
    """
    if len(axes.spatial) < 2:
        return x
    plane = axes.spatial[-2:]
    moved = x.movedim(plane, (-2, -1))
    height, width = moved.shape[-2:]
    down = torch.arange(height).to(x) - (height - 1) / 2
    right = torch.arange(width).to(x) - (width - 1) / 2
    cos, sin = (turn.to(x)[:, None, None] for turn in (angles.cos(), angles.sin()))
    across = cos * right - sin * down[:, None]
    along = sin * right + cos * down[:, None]
    grid = torch.stack([2 * across / width, 2 * along / height], -1)
    turned = F.grid_sample(
        moved.flatten(1, -3), grid, "bilinear", padding_mode="reflection", align_corners=False
    )
    return turned.reshape(moved.shape).movedim((-2, -1), plane)
