"""The nearest point to the input on the far side of a hyperplane, no more than a step away.

Points are `(n, D)`, in units of the bounds' width. In every norm the problem is solved by its dual:
a step that is pushed along the normal as far as needed, and pulled back to the input as strongly as
the length of a step allows. Both grow monotonically, so that bisection finds them.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .norms import NormName

_PUSHES, _PULLS = 16, 12  # bisections
_WEAKEST_PUSH, _STRONGEST_PUSH = -24.0, 4.0  # powers of two; of the latter times the root of D
_ROUNDING = 1e-6
_TINY = 1e-30


class Step(NamedTuple):
    """What a step is to do; all rows of their own.

    Args:
        back: `(n, D)`, from the point to the input.
        normal: `(n, D)`, of the hyperplane.
        gain: `(n,)`, that `normal . step` is to reach.
        lower, upper: `(n, D)`, the bounds of the step.
        radius: `(n,)`, its L2 length at most.
    """

    back: Tensor
    normal: Tensor
    gain: Tensor
    lower: Tensor
    upper: Tensor
    radius: Tensor


def nearest_step(norm: NormName, step: Step) -> Tensor:
    """The step `(n, D)` to the point that is nearest to the input in a norm.

    Values that return to the input are equal to those of `back`. Where no step of that length
    gains enough, it goes in the direction of the shortest that does, or of the corner that gains
    most.

    Source: the problem is that of Brendel, Rauber, Kümmerer, Ustyuzhaninov & Bethge 2019,
    "Accurate, reliable and fast robustness evaluation", section 2, equation 1.
    """
    length = torch.linalg.vector_norm(step.normal, dim=1).clamp(min=_TINY)
    plane = step._replace(normal=step.normal / length.unsqueeze(1), gain=step.gain / length)
    pull, none, low, high = _FORMS[norm](plane.back)

    def towards(strength: Tensor) -> Tensor:
        return _pushed(plane, lambda push: pull(plane.back, push, strength.unsqueeze(1)))

    shortest = _pushed(plane, lambda push: push) if none is None else towards(none)
    size = torch.linalg.vector_norm(shortest, dim=1)
    fits = size <= plane.radius
    share = torch.where(fits, 1, plane.radius / size.clamp(min=_TINY))
    best = shortest * share.unsqueeze(1)
    for number in range(_PULLS):
        middle = (low + high) / 2 if number else high
        found = towards(torch.exp2(middle))
        inside = torch.linalg.vector_norm(found, dim=1) <= plane.radius
        gained = _gain(plane, found) >= plane.gain - _ROUNDING * plane.gain.abs()
        good = inside & gained
        best = torch.where((good & fits).unsqueeze(1), found, best)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return best


def _gain(plane: Step, found: Tensor) -> Tensor:
    return (plane.normal * found).sum(1)


def _pushed(plane: Step, at: Callable[[Tensor], Tensor]) -> Tensor:
    """The step for the smallest push along the normal that gains enough, within the bounds."""

    def found(push: Tensor) -> Tensor:
        return at(push.unsqueeze(1) * plane.normal).clamp(plane.lower, plane.upper)

    nothing = torch.zeros_like(plane.gain)
    enough = _gain(plane, found(nothing)) >= plane.gain
    low = torch.full_like(plane.gain, _WEAKEST_PUSH)
    high = torch.full_like(low, _STRONGEST_PUSH + math.log2(plane.normal.shape[1]) / 2)
    for _ in range(_PUSHES):
        middle = (low + high) / 2
        gained = _gain(plane, found(torch.exp2(middle))) >= plane.gain
        low, high = torch.where(gained, low, middle), torch.where(gained, middle, high)
    return found(torch.where(enough, 0, torch.exp2(high)))


class _Form(NamedTuple):
    """How a norm pulls.

    Args:
        pull: from `back`, the push and the strength `(n, 1)` to the step, before the bounds.
        none: strength that pulls least; None: no pull at all.
        low, high: `(n,)`, powers of two between which the strength is sought.
    """

    pull: Callable[[Tensor, Tensor, Tensor], Tensor]
    none: Tensor | None
    low: Tensor
    high: Tensor


def _all(back: Tensor, value: float) -> Tensor:
    return torch.full_like(back[:, 0], value)


def _l2(back: Tensor) -> _Form:
    return _Form(
        lambda back, push, share: push + share * back, None, _all(back, -12), _all(back, 0)
    )


def _l1(back: Tensor) -> _Form:
    def pull(back: Tensor, push: Tensor, most: Tensor) -> Tensor:
        left = back - push
        return torch.where(left.abs() <= most, back, push + left.clamp(-most, most))

    return _Form(pull, None, _all(back, -20), _all(back, 6))


def _l0(back: Tensor) -> _Form:
    def pull(back: Tensor, push: Tensor, most: Tensor) -> Tensor:
        return torch.where((back - push).abs() <= most, back, push)

    return _Form(pull, None, _all(back, -20), _all(back, 6))


def _linf(back: Tensor) -> _Form:
    """The pull is into a box around the input; its half side is one over the strength."""

    def pull(back: Tensor, push: Tensor, strength: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(push, back + 1 / strength), back - 1 / strength)

    side = back.abs().amax(1).clamp(min=2.0**-20)
    return _Form(pull, _all(back, 1), _all(back, 0), 12 - side.log2())


_FORMS: Mapping[NormName, Callable[[Tensor], _Form]] = {
    "l2": _l2,
    "l1": _l1,
    "l0": _l0,
    "linf": _linf,
}
