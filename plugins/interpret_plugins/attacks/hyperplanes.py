"""The nearest point of a hyperplane within a box, for each norm; row by row."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .norms import NormName, per_row

_LEAST = 1e-30  # of a slope that a division may meet


def reach(
    norm: NormName,
    x: Tensor,
    normal: Tensor,
    change: Tensor,
    lower: Tensor,
    upper: Tensor,
    scale: Tensor | None = None,
) -> Tensor:
    """The nearest `z` in the box with `normal . (z - x) = change`; all `(N, *shape)`.

    Where no point of the box is far enough, the corner that comes closest.

    Args:
        norm: that distances are measured in.
        x: where to start, in the box.
        normal: of the hyperplane.
        change: `(N,)`, to be made in `normal . x`.
        lower, upper: of the box.
        scale: `(N, *shape)` above zero; distances in Linf are measured in units of it.

    Source: the optimality conditions of the projection, as in Croce & Hein 2020, "Minimally
    distorted Adversarial Examples with a Fast Adaptive Boundary Attack", section 2.
    """
    slope = (normal * per_row(change.sign(), normal)).flatten(1)
    room = torch.where(slope > 0, (upper - x).flatten(1), (x - lower).flatten(1)).clamp(min=0)
    speed = torch.ones_like(slope) if scale is None else scale.flatten(1)
    moved = _MOVES[norm](slope.abs(), room, change.abs(), speed)
    return (x + (slope.sign() * moved).reshape(x.shape)).clamp(lower, upper)


def _together(slope: Tensor, room: Tensor, change: Tensor, speed: Tensor) -> Tensor:
    """How far each value moves where all move at their speeds until their room is used up."""
    time = torch.where(slope > 0, room / speed.clamp(min=_LEAST), 0)  # at which a value stops
    order = time.argsort(dim=1)
    stops, gains = time.gather(1, order), (slope * speed).gather(1, order)
    # Just before the i-th stop, values i and later still move; those before have done their part.
    moving = gains.flip(1).cumsum(1).flip(1)
    done = (gains * stops).cumsum(1) - gains * stops
    reached = done + moving * stops
    place = (reached < change.unsqueeze(1)).sum(1, keepdim=True).clamp(max=slope.shape[1] - 1)
    left = change.unsqueeze(1) - done.gather(1, place)
    end = (left / moving.gather(1, place).clamp(min=_LEAST)).clamp(min=0)
    return torch.minimum(end * speed, room) * (slope > 0)


def _steepest_first(slope: Tensor, room: Tensor, change: Tensor, speed: Tensor) -> Tensor:
    """How far each value moves where the steepest use up their room before others move."""
    order = slope.argsort(dim=1, descending=True)
    steep, space = slope.gather(1, order), room.gather(1, order)
    before = (steep * space).cumsum(1) - steep * space
    left = (change.unsqueeze(1) - before).clamp(min=0)
    moved = torch.minimum(left / steep.clamp(min=_LEAST), space) * (steep > 0)
    return torch.zeros_like(moved).scatter(1, order, moved)


def _like_slope(slope: Tensor, room: Tensor, change: Tensor, speed: Tensor) -> Tensor:
    return _together(slope, room, change, slope)


_MOVES: Mapping[NormName, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "linf": _together,
    "l2": _like_slope,
    "l1": _steepest_first,
}
