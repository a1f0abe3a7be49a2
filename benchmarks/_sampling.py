"""Measuring several sides in one run, in turn, so that whatever else the machine does hits all."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Call = Callable[[], object]
Figures = dict[str, list[float]]  # side -> one figure per round
Spread = dict[str, float]


@dataclass(frozen=True)
class Block:
    """Calls of one side that follow each other.

    Args:
        seconds: how long the counted calls take together, at least.
        calls: how many are counted, at least.
        uncounted: seconds of the first calls, in which threads of the side before still spin; 0
            where a call takes so long that it does not matter.
    """

    seconds: float = 0.3
    calls: int = 2
    uncounted: float = 0.06

    def median(self, call: Call) -> float:
        """The median seconds of a call."""
        return statistics.median(self.times(call))

    def times(self, call: Call) -> list[float]:
        """The seconds of every counted call."""
        start = time.perf_counter()
        while time.perf_counter() - start < self.uncounted:
            call()
        times: list[float] = []
        while len(times) < self.calls or sum(times) < self.seconds:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return times


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int) -> Figures:
    """One figure of each side per round; the order rotates."""
    names = list(sides)
    figures: Figures = {name: [] for name in names}
    for turn in range(rounds):
        for offset in range(len(names)):
            name = names[(turn + offset) % len(names)]
            figures[name].append(sides[name]())
    return figures


def spread(values: Sequence[float], digits: int = 3) -> Spread:
    """The median with the quartiles."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [*values]
    )
    return {
        "median": round(middle, digits),
        "low": round(low, digits),
        "high": round(high, digits),
    }


def ratio(figures: Figures, side: str, base: str, digits: int = 3) -> Spread:
    """One side's figures over another's, round by round."""
    pairs = zip(figures[side], figures[base], strict=True)
    return spread([mine / other for mine, other in pairs], digits)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that a share of all values, from 0 to 1, does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]
