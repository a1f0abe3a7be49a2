"""Pieces of one value that make it up are cut all at once, which changes no bit.

The gradient of a slice is the slice's within a tensor of zeros, and those of all slices are added
up; the gradient of `torch.split` and `torch.unbind` is one concatenation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import getitem
from typing import Any, cast

import torch
from torch import Tensor, fx

from .draft import Draft, function_name

_MOST_PIECES = 512


@dataclass(frozen=True)
class _Piece:
    """What `node` takes from an axis: `[start, end)`, up to the end where that is None."""

    node: fx.Node
    start: int
    end: int | None


def cut_at_once(draft: Draft) -> None:
    """Replace slices of one value along one axis that cover it, and selections of every index."""
    for source in list(draft.graph.nodes):
        shape = draft.shape(source)
        if shape is None or len(source.users) < 2:
            continue
        for axis in range(len(shape)):
            for find, replace in ((_selected, _unbind), (_slice, _split)):
                found = [find(user, source, axis, shape) for user in source.users]
                pieces = [piece for piece in found if piece is not None]
                if _cover(pieces, shape[axis]):
                    replace(draft, source, axis, pieces)
    draft.prune()


def separate(x: Tensor, starts: Sequence[int], end: int | None, axis: int) -> Sequence[Tensor]:
    """The slices of `x` that begin at `starts`, each up to the next one, the last up to `end`.

    Args:
        x: any tensor.
        starts: in ascending order, from 0.
        end: of the last slice; None for the end of `x`.
        axis: to cut.
    """
    size = x.shape[axis]
    if starts[-1] <= size and (end is None or size <= end):
        return torch.split(x, [b - a for a, b in pairwise((*starts, size))], axis)
    bounds = pairwise(min(bound, size) for bound in (*starts, size if end is None else end))
    return [x.narrow(axis, start, stop - start) for start, stop in bounds]


def _cover(pieces: Sequence[_Piece], size: int) -> bool:
    """Whether pieces are several that follow on one another from 0 to the axis's size."""
    kinds = {(p.start, p.end) for p in pieces}
    bounds = sorted((start, size if end is None else end) for start, end in kinds)
    return (
        1 < len(bounds) <= _MOST_PIECES
        and bounds[0][0] == 0
        and bounds[-1][1] >= size > bounds[-1][0]
        and all(before[1] == after[0] for before, after in pairwise(bounds))
    )


def _selected(node: fx.Node, source: fx.Node, axis: int, shape: tuple[int, ...]) -> _Piece | None:
    """A selection of one index, or a slice of width one whose axis is squeezed out."""
    if function_name(node) == "select" and node.args[0] is source and len(node.args) == 3:
        along, index = node.args[1:]
        if not _is_axis(along, axis, len(shape)) or not _is_natural(index):
            return None
        return _Piece(node, index, index + 1)  # type: ignore[arg-type, operator]
    piece = _slice(node, source, axis, shape)
    if piece is None or piece.end != piece.start + 1 or len(node.users) != 1:
        return None
    (user,) = node.users
    if function_name(user) != "squeeze" or user.args[0] is not node or len(user.args) != 2:
        return None
    along = user.args[1]
    if isinstance(along, (list, tuple)) and len(along) == 1:
        (along,) = along
    return _Piece(user, piece.start, piece.end) if _is_axis(along, axis, len(shape)) else None


def _slice(node: fx.Node, source: fx.Node, axis: int, shape: tuple[int, ...]) -> _Piece | None:
    name, arguments = function_name(node), cast(tuple[Any, ...], node.args)
    if node.kwargs or len(arguments) < 2 or arguments[0] is not source:
        return None
    if name == "slice_along" and len(arguments) == 5:
        bounds = [arguments[3], *arguments[1:3], arguments[4] or [1]]
        if not all(isinstance(item, (list, tuple)) and len(item) == 1 for item in bounds):
            return None
        along, start, end, step = (item[0] for item in bounds)
    elif name == "slice":
        defaults: tuple[Any, ...] = (0, None, None, 1)
        along, start, end, step = arguments[1:] + defaults[len(arguments) - 1 :]
        start = 0 if start is None else start
    else:
        return None
    if not _is_axis(along, axis, len(shape)) or not _is_natural(start) or step != 1:
        return None
    if end is None:
        return _Piece(node, start, None)
    return _Piece(node, start, end) if _is_natural(end) else None


def _is_axis(value: object, axis: int, rank: int) -> bool:
    return isinstance(value, int) and value in (axis, axis - rank)


def _is_natural(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _unbind(draft: Draft, source: fx.Node, axis: int, pieces: Sequence[_Piece]) -> None:
    indices = [piece.start for piece in pieces]
    _replace(draft, source, torch.unbind, (source, axis), pieces, indices)


def _split(draft: Draft, source: fx.Node, axis: int, pieces: Sequence[_Piece]) -> None:
    starts = sorted({piece.start for piece in pieces})
    end = next(piece.end for piece in pieces if piece.start == starts[-1])
    indices = [starts.index(piece.start) for piece in pieces]
    _replace(draft, source, separate, (source, tuple(starts), end, axis), pieces, indices)


def _replace(
    draft: Draft,
    source: fx.Node,
    function: Callable[..., Sequence[Tensor]],
    arguments: tuple[Any, ...],
    pieces: Sequence[_Piece],
    indices: Sequence[int],
) -> None:
    with draft.graph.inserting_after(source):
        whole = draft.graph.call_function(function, arguments)
    places: dict[int, fx.Node] = {}
    for piece, index in zip(pieces, indices, strict=True):
        if index not in places:
            with draft.graph.inserting_after(whole):
                places[index] = draft.graph.call_function(getitem, (whole, index))
            if piece.node in draft.observed:
                draft.observed[places[index]] = draft.observed[piece.node]
        draft.bypass(piece.node, places[index])
