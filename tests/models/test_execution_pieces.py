"""Pieces of one value are cut at once where they make it up."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from plan_checks import assert_same, called, draft_of
from torch import Tensor, fx, nn

from interpret_server.models.execution.pieces import cut_at_once, separate
from interpret_server.models.onnx.operators.indexing import slice_along

fx.wrap("slice_along")
_slice = torch.ops.aten.slice.Tensor


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(torch.sin(x))


def by_index(x: Tensor) -> Tensor:
    a, b, c = (slice_along(x, [i], [i + 1], [-1], None).squeeze((2,)) for i in range(3))
    return a * b - c.exp()


def by_range(x: Tensor) -> Tensor:
    a, b = slice_along(x, [0], [2], [1], [1]), slice_along(x, [2], [9], [1], None)
    return (a * a).sum(1) + b.exp().sum(1)


def by_selection(x: Tensor) -> Tensor:
    a, b, c = (x.select(2, i) for i in range(3))
    return a * b - c.exp()


def by_aten(x: Tensor) -> Tensor:
    a, b = _slice(x, 2, 0, 1), _slice(x, 2, 1, None, 1)
    return a * b


def one_twice(x: Tensor) -> Tensor:
    pieces = [slice_along(x, [start], [end], [1], None) for start, end in ((0, 3), (3, 5), (0, 3))]
    return torch.cat(pieces, 1) * 2


def some_of_them(x: Tensor) -> Tensor:
    return x.select(2, 0) * x.select(2, 2)


def overlapping(x: Tensor) -> Tensor:
    a, b = slice_along(x, [0], [3], [1], None), slice_along(x, [2], [5], [1], None)
    return a * b


def with_steps(x: Tensor) -> Tensor:
    a, b = slice_along(x, [0], [5], [1], [2]), slice_along(x, [1], [5], [1], [2])
    return a.sum(1) * b.sum(1)


def along_other_axes(x: Tensor) -> Tensor:
    return slice_along(x, [0], [2], [2], None).sum() * slice_along(x, [2], [5], [1], None)


def from_the_end(x: Tensor) -> Tensor:
    a, b = slice_along(x, [0], [-2], [1], None), slice_along(x, [-2], [9], [1], None)
    return a.sum(1) * b.sum(1)


def with_two_axes(x: Tensor) -> Tensor:
    a, b = (slice_along(x, [0, i], [4, i + 1], [1, 2], None) for i in (0, 1))
    return a * b


@pytest.mark.parametrize(
    ("function", "cut"),
    [
        (by_index, "unbind"),
        (by_selection, "unbind"),
        (by_range, "separate"),
        (by_aten, "separate"),
        (one_twice, "separate"),
    ],
)
def test_pieces_that_cover_a_value_are_cut_at_once(
    function: Callable[[Tensor], Tensor], cut: str
) -> None:
    graph, draft = draft_of(Net(function), 5, 3)
    cut_at_once(draft)
    names = called(draft)
    assert names.count(cut) == 1
    assert not {"slice_along", "slice", "select", "squeeze"} & set(names)
    assert_same(draft, graph, (2, 5, 3), (7, 5, 3))


@pytest.mark.parametrize(
    "function",
    [some_of_them, overlapping, with_steps, along_other_axes, from_the_end, with_two_axes],
)
def test_other_pieces_stay(function: Callable[[Tensor], Tensor]) -> None:
    graph, draft = draft_of(Net(function), 5, 3)
    before = called(draft)
    cut_at_once(draft)
    assert called(draft) == before
    assert_same(draft, graph, (2, 5, 3), (7, 5, 3))


@pytest.mark.parametrize("length", [1, 2, 4, 9, 12])
def test_an_axis_of_another_length_is_cut_as_slices_cut_it(length: int) -> None:
    graph, draft = draft_of(Net(by_range), 5, 3)
    cut_at_once(draft)
    assert "separate" in called(draft)
    assert_same(draft, graph, (2, length, 3))


@pytest.mark.parametrize("size", range(9))
@pytest.mark.parametrize("end", [None, 6])
def test_separate_slices_any_length(size: int, end: int | None) -> None:
    x = torch.arange(2.0 * size).reshape(2, size)
    found = separate(x, (0, 2, 3), end, 1)
    for piece, expected in zip(found, (x[:, 0:2], x[:, 2:3], x[:, 3:end]), strict=True):
        assert torch.equal(piece, expected)
