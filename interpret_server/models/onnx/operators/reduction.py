"""Reductions over axes."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..call import Call
from ..registry import operator
from ..values import Maybe, Output, Value


def sum_over(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """The sum, in the type of `x`."""
    return x.sum(tuple(axes), keepdim=keep, dtype=x.dtype)


def mean_over(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """The mean; of integers, rounded towards zero."""
    if x.is_floating_point():
        return x.mean(tuple(axes), keepdim=keep)
    count = math.prod(x.shape[axis] for axis in axes)
    return torch.div(sum_over(x, axes, keep), count, rounding_mode="trunc")


def product_over(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """The product, in the type of `x`."""
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def maximum_over(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """The maximum; of nothing, the smallest number."""
    return x.amax(tuple(axes), keepdim=keep) if x.numel() else _of_nothing(x, axes, keep, True)


def minimum_over(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """The minimum; of nothing, the largest number."""
    return x.amin(tuple(axes), keepdim=keep) if x.numel() else _of_nothing(x, axes, keep, False)


def _of_nothing(x: Tensor, axes: Sequence[int], keep: bool, lowest: bool) -> Tensor:
    shape = x.sum(tuple(axes), keepdim=keep).shape
    if x.is_floating_point():
        return x.new_full(shape, -math.inf if lowest else math.inf)
    if x.dtype is torch.bool:
        return x.new_full(shape, not lowest)
    limits = torch.iinfo(x.dtype)
    return x.new_full(shape, limits.min if lowest else limits.max)


def absolute_sum_over(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """The sum of magnitudes."""
    return sum_over(x.abs(), axes, keep)


def norm_over(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """The Euclidean norm."""
    wide = x if x.is_floating_point() else x.double()
    norm: Tensor = torch.linalg.vector_norm(wide, 2, tuple(axes), keep)
    return norm.to(x.dtype)


def square_sum_over(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """The sum of squares."""
    return sum_over(x * x, axes, keep)


def log_sum_over(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """The logarithm of the sum."""
    return sum_over(x, axes, keep).log()


def log_sum_exp_over(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    """The logarithm of the sum of exponentials."""
    return torch.logsumexp(x, tuple(axes), keepdim=keep)


Reduction = Callable[[Tensor, Sequence[int], bool], Tensor]
_REDUCTIONS: Mapping[str, tuple[str, Reduction]] = {
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


def reduce_over(x: Tensor, reduction: Reduction, axes: Sequence[int] | None, keep: bool) -> Tensor:
    """A reduction over some axes, or over all."""
    if not x.dim():
        return reduction(x.reshape(1), (0,), False)
    return reduction(x, axes or range(x.dim()), keep)


def reduce_nothing(x: Tensor, reduction: Reduction) -> Tensor:
    """A reduction over no axis at all, element by element."""
    return reduction(x.unsqueeze(0), (0,), False)


@operator(*_REDUCTIONS)
def reduce(call: Call, x: Value, axes: Maybe = None) -> Output:
    kind, reduction = _REDUCTIONS[call.operator]
    along = call.integers("axes") if axes is None else call.items(axes)
    none = along is None or (isinstance(along, list) and not along)
    if none and call.integer("noop_with_empty_axes"):
        return call.function(reduce_nothing, x, reduction, kind=kind)
    keep = bool(call.integer("keepdims", 1))
    return call.function(reduce_over, x, reduction, along, keep, kind=kind)


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
    )
