"""Modules that hold the bodies of If, Loop and Scan, and run them as the data says."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

MAX_TRIPS = 100_000
MAX_GROWTH = 1 << 28  # numbers that a loop may carry or give

Element = tuple[tuple[int, ...], torch.dtype]


class Trips:
    """Counts the steps of all loops of one graph, those inside others too."""

    def __init__(self) -> None:
        self._left = MAX_TRIPS

    def restart(self) -> None:
        """A run of the graph begins."""
        self._left = MAX_TRIPS

    def spend(self, carried: Sequence[Any], given: int) -> None:
        """One more step, with the values it starts from and the numbers given so far.

        Raises:
            ValueError: too many steps, or too large values.
        """
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"the loops of the file run more than {MAX_TRIPS} times")
        if numbers(carried) + given > MAX_GROWTH:
            raise ValueError(f"a loop of the file gathers more than {MAX_GROWTH} numbers")


def numbers(values: Sequence[Any]) -> int:
    """How many numbers there are in tensors and lists of tensors."""
    return sum(
        value.numel() if isinstance(value, Tensor) else numbers(value)
        for value in values
        if isinstance(value, Tensor | list | tuple)
    )


def as_decided(x: Any, condition: bool, expected: bool) -> Any:
    """`x`, where a condition on sizes is as it was taken to be.

    Raises:
        ValueError: it is not.
    """
    if bool(condition) != expected:
        raise ValueError(
            "the file takes another branch for inputs of this size, whose values have other axes"
        )
    return x


class Branch(nn.Module):
    """An If: one of two graphs, by a condition that all rows share.

    Args:
        then_picks: which of the captured values the first graph takes, in order.
        else_picks: those of the second.
    """

    def __init__(
        self,
        then: nn.Module,
        otherwise: nn.Module,
        then_picks: Sequence[int],
        else_picks: Sequence[int],
    ) -> None:
        super().__init__()
        self.then, self.otherwise = then, otherwise
        self._picks = then_picks, else_picks

    def forward(self, condition: Any, *captured: Any) -> Any:
        """The outputs of the graph that is chosen."""
        holds = bool(condition)
        picks = self._picks[not holds]
        return (self.then if holds else self.otherwise)(*(captured[i] for i in picks))


class _Repeated(nn.Module):
    """A body that runs several times.

    Args:
        elements: shape and type of each output that is gathered over the steps.
        trips: counts steps over all loops.
        outermost: not inside another loop or branch.
    """

    def __init__(
        self, body: nn.Module, elements: Sequence[Element], *, trips: Trips, outermost: bool
    ) -> None:
        super().__init__()
        self.body, self.elements = body, elements
        self._trips, self._outermost = trips, outermost

    def _begin(self) -> None:
        if self._outermost:
            self._trips.restart()

    def _gathered(
        self,
        items: Sequence[Sequence[Tensor]],
        axes: Sequence[int],
        values: Sequence[Any],
        length: int | None = None,
    ) -> list[Tensor]:
        """What the steps gave, stacked; with zeros up to a length."""
        device = next((v.device for v in _leaves(values)), torch.device("cpu"))
        results = []
        for found, axis, (shape, dtype) in zip(items, axes, self.elements, strict=True):
            if found:
                stacked = torch.stack(list(found), axis)
            else:
                stacked = torch.zeros(shape, dtype=dtype, device=device)
                stacked = stacked.unsqueeze(axis).narrow(axis, 0, 0)
            if length is not None and stacked.shape[axis] < length:
                missing = list(stacked.shape)
                missing[axis] = length - stacked.shape[axis]
                stacked = torch.cat([stacked, stacked.new_zeros(missing)], axis)
            results.append(stacked)
        return results


def _leaves(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _leaves(value)
    return found


class Loop(_Repeated):
    """A Loop: a number of steps, a condition, or both.

    Args:
        carried: how many values go from step to step.
        conditional: whether the body's first output says if another step follows.
    """

    def __init__(
        self,
        body: nn.Module,
        carried: int,
        elements: Sequence[Element],
        *,
        conditional: bool,
        trips: Trips,
        outermost: bool,
    ) -> None:
        super().__init__(body, elements, trips=trips, outermost=outermost)
        self.carried, self.conditional = carried, conditional

    def forward(
        self, count: Any, condition: Any, carried: Sequence[Any], captured: Sequence[Any]
    ) -> tuple[Any, ...]:
        """The last values, and what the steps gave, stacked along the first axis."""
        self._begin()
        total = None if count is None else int(count)
        goes_on = condition is None or bool(condition)
        state, step, given = list(carried), 0, 0
        items: list[list[Tensor]] = [[] for _ in self.elements]
        while goes_on and (total is None or step < total):
            self._trips.spend(state, given)
            again, *results = self.body(step, *state, *captured)
            goes_on = not self.conditional or bool(again)
            state = results[: self.carried]
            for found, item in zip(items, results[self.carried :], strict=True):
                found.append(item)
                given += item.numel()
            step += 1
        gathered = self._gathered(items, [0] * len(items), (state, captured))
        return (*state, *gathered)


class Scan(_Repeated):
    """A Scan along axes of its inputs.

    Args:
        axes: of each scanned input.
        back: whether each is read from its end.
        out_axes: of each gathered output.
        out_back: whether each is filled from its end.
    """

    def __init__(
        self,
        body: nn.Module,
        axes: Sequence[int],
        back: Sequence[int],
        out_axes: Sequence[int],
        out_back: Sequence[int],
        elements: Sequence[Element],
        *,
        trips: Trips,
        outermost: bool,
    ) -> None:
        super().__init__(body, elements, trips=trips, outermost=outermost)
        self.axes, self.back, self.out_axes, self.out_back = axes, back, out_axes, out_back

    def forward(
        self, states: Sequence[Tensor], scanned: Sequence[Tensor], captured: Sequence[Any]
    ) -> tuple[Any, ...]:
        """The last states, and what the steps gave, stacked."""
        self._begin()
        return self._scan(states, scanned, captured, self.axes)

    def _scan(
        self,
        states: Sequence[Tensor],
        scanned: Sequence[Tensor],
        captured: Sequence[Any],
        axes: Sequence[int],
        steps: int | None = None,
        padded: int | None = None,
    ) -> tuple[Any, ...]:
        lengths = [x.shape[axis] for x, axis in zip(scanned, axes, strict=True)]
        if len(set(lengths)) > 1:
            raise ValueError(f"a scan reads inputs of different lengths {lengths}")
        state, given = list(states), 0
        items: list[list[Tensor]] = [[] for _ in self.elements]
        entries = [
            x.narrow(axis, 0, lengths[0] if steps is None else steps).unbind(axis)
            for x, axis in zip(scanned, axes, strict=True)
        ]
        ordered = [x[::-1] if back else x for x, back in zip(entries, self.back, strict=True)]
        for step in zip(*ordered, strict=True):
            self._trips.spend(state, given)
            results = self.body(*state, *step, *captured)
            state = list(results[: len(states)])
            for found, item in zip(items, results[len(states) :], strict=True):
                found.append(item)
                given += item.numel()
        ends = [x[::-1] if back else x for x, back in zip(items, self.out_back, strict=True)]
        gathered = self._gathered(ends, self.out_axes, (state, scanned), padded)
        return (*state, *gathered)


class ScanRows(Scan):
    """A Scan of opset 8: every row by itself, along the axis after the batch.

    Args:
        back: whether each scanned input is read from its end.
    """

    def __init__(
        self,
        body: nn.Module,
        back: Sequence[int],
        elements: Sequence[Element],
        *,
        trips: Trips,
        outermost: bool,
    ) -> None:
        zeros = [0] * len(elements)
        super().__init__(
            body, [0] * len(back), back, zeros, zeros, elements, trips=trips, outermost=outermost
        )

    def forward(  # type: ignore[override]
        self,
        lengths: Tensor | None,
        states: Sequence[Tensor],
        scanned: Sequence[Tensor],
        captured: Sequence[Any],
    ) -> tuple[Any, ...]:
        """The last states of each row, and what its steps gave, with zeros after its end."""
        self._begin()
        longest = scanned[0].shape[1]
        steps = [None] * len(scanned[0]) if lengths is None else lengths.tolist()
        if len(steps) != len(scanned[0]) or any(
            n is not None and not 0 <= n <= longest for n in steps
        ):
            raise ValueError(f"a scan of {longest} steps has rows of lengths {steps}")
        rows = [
            self._scan(
                [state[row] for state in states],
                [x[row] for x in scanned],
                captured,
                self.axes,
                count,
                longest,
            )
            for row, count in enumerate(steps)
        ]
        return tuple(torch.stack(values) for values in zip(*rows, strict=True))
