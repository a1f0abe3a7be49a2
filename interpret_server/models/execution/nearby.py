"""Logits of points that differ from known ones in a window each, by what sees the window alone.

A search that changes one window of a picture at a time asks again and again for what most of the
network has answered before. Here the values at one place of the network are kept for the known
points; of a changed point only the piece of them that sees the window is computed, from the piece
of the picture that it depends on, and the rest of the network runs as ever.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, fx

from ..manifest import Precision
from .draft import observe
from .plans import Execution
from .regions import Local, Pair, Piece, Region, parts

if TYPE_CHECKING:
    from ..classifier import Classifier

_WORTH = 0.75  # of the whole network's multiplications, at most


@dataclass(frozen=True)
class Window:
    """A part of each picture.

    Args:
        corner: `(n, 2)` int64, its first row and column.
        sides: how many rows and columns it has.
    """

    corner: Tensor
    sides: Pair


class _Way:
    """How points are computed that differ in a window of some sides.

    What depends on where the window lies is looked up, by the first position of the cut that sees
    it, or by the window's corner.

    Args:
        region: of the network.
        cut: where values are kept.
        field: what one position of it sees of the picture.
        pieces: of every node that it takes.
    """

    def __init__(
        self, region: Region, cut: fx.Node, field: Piece, pieces: Mapping[fx.Node, Piece]
    ) -> None:
        self.region, self.cut, self.pieces = region, cut, pieces
        sizes = region.sizes
        (self.picture,) = (node for node in pieces if node.op == "placeholder")
        self._first = [
            _first(field, pieces[cut].length, sizes[self.picture], sizes[cut], axis)
            for axis in range(2)
        ]
        self._crop = _Lookup(pieces[self.picture], sizes[self.picture], sizes[cut])
        self._paste = _Lookup(pieces[cut], sizes[cut], sizes[cut])
        self._steps = [
            self._step(node, piece) for node, piece in pieces.items() if node is not self.picture
        ]

    def _step(self, node: fx.Node, piece: Piece) -> "_Step":
        region, local = self.region, self.region.known(node)
        need, outside = piece.before(local), None
        if local.fill is not None:
            (source,) = local.sources
            outside = _Lookup(need, region.sizes[source], region.sizes[self.cut])
        windows = {source: _within(self.pieces[source], need) for source in local.sources}
        return _Step(node, local, windows, outside)

    def first(self, window: Window) -> tuple[Tensor, Tensor]:
        """The first row and column of the cut that see each window, both `(n,)`."""
        return self._first[0][window.corner[:, 0]], self._first[1][window.corner[:, 1]]

    def places(self, first: tuple[Tensor, Tensor]) -> Tensor:
        """Where the pieces lie in the cut's flat values."""
        return self._paste.places(first)

    def values(self, rows: Tensor, first: tuple[Tensor, Tensor]) -> Tensor:
        """The pieces of the cut, `(n, C, *length)`, of pictures as the network takes them."""
        places = self._crop.places(first)
        cropped = _flat(rows).index_select(0, places.flatten())
        found = {self.picture: cropped.view(*places.shape, rows.shape[1]).permute(0, 3, 1, 2)}
        for node, local, windows, outside in self._steps:
            given = {
                source: found[source][:, :, down, across]
                for source, (down, across) in windows.items()
            }
            if outside is not None:
                (source,) = local.sources
                given[source] = given[source].masked_fill(outside.outside(first), local.fill or 0.0)
            found[node] = local.run(given)
        return found[self.cut]


class _Step(NamedTuple):
    """How a node's piece is computed.

    Args:
        node, local: the node.
        windows: rows and columns of the pieces that it reads.
        outside: what of them lies beyond the value's ends; None where nothing does.
    """

    node: fx.Node
    local: Local
    windows: Mapping[fx.Node, tuple[slice, slice]]
    outside: "_Lookup | None"


class _Lookup:
    """Where a piece lies in a value, by the first position of the cut.

    Args:
        piece: of the value, for the whole piece of the cut.
        size: of the value.
        cut: the cut's size.
    """

    def __init__(self, piece: Piece, size: Pair, cut: Pair) -> None:
        self._places, self._outside, self._row = [], [], size[0] * size[1]
        for axis in range(2):
            begin = torch.arange(cut[axis]) * piece.step[axis] + piece.shift[axis]
            place = begin[:, None] + torch.arange(piece.length[axis])
            inside = place.clamp(0, size[axis] - 1)
            self._places.append(inside * (size[1] if axis == 0 else 1))
            self._outside.append(inside != place)

    def places(self, first: tuple[Tensor, Tensor]) -> Tensor:
        """Of the pieces in flat values, `(n, *length)`; beyond an end, the nearest place."""
        start = torch.arange(len(first[0]))[:, None, None] * self._row
        rows, columns = (table[number] for table, number in zip(self._places, first, strict=True))
        return start + rows[:, :, None] + columns[:, None]

    def outside(self, first: tuple[Tensor, Tensor]) -> Tensor:
        """Which places are beyond an end, `(n, 1, *length)`."""
        rows, columns = (table[number] for table, number in zip(self._outside, first, strict=True))
        return rows[:, None, :, None] | columns[:, None, None]


@dataclass
class _Trial:
    """Values at the cut that were computed last."""

    places: Tensor
    values: Tensor


