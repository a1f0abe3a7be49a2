"""Whether rows should join a batch between its steps, or only before its first one.

The time of a step (forward and backward) is measured for batches of 1 to 16 rows. Callers of an
attack of 40 steps, one row each, are then simulated on these times: after an answer a caller pauses
for an exponentially distributed time, on average that of an undisturbed attack, and calls again.

- `turns`: what waits begins together at the next step, as a batch of its own; batches take turns.
- `gather`: what waits begins together when the running batch has ended, as the engine does.
- `between`: what waits joins the running batch at its next step, at no cost, and each row leaves
  when it is done. An upper bound of what continuous batching could give.
"""

import random
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .._networks import DEVICE, Network, network

NETWORKS = ("lenet5", "resnet20", "squeezenet")
ROWS = (1, 2, 4, 8, 16)
CALLERS = (1, 2, 4, 8, 16)
STEPS = 40
MAX_STEP = 0.25  # seconds, as the server's setting


@dataclass(eq=False)
class _Call:
    arrived: float
    left: int = STEPS


Seconds = Callable[[int], float]  # of a step, by rows


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure and return the figures."""
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in NETWORKS:
            times = _step_times(network(name, Path(folder)), 3 if quick else 25)
            figures[name] = {
                "step_ms": {str(rows): round(1e3 * seconds, 3) for rows, seconds in times.items()},
                "callers": _compare(times, 100 if quick else 4000),
            }
    return figures


def _step_times(net: Network, rounds: int) -> dict[int, float]:
    """The shortest of several steps, in turn over the batch sizes."""
    classifier = net.classifier()
    best = dict.fromkeys(ROWS, float("inf"))
    for round_number in range(rounds + 2):
        for rows in ROWS:
            images = torch.from_numpy(net.images(rows)).to(DEVICE).requires_grad_()
            start = time.perf_counter()
            torch.autograd.grad(classifier(images)[:, 0].sum(), images)[0].cpu()
            if round_number >= 2:
                best[rows] = min(best[rows], time.perf_counter() - start)
    return best


def _compare(times: dict[int, float], calls: int) -> dict[str, Any]:
    def seconds(rows: int) -> float:
        return float(np.interp(rows, list(times), list(times.values())))

    cap = max(rows for rows in range(1, max(ROWS) + 1) if rows == 1 or seconds(rows) <= MAX_STEP)
    policies = {"turns": _turns, "gather": _gather, "between": _between}
    return {
        str(callers): {
            name: _simulate(partial(policy, seconds, cap), callers, STEPS * times[1], calls)
            for name, policy in policies.items()
        }
        for callers in CALLERS
    }


class _Arrivals:
    """Callers that pause, call, and wait."""

    def __init__(self, callers: int, pause: float) -> None:
        self._chance, self._pause, self.now = random.Random(0), pause, 0.0
        self._due = [self._chance.expovariate(1 / pause) for _ in range(callers)]
        self.latencies: list[float] = []

    def take(self, most: int) -> list[_Call]:
        """The calls that have arrived by now, in order."""
        self._due.sort()
        found = [_Call(due) for due in self._due[:most] if due <= self.now]
        del self._due[: len(found)]
        return found

    def await_next(self) -> None:
        """Let the time pass until the next call arrives."""
        self.now = max(self.now, min(self._due))

    def answer(self, call: _Call) -> None:
        """The caller has its answer, and pauses."""
        self.latencies.append(self.now - call.arrived)
        self._due.append(self.now + self._chance.expovariate(1 / self._pause))


def _simulate(
    policy: Callable[[_Arrivals], Iterator[None]], callers: int, pause: float, calls: int
) -> dict[str, float]:
    arrivals = _Arrivals(callers, pause)
    steps = policy(arrivals)
    while len(arrivals.latencies) < calls:
        next(steps)
    p50, p99 = np.percentile(arrivals.latencies, (50, 99))
    return {
        "calls_per_second": round(calls / arrivals.now, 3),
        "p50_seconds": round(float(p50), 4),
        "p99_seconds": round(float(p99), 4),
    }


def _step(batch: list[_Call], seconds: Seconds, arrivals: _Arrivals) -> None:
    arrivals.now += seconds(len(batch))
    for call in batch:
        call.left -= 1
        if not call.left:
            arrivals.answer(call)


def _turns(seconds: Seconds, cap: int, arrivals: _Arrivals) -> Iterator[None]:
    batches: deque[list[_Call]] = deque()
    while True:
        if fresh := arrivals.take(cap):
            batches.appendleft(fresh)
        if batches:
            batch = batches.popleft()
            _step(batch, seconds, arrivals)
            if batch[0].left:
                batches.append(batch)
        else:
            arrivals.await_next()
        yield


def _gather(seconds: Seconds, cap: int, arrivals: _Arrivals) -> Iterator[None]:
    while True:
        if batch := arrivals.take(cap):
            for _ in range(STEPS):
                _step(batch, seconds, arrivals)
        else:
            arrivals.await_next()
        yield


def _between(seconds: Seconds, cap: int, arrivals: _Arrivals) -> Iterator[None]:
    active: deque[_Call] = deque()
    while True:
        active.extendleft(arrivals.take(max(CALLERS)))
        if active:
            batch = [active.popleft() for _ in range(min(cap, len(active)))]
            _step(batch, seconds, arrivals)
            active.extend(call for call in batch if call.left)
        else:
            arrivals.await_next()
        yield
