"""Multipliers of one operator between two sets of arguments."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import combinations
from math import comb

import torch
from torch import Tensor

from .operation import Gradients, Operation, gradient_at, placed
from .operators import Kind
from .tape import Step

_aten = torch.ops.aten
_NEAR = 1e-9  # of the values' size: below it a quotient of differences is rounding alone
_NODES = 32  # gradients between the two ends, for operators without a rule of their own
_MOST_TOGETHER = 3  # arguments of one pointwise operator that secants are taken of


def multipliers_of(operation: Operation, gradients: Gradients) -> Gradients:
    """Multipliers of what an operation reads, for those of what it gives.

    For multipliers m of the arguments and g of the results,
    `sum(m * (x - baseline)) = sum(g * (f(x) - f(baseline)))`.

    Args:
        operation: to pass back through.
        gradients: of its results, in order; None for those without.

    Raises:
        FailedPrecondition: the operator has no derivative and no rule.
    """
    if not operation.moving:
        return [None] * len(operation.layouts)
    return _RULES[operation.step.kind](operation, gradients)


def _linear(operation: Operation, gradients: Gradients) -> Gradients:
    direct = _direct(operation, gradients[0])
    if direct is not None:
        return placed(operation, [direct])
    return placed(operation, gradient_at(operation, operation.numbers()[0], gradients))


def _direct(operation: Operation, gradient: Tensor | None) -> Tensor | None:
    """The gradient of a matrix product or a convolution by one side, without computing it again."""
    step = operation.step
    packet, reads = step.operator.overloadpacket, operation.moving
    if gradient is None or len(reads) != 1 or len(step.reads) != 1 or step.kwargs:
        return None
    if packet is _aten.convolution and isinstance(step.args[1], Tensor):
        rest = step.args[3:]
        blank = operation.layouts[0].blank()
        wanted = [True, False, False]
        arguments = (gradient, blank, step.args[1], None, *rest, wanted)
        found: Tensor = _aten.convolution_backward(*arguments)[0]
        return found
    sides = {_aten.mm: 0, _aten.bmm: 0, _aten.addmm: 1, _aten.baddbmm: 1}.get(packet)
    if sides is None:
        return None
    left, right = step.args[sides : sides + 2]
    if isinstance(right, Tensor):
        return gradient @ right.mT if not isinstance(left, Tensor) else None
    return left.mT @ gradient if isinstance(left, Tensor) else None


def _product(operation: Operation, gradients: Gradients) -> Gradients:
    ends = zip(*operation.numbers(), strict=True)
    middle = [
        (x + baseline) / 2 if index in operation.moving else x
        for index, (x, baseline) in enumerate(ends)
    ]
    return placed(operation, gradient_at(operation, middle, gradients))


def _piecewise(operation: Operation, gradients: Gradients) -> Gradients:
    return _secants(operation, gradients, None)


def _pointwise(operation: Operation, gradients: Gradients) -> Gradients:
    return _secants(operation, gradients, torch.float64)


def _secants(operation: Operation, gradients: Gradients, dtype: torch.dtype | None) -> Gradients:
    """Slopes between the two ends; of several arguments, their Shapley values over those."""
    gradient, moving = gradients[0], operation.moving
    if gradient is None:
        return [None] * len(operation.layouts)
    if len(moving) > _MOST_TOGETHER:
        return _on_the_way(operation, gradients)
    ours, theirs = operation.ends(dtype)
    corners = {
        chosen: _first(operation, _mixed(ours, theirs, chosen), dtype)
        for count in range(len(moving) + 1)
        for chosen in combinations(moving, count)
    }
    found = []
    for index in moving:
        without = [chosen for chosen in corners if index not in chosen]
        weights = [1 / (len(moving) * comb(len(moving) - 1, len(chosen))) for chosen in without]
        rise = _weighed(
            weights,
            [
                _difference(corners[tuple(sorted((*chosen, index)))], corners[chosen])
                for chosen in without
            ],
        )
        x, baseline = (_number(values[index], rise) for values in (ours, theirs))
        run = _difference(x, baseline)
        near = run.abs() <= _NEAR * (x.abs() + baseline.abs())
        slope = rise / torch.where(near, torch.ones_like(run), run)
        if bool(near.any()):
            ends = [_mixed(ours, theirs, (*chosen, index)) for chosen in without]
            tangents = [_tangent(operation, values, index, rise) for values in ends]
            slope = torch.where(near, _weighed(weights, tangents), slope)
        share = gradient.to(slope.dtype) * slope
        found.append(share.sum_to_size(ours[index].shape).to(gradient.dtype))
    return placed(operation, found)


def _weighed(weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total


def _mixed(ours: Sequence[Tensor], theirs: Sequence[Tensor], chosen: Sequence[int]) -> list[Tensor]:
    """The arguments at the baseline, with the chosen ones at the input."""
    pairs = enumerate(zip(ours, theirs, strict=True))
    return [x if index in chosen else baseline for index, (x, baseline) in pairs]


def _first(operation: Operation, values: Sequence[Tensor], dtype: torch.dtype | None) -> Tensor:
    result: Tensor = operation.call(values)[0]
    return result if result.is_floating_point() else result.to(dtype or torch.float64)


def _difference(one: Tensor, other: Tensor) -> Tensor:
    return torch.where(one == other, torch.zeros_like(one), one - other)


def _number(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype).expand(like.shape)


def _tangent(operation: Operation, values: Sequence[Tensor], index: int, like: Tensor) -> Tensor:
    """The derivative by one argument; 0 where there is none."""
    if not values[index].is_floating_point():
        return torch.zeros_like(like)
    leaf = values[index].detach().expand(like.shape).contiguous().requires_grad_()
    with torch.enable_grad():
        result = operation.call([*values[:index], leaf, *values[index + 1 :]])[0]
        if not result.requires_grad:
            return torch.zeros_like(like)
    (slope,) = torch.autograd.grad(result.sum(), leaf)
    return torch.nan_to_num(slope.to(like.dtype), nan=0.0, posinf=0.0, neginf=0.0)


def _largest(operation: Operation, gradients: Gradients) -> Gradients:
    """The largest value's rise goes to where it is at the input, its fall to where it was.

    Each of these shares is between 0 and the change of that value, so that no multiplier leaves
    0 to 1.
    """
    gradient = gradients[0]
    if gradient is None:
        return [None] * len(operation.layouts)
    (x,), (baseline,) = operation.ends(None)
    name = operation.step.operator.overloadpacket.__name__
    if name in ("min", "amin"):
        x, baseline = -x, -baseline
    if "pool" in name:
        axes = [axis - x.dim() for axis in range(x.dim() - (3 if "3d" in name else 2), x.dim())]
        places = [operation.call([values])[1].flatten(axes[0]) for values in (x, baseline)]
    else:
        axes = _reduced(operation.step, x.dim())
        places = [_flat(values, axes).argmax(-1, keepdim=True) for values in (x, baseline)]
    ours, theirs = _flat(x, axes), _flat(baseline, axes)
    g = gradient.reshape(places[0].shape)
    top, old_top = ours.gather(-1, places[0]), theirs.gather(-1, places[1])
    change = top - old_top
    risen, fallen = top - theirs.gather(-1, places[0]), ours.gather(-1, places[1]) - old_top
    up = torch.where(risen == 0, (change == 0).to(g.dtype), change.clamp(min=0) / risen)
    down = torch.where(fallen == 0, torch.zeros_like(g), change.clamp(max=0) / fallen)
    found = torch.zeros_like(ours).scatter_add(-1, places[0], g * up)
    found = found.scatter_add(-1, places[1], g * down)
    kept = [axis for axis in range(x.dim()) if axis - x.dim() not in axes]
    order = [*kept, *(axis + x.dim() for axis in axes)]
    moved = found.reshape([x.shape[axis] for axis in order])
    return [moved.permute([order.index(axis) for axis in range(x.dim())])]


def _reduced(step: Step, dimensions: int) -> list[int]:
    """The axes that `max`, `amax` and the like reduce, counted from the end."""
    given = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", ())
    axes = [given] if isinstance(given, int) else list(given)
    return [axis % dimensions - dimensions for axis in axes or range(dimensions)]


def _flat(values: Tensor, axes: Sequence[int]) -> Tensor:
    """With some axes as one, the last."""
    kept = [axis for axis in range(values.dim()) if axis - values.dim() not in axes]
    moved = values.permute([*kept, *(axis + values.dim() for axis in axes)])
    return moved.flatten(len(kept))


def _log_softmax(operation: Operation, gradients: Gradients) -> Gradients:
    (x,), (baseline,) = operation.ends(torch.float64)
    axis, gradient = operation.step.args[1], gradients[0]
    assert gradient is not None
    total = gradient.sum(axis, keepdim=True)
    return [gradient - (_shares(x, baseline, [axis]) * total).to(gradient.dtype)]


def _softmax(operation: Operation, gradients: Gradients) -> Gradients:
    """`exp(x - log sum exp x)`: the secant of exp, then as for its logarithm."""
    (x,), (baseline,) = operation.ends(torch.float64)
    axis, gradient = operation.step.args[1], gradients[0]
    assert gradient is not None
    logs = x.log_softmax(axis), baseline.log_softmax(axis)
    inner = (gradient * _log_mean(*logs)).nan_to_num()
    total = inner.sum(axis, keepdim=True)
    return [(inner - _shares(x, baseline, [axis]) * total).to(gradient.dtype)]


def _log_sum_exp(operation: Operation, gradients: Gradients) -> Gradients:
    (x,), (baseline,) = operation.ends(torch.float64)
    gradient = gradients[0]
    assert gradient is not None
    axes = _reduced(operation.step, x.dim())
    shape = [1 if axis - x.dim() in axes else size for axis, size in enumerate(x.shape)]
    shares = _shares(x, baseline, axes)
    return [(shares * gradient.reshape(shape)).to(gradient.dtype)]


def _shares(x: Tensor, baseline: Tensor, axes: list[int]) -> Tensor:
    """Multipliers of `log sum exp`: the secants of exp, over that of exp at the result."""
    ends = x.logsumexp(axes, keepdim=True), baseline.logsumexp(axes, keepdim=True)
    largest = torch.maximum(*ends)
    parts = _log_mean(x - largest, baseline - largest)
    return (parts / _log_mean(ends[0] - largest, ends[1] - largest)).nan_to_num()


def _log_mean(log_one: Tensor, log_other: Tensor) -> Tensor:
    """`(a - b) / (log a - log b)` of logarithms, without cancellation; a where both are equal."""
    apart = _difference(log_one, log_other).abs()
    factor = torch.where(apart == 0, torch.ones_like(apart), -torch.expm1(-apart) / apart)
    return torch.maximum(log_one, log_other).exp() * factor


def _on_the_way(operation: Operation, gradients: Gradients) -> Gradients:
    """The mean gradient on the straight line between the arguments (Gauss-Legendre).

    Exact for polynomials, and for whatever has one gradient everywhere, which two places tell.
    """
    ours, theirs = operation.numbers()

    def at(place: float) -> list[Tensor]:
        pairs = enumerate(zip(ours, theirs, strict=True))
        values = [
            torch.lerp(baseline, x, place) if index in operation.moving else x
            for index, (x, baseline) in pairs
        ]
        return gradient_at(operation, values, gradients)

    (first, weight), *rest, (last, _) = _quadrature()
    begin, end = at(first), at(last)
    if all(map(torch.equal, begin, end)):
        return placed(operation, begin)
    means = [weight * (one + other) for one, other in zip(begin, end, strict=True)]
    for place, weight in rest:
        means = [mean + weight * value for mean, value in zip(means, at(place), strict=True)]
    return placed(operation, means)


def _along(operation: Operation, gradients: Gradients) -> Gradients:
    """The same, with what it misses along an axis shared out by the squares of the changes."""
    (found,) = _on_the_way(operation, gradients)
    gradient, step = gradients[0], operation.step
    if gradient is None or found is None:
        return [found]
    (x,), (baseline,) = operation.ends(None)
    position = 2 if step.operator.overloadpacket is _aten.topk else 1
    axis = step.args[position] if len(step.args) > position else step.kwargs.get("dim", -1)
    change = _difference(x, baseline)
    risen = _difference(operation.call([x])[0], operation.call([baseline])[0])
    missed = (gradient * risen).sum(axis, keepdim=True) - (found * change).sum(axis, keepdim=True)
    squares = change.square().sum(axis, keepdim=True)
    share = torch.where(squares == 0, torch.zeros_like(missed), missed / squares)
    return [found + share * change]


@lru_cache(maxsize=1)
def _quadrature() -> list[tuple[float, float]]:
    """Places in [0, 1], ascending, and weights, alike from both ends."""
    from numpy.polynomial.legendre import leggauss

    places, weights = leggauss(_NODES)
    return list(zip(((places + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))


_RULES: dict[Kind, Callable[[Operation, Gradients], Gradients]] = {
    Kind.LINEAR: _linear,
    Kind.PRODUCT: _product,
    Kind.PIECEWISE: _piecewise,
    Kind.POINTWISE: _pointwise,
    Kind.LARGEST: _largest,
    Kind.SOFTMAX: _softmax,
    Kind.LOG_SOFTMAX: _log_softmax,
    Kind.LOG_SUM_EXP: _log_sum_exp,
    Kind.ALONG: _along,
    Kind.OTHER: _on_the_way,
}