class Nearby:
    """The logits of pictures of which one window at a time is changed.

    The rule which way they are computed looks at the network and the window's sides alone, so a
    row's answer does not depend on other rows. It rounds as other forms of the network do.

    Args:
        model: a classifier. Where nothing is to be gained, its bits are to be exact, or it runs
            elsewhere than on the CPU, it is simply called.
    """

    def __init__(self, model: "Classifier") -> None:
        self._model = model
        self._graph: fx.GraphModule | None = None
        self._region: Region | None = None
        self._layout = torch.contiguous_format
        self._ways: dict[Pair, _Way | None] = {}
        self._parts: dict[fx.Node, tuple[fx.GraphModule, fx.GraphModule]] = {}
        self._cut: fx.Node | None = None
        self._kept: Tensor | None = None
        self._trial: _Trial | None = None

    def logits(self, trial: Tensor, window: Window | None, known: Tensor) -> Tensor:
        """Logits `(n, K)` of points; no gradient.

        Args:
            trial: `(n, *input_shape)`.
            window: where they differ from the known points; None: anywhere.
            known: those of which `keep` has been told last.
        """
        self._trial = None
        with torch.no_grad():
            way = None if window is None else self._way(trial, window.sides)
            if way is None or window is None:
                self._kept = None
                return self._model(trial)
            return self._by_pieces(way, trial, window, known)

    def keep(self, rows: Tensor) -> None:
        """The last points of some rows, given as indices, become the known ones."""
        if self._trial is None or self._kept is None:
            self._kept = None
            return
        points, channels = self._kept.shape[:2]
        values = self._trial.values.reshape(points, -1, channels)[rows]
        places = self._trial.places.reshape(points, -1)[rows]
        _flat(self._kept).index_copy_(0, places.flatten(), values.flatten(0, 1))

    def take(self, rows: Tensor) -> None:
        """Go on with some rows alone, given as indices."""
        self._trial = None
        if self._kept is not None:
            kept = self._kept.permute(0, 2, 3, 1)[rows].contiguous()
            self._kept = kept.permute(0, 3, 1, 2)

    def _by_pieces(self, way: _Way, trial: Tensor, window: Window, known: Tensor) -> Tensor:
        module = self._model.module
        if way.cut not in self._parts:
            self._parts[way.cut] = parts(way.region, way.cut)
        before, after = self._parts[way.cut]
        if self._kept is None or self._cut is not way.cut:
            kept: Tensor = before(module.normalise(known))
            self._kept = kept.contiguous(memory_format=torch.channels_last)
            if self._kept is kept:
                self._kept = kept.clone()
            self._cut = way.cut
        first = way.first(window)
        values = _flat(way.values(module.normalise(trial), first))
        places = way.places(first).flatten()
        self._trial = _Trial(places, values)
        full = self._kept.clone()
        _flat(full).index_copy_(0, places, values)
        logits: Tensor = module.head(after(full.contiguous(memory_format=self._layout)))
        return logits

    def _way(self, trial: Tensor, sides: Pair) -> _Way | None:
        model = self._model
        elsewhere = trial.device.type != "cpu" or trial.dim() != 4
        if elsewhere or model.execution is Execution.EXACT or model.plans.hooked:
            return None
        form = model.plans.output(model.example)
        if form is not self._graph:
            self._read(form, trial)
        if self._region is None:
            return None
        if sides not in self._ways:
            self._ways[sides] = _cheapest(self._region, sides)
        return self._ways[sides]

    def _read(self, form: torch.nn.Module, trial: Tensor) -> None:
        """The network, at inputs of the size of these."""
        self._ways, self._parts, self._kept, self._region = {}, {}, None, None
        self._graph = form if isinstance(form, fx.GraphModule) else None
        if self._graph is None or self._model.precision is not Precision.FLOAT32:
            return
        rows = self._model.module.normalise(trial[:1].expand(2, *trial.shape[1:]))
        if rows.shape[1:] != trial.shape[1:]:
            return
        with torch.random.fork_rng(()):  # a network may draw random numbers
            self._region = Region(self._graph, observe(self._graph, rows))
        last = self._model.plans.channels_last
        self._layout = torch.channels_last if last else torch.contiguous_format


def _cheapest(region: Region, sides: Pair) -> _Way | None:
    """The way that takes the fewest multiplications, if they are few enough."""
    best, least = None, _WORTH
    for cut in region.cuts:
        single = region.pieces(cut, (1, 1))
        if single is None:
            continue
        field = next(iter(single.values()))
        most = [(sides[a] + field.length[a] - 2) // field.step[a] + 1 for a in range(2)]
        height, width = region.sizes[cut]
        pieces = region.pieces(cut, (min(most[0], height), min(most[1], width)))
        if pieces is not None and (price := region.price(cut, pieces)) < least:
            best, least = _Way(region, cut, field, pieces), price
    return best


def _first(field: Piece, length: Pair, picture: Pair, cut: Pair, axis: int) -> Tensor:
    """The first position of the cut that sees a window, by the window's corner, on one axis."""
    start = torch.arange(picture[axis]) - field.shift[axis] - field.length[axis] + 1
    first: Tensor = -(-start // field.step[axis])
    return first.clamp(0, cut[axis] - length[axis])


def _flat(values: Tensor) -> Tensor:
    """`(n, C, h, w)` as `(n * h * w, C)`; a view where the layout is channels-last."""
    return values.permute(0, 2, 3, 1).reshape(-1, values.shape[1])


def _within(held: Piece, need: Piece) -> tuple[slice, slice]:
    """Rows and columns of a held piece that make up the needed one."""
    top, left = (need.shift[axis] - held.shift[axis] for axis in range(2))
    return slice(top, top + need.length[0]), slice(left, left + need.length[1])
