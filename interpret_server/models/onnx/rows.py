"""Dynamic quantisation, whose range over a batch is made one range per row.

A file takes the range of all rows together, so that a row's answer depends on its neighbours. The
graph computes for each row what the file computes for that row alone: scales and zero points keep
the batch axis, and every operator that reads one must be known to broadcast it.
"""

from collections.abc import Sequence

from torch import Tensor, fx

from .builder import Builder
from .call import Call
from .values import Maybe, Value

_AXIS = "row_axis"
_QUANTISED = frozenset(
    {
        "MatMulInteger",
        "ConvInteger",
        "DequantizeLinear",
        "QuantizeLinear",
        "QLinearMatMul",
        "MatMulIntegerToFloat",
        "QAttention",
    }
)
_ELEMENTWISE = frozenset({"Mul", "Div", "Cast", "Identity", "Reciprocal"})


class RowByRow(Exception):
    """The rows of a batch can be kept apart only by running one at a time."""


def range_axes(call: Call, x: Value) -> list[int] | None:
    """The axes that a dynamic range of `x` is taken over: those of a row; None for all.

    Raises:
        RowByRow: no axis is known to be the batch.
    """
    builder = call.builder
    if call.faithful or not isinstance(x, fx.Node):
        return None
    builder.mixes_rows = True
    if not builder.rows_apart:
        return None
    both = builder.examples(x)
    if both is None:
        raise RowByRow
    first, second = both
    if first.shape == second.shape:  # the file fixes the batch size
        return None
    sizes = list(zip(first.shape, second.shape, strict=True))
    batch = [axis for axis, pair in enumerate(sizes) if pair == builder.batches]
    if len(batch) != 1 or len(sizes) < 2:
        raise RowByRow
    return [axis for axis in range(len(sizes)) if axis != batch[0]]


def keep_rows(value: Value, axes: Sequence[int] | None) -> None:
    """Note that a value is one number per row, of an axis that `axes` leaves out."""
    if isinstance(value, fx.Node) and axes is not None:
        value.meta[_AXIS] = next(axis for axis in range(len(axes) + 1) if axis not in axes)


def follow_rows(
    operator: str, inputs: Sequence[Maybe], results: Sequence[Maybe], builder: Builder
) -> None:
    """Check that an operator treats one number per row as it treated one number.

    Raises:
        RowByRow: it may not.
    """
    marked = [x for x in inputs if isinstance(x, fx.Node) and _AXIS in x.meta]
    if not marked:
        return
    scale = marked[0]
    rank, axis = len(builder.shape(scale) or ()), scale.meta[_AXIS]
    if any(x.meta[_AXIS] != axis or len(builder.shape(x) or ()) != rank for x in marked):
        raise RowByRow
    others = [x for x in inputs if x is not None and not any(x is item for item in marked)]
    values = [x for x in others if isinstance(x, fx.Node)]
    constants = [x for x in others if isinstance(x, Tensor)]
    if len(values) + len(constants) < len(others):
        raise RowByRow
    scaled = values[:1] if operator == "QAttention" else values  # the others are masks
    if any(not _is_aligned(builder, x, scale, axis) for x in scaled):
        raise RowByRow
    if operator in _QUANTISED and values:
        return
    if operator not in _ELEMENTWISE or any(x.dim() > rank for x in constants):
        raise RowByRow
    for result in results:
        if not values and isinstance(result, fx.Node):
            result.meta[_AXIS] = axis


def _is_aligned(builder: Builder, x: fx.Node, scale: fx.Node, axis: int) -> bool:
    left, right = builder.examples(x), builder.examples(scale)
    if left is None or right is None or left[0].dim() != right[0].dim():
        return False
    return all(a.shape[axis] == b.shape[axis] for a, b in zip(left, right, strict=True))
