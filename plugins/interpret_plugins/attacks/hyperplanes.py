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
    room = torch.where(slope > 0, (upper - x).flatten(1), (x - lower).flatten(1)).clamp_(min=0)
    speed = None if scale is None else scale.flatten(1)
    moved = _MOVES[norm](slope.abs(), room, change.abs(), speed)
    return (x + moved.copysign_(slope).reshape(x.shape)).clamp_(lower, upper)


def _together(slope: Tensor, room: Tensor, change: Tensor, speed: Tensor | None) -> Tensor:
    """How far each value moves where all move at their speeds until their room is used up.

    What they have made of the change by a time is concave and piecewise linear, so that Newton's
    steps from 0 come to the time of the whole change from below, after finitely many of them.
    """
    gain = slope if speed is None else slope * speed
    stop = room if speed is None else room / speed.clamp(min=_LEAST)
    time = (change / gain.sum(1).clamp(min=_LEAST)).unsqueeze(1)
    late = torch.ones_like(time, dtype=torch.bool)
    while late.any():
        left = change.unsqueeze(1) - (gain * torch.minimum(stop, time)).sum(1, keepdim=True)
        still = (gain * (stop > time)).sum(1, keepdim=True)
        later = time + left / still.clamp(min=_LEAST)
        # A row that has come to an end stays there, however long its mates take.
        late &= (still > 0) & (later > time)
        time = torch.where(late, later, time)
    moved = torch.minimum(time if speed is None else time * speed, room)
    return torch.where(slope > 0, moved, 0)


def _steepest_first(slope: Tensor, room: Tensor, change: Tensor, speed: Tensor | None) -> Tensor:
    """How far each value moves where the steepest use up their room before others move."""
    order = slope.argsort(dim=1, descending=True)
    steep, space = slope.gather(1, order), room.gather(1, order)
    before = (steep * space).cumsum(1) - steep * space
    left = (change.unsqueeze(1) - before).clamp(min=0)
    moved = torch.minimum(left / steep.clamp(min=_LEAST), space) * (steep > 0)
    return torch.zeros_like(moved).scatter(1, order, moved)


def _like_slope(slope: Tensor, room: Tensor, change: Tensor, speed: Tensor | None) -> Tensor:
    return _together(slope, room, change, slope)


_MOVES: Mapping[NormName, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "linf": _together,
    "l2": _like_slope,
    "l1": _steepest_first,
}
