"""Which part of an input a unit sees."""

from collections.abc import Sequence

import torch
from torch import Tensor

from interpret_server.plugin import Classifier

from ..attribution.perturbation import channel_axis

_MOST_PLACES = 4096  # along all axes together, each of which costs a forward pass


class ReceptiveFields:
    """The receptive fields of a layer's units, found by what a value that is no number spoils.

    For every place along an axis a row is made that is NaN there. What a unit is computed from
    makes it NaN, whatever the weights and whichever rectifiers are open, as 0 times NaN is NaN. A
    unit that not even a row of nothing but NaN spoils (one that is read off a comparison, say)
    counts as seeing everything, and so does every unit where an input has no places or too many.

    Args:
        model: with readable layers.
        layer: the units' layer; None for the logits, which count as seeing everything.
        row: shape of an input row.

    Attributes:
        axes: of an input row over which fields extend; none where several inputs are packed.
        passes: how many rows go through the model.
    """

    def __init__(self, model: Classifier, layer: str | None, row: tuple[int, ...]) -> None:
        self._model, self._layer, self._row = model, layer, row
        self.axes: tuple[int, ...] = ()
        if model.packing is None:
            channel = channel_axis(model, row)
            self.axes = tuple(axis for axis in range(len(row)) if axis != channel)
        places = [(axis, place) for axis in self.axes for place in range(row[axis])]
        tried = layer is not None and len(places) <= _MOST_PLACES
        self._places = [*places, None] if tried else []  # None: everywhere
        self.passes = len(self._places)

    @torch.no_grad()
    def seen(self, row: Tensor, units: Tensor, part: range) -> Tensor:
        """Whether each of some places spoils each unit, `(len(part), M)` bool.

        Args:
            row: an input, `row`.
            units: `(M, rank of the layer's row)`, the units' indices.
            part: numbers of rows out of `passes`.
        """
        variants = row.expand(len(part), *row.shape).clone()
        for variant, number in zip(variants, part, strict=True):
            place = self._places[number]
            spoiled = variant if place is None else variant.select(*place)
            spoiled.fill_(torch.nan)
        assert self._layer is not None  # there are places
        # Their fast convolutions (Winograd) spread NaN over whole tiles.
        with torch.backends.cudnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
            (values,) = self._model.activations(variants, [self._layer])
        index: tuple[slice | Tensor, ...] = (slice(None), *units.unbind(1))
        return values[index].isnan()

    def boxes(self, seen: Sequence[Tensor], units: int) -> Tensor:
        """First place and the one after the last along each of `axes`, `(M, axes, 2)` int64.

        Args:
            seen: of all parts, in order.
            units: M.
        """
        boxes = torch.zeros(units, len(self.axes), 2, dtype=torch.int64)
        boxes[..., 1] = torch.tensor([self._row[axis] for axis in self.axes])
        if not self._places:
            return boxes
        spoiled = torch.cat(list(seen)).cpu()
        first = 0
        for number, axis in enumerate(self.axes):
            size = self._row[axis]
            along = spoiled[first : first + size]
            known = spoiled[-1] & along.any(0)
            place = torch.arange(size)[:, None].expand_as(along)
            lowest = torch.where(along, place, size).amin(0)
            highest = torch.where(along, place, -1).amax(0)
            boxes[known, number, 0] = lowest[known]
            boxes[known, number, 1] = highest[known] + 1
            first += size
        return boxes


def crops(rows: Tensor, boxes: Tensor, axes: Sequence[int]) -> Tensor:
    """What lies in boxes, all of the largest one's size, `(M, ...)`.

    A smaller box, cut at an edge of its input, is filled up by zeros beyond that edge.

    Args:
        rows: `(M, *row)`.
        boxes: `(M, axes, 2)`.
        axes: of a row.
    """
    sizes = list(rows.shape[1:])
    for number, axis in enumerate(axes):
        sizes[axis] = int((boxes[:, number, 1] - boxes[:, number, 0]).max())
    made = rows.new_zeros(len(rows), *sizes)
    for row, crop, box in zip(rows, made, boxes.tolist(), strict=True):
        for (start, stop), axis in zip(box, axes, strict=True):
            missing = sizes[axis] - (stop - start)
            row = row.narrow(axis, start, stop - start)
            crop = crop.narrow(axis, 0 if start else missing, stop - start)
        crop.copy_(row)
    return made
