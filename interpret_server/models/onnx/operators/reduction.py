"""Reductions over axes."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..call import Call
from ..registry import operator
from ..values import Maybe, Output, Value

Axes = Sequence[int] | None


def _along(x: Tensor, axes: Axes) -> tuple[int, ...]:
    return tuple(axes or range(x.dim())) if x.dim() else ()


def sum_over(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The sum, in the type of `x`."""
    return x.sum(_along(x, axes), keepdim=keep, dtype=x.dtype)


def mean_over(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The mean; of integers, rounded towards zero."""
    if x.is_floating_point():
        return x.mean(_along(x, axes), keepdim=keep)
    count = math.prod(x.shape[axis] for axis in _along(x, axes))
    return torch.div(sum_over(x, axes, keep), count, rounding_mode="trunc")


def product_over(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The product, in the type of `x`."""
    for axis in sorted((axis % x.dim() for axis in _along(x, axes)), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def maximum_over(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The maximum; of nothing, the smallest number."""
    if not x.numel():
        return _of_nothing(x, axes, keep, lowest=True)
    return x.amax(_along(x, axes), keepdim=keep)


def minimum_over(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The minimum; of nothing, the largest number."""
    if not x.numel():
        return _of_nothing(x, axes, keep, lowest=False)
    return x.amin(_along(x, axes), keepdim=keep)


def _of_nothing(x: Tensor, axes: Axes, keep: bool, *, lowest: bool) -> Tensor:
    shape = x.sum(_along(x, axes), keepdim=keep).shape
    if x.is_floating_point():
        return x.new_full(shape, -math.inf if lowest else math.inf)
    if x.dtype is torch.bool:
        return x.new_full(shape, not lowest)
    limits = torch.iinfo(x.dtype)
    return x.new_full(shape, limits.min if lowest else limits.max)


def absolute_sum_over(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The sum of magnitudes."""
    return sum_over(x.abs(), axes, keep)


def norm_over(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The Euclidean norm."""
    wide = x if x.is_floating_point() else x.double()
    norm: Tensor = torch.linalg.vector_norm(wide, 2, _along(x, axes), keep)
    return norm.to(x.dtype)


def square_sum_over(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The sum of squares."""
    return sum_over(x * x, axes, keep)


def log_sum_over(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The logarithm of the sum."""
    return sum_over(x, axes, keep).log()


def log_sum_exp_over(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    """The logarithm of the sum of exponentials."""
    return torch.logsumexp(x, _along(x, axes), keepdim=keep) if x.dim() else x


_REDUCTIONS: Mapping[str, tuple[str, Callable[[Tensor, Axes, bool], Tensor]]] = {
    "ReduceSum": ("sum", sum_over),
    "ReduceMean": ("mean", mean_over),
    "ReduceProd": ("prod", product_over),
    "ReduceMax": ("amax", maximum_over),
    "ReduceMin": ("amin", minimum_over),
    "ReduceL1": ("norm", absolute_sum_over),
    "ReduceL2": ("norm", norm_over),
    "ReduceSumSquare": ("sum_square", square_sum_over),
    "ReduceLogSum": ("log_sum", log_sum_over),
    "ReduceLogSumExp": ("logsumexp", log_sum_exp_over),
}


@operator(*_REDUCTIONS)
def reduce(call: Call, x: Value, axes: Maybe = None) -> Output:
    kind, reduction = _REDUCTIONS[call.operator]
    along = call.integers("axes") if axes is None else call.items(axes)
    none = along is None or along == [] or (axes is not None and call.shape(axes) == (0,))
    if none and call.integer("noop_with_empty_axes"):
        row = call.function(torch.unsqueeze, x, 0, kind="unsqueeze")
        return call.function(reduction, row, [0], False, kind=kind)
    return call.function(reduction, x, along, bool(call.integer("keepdims", 1)), kind=kind)


def arg_extreme(x: Tensor, largest: bool, axis: int, keep: bool, last: bool) -> Tensor:
    """The position of the first or last extreme along an axis."""
    if last:
        return x.shape[axis] - 1 - arg_extreme(x.flip(axis), largest, axis, keep, False)
    return x.argmax(axis, keepdim=keep) if largest else x.argmin(axis, keepdim=keep)


@operator("ArgMax", "ArgMin")
def arg(call: Call, x: Value) -> Output:
    largest = call.operator == "ArgMax"
    return call.function(
        arg_extreme,
        x,
        largest,
        call.integer("axis"),
        bool(call.integer("keepdims", 1)),
        bool(call.integer("select_last_index")),
        kind="argmax" if largest else "argmin",
    )


def top(x: Tensor, count: Sequence[int], axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """The `count` first elements in order along an axis, with their positions."""
    values, index = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count[0]), index.narrow(axis, 0, count[0])


@operator("TopK")
def top_k(call: Call, x: Value, count: Maybe = None) -> Output:
    return call.several(
        top,
        x,
        [call.integer("k")] if count is None else call.items(count),
        call.integer("axis", -1),
        bool(call.integer("largest", 1)),
        count=2,
        kind="topk",
    )
