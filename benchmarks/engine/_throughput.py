"""Concurrent callers with one image a call against the same work in process."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import interpret_client

from .._load import rate
from .._networks import Images, InProcess, Labels, network
from .._sampling import Block, Figures, in_turn, ratio, spread
from .._serving import MODES, serve_all

CALLERS = (1, 2, 4, 8, 16, 32, 64)
FEW = (1, 16)  # of a quick run
BATCH = 16  # of the in-process side that batches by itself
Compute = Callable[[Images, Labels], object]


@dataclass(frozen=True)
class Work:
    """What callers ask for.

    Args:
        network: a name that `network` knows.
        plugin: by name.
        params: of the plugin.
        here: the ways to compute the same in process, by name; the first is the base of ratios.
        labels: one per image.
        calls: each caller makes this many, and at least `least` over all callers, so that the first
            call, which runs alone, and the last ones, which fill no batch, do not decide.
    """

    network: str
    plugin: str
    params: dict[str, Any]
    here: Callable[[InProcess], dict[str, Compute]]
    labels: Callable[[Any, Images], Labels]
    calls: int = 2
    least: int = 24

    def calls_each(self, callers: int, *, quick: bool) -> int:
        """How many calls one of so many callers makes."""
        return 1 if quick else max(self.calls, -(-self.least // callers))


def measure(work: Work, rounds: int, *, quick: bool) -> dict[str, Any]:
    """Images per second of every side, and their ratios."""
    every = FEW if quick else CALLERS
    with tempfile.TemporaryDirectory() as folder:
        net = network(work.network, Path(folder))
        images = net.images(max(every))
        labels = work.labels(net, images)
        here = work.here(InProcess(net))

        def ask(client: interpret_client.Client, number: int) -> None:
            one = slice(number, number + 1)
            client.run(
                work.plugin,
                net.name,
                images[one],
                target=labels[one],
                params=work.params,
                seed=0,
            )

        sides: dict[str, Callable[[], float]] = {}
        for name, compute in here.items():
            for rows in (1, BATCH):
                call = partial(compute, images[:rows], labels[:rows])
                sides[f"{name} batch {rows}"] = partial(_rate_here, call, rows, quick=quick)
        with serve_all(net) as servers:
            for mode, served in servers.items():
                rate(served.address, 16, 2, ask)
                for callers in every:
                    each = work.calls_each(callers, quick=quick)
                    sides[_side(mode, callers)] = partial(rate, served.address, callers, each, ask)
            figures = in_turn(sides, rounds)
    return {
        "network": net.name,
        "weights": net.weights,
        "image": list(net.shape),
        "plugin": work.plugin,
        "params": work.params,
        "images_per_second": {name: spread(values, 1) for name, values in figures.items()},
        **_ratios(figures, next(iter(here)), every),
    }


def _rate_here(call: Callable[[], object], rows: int, *, quick: bool) -> float:
    block = Block(seconds=0.1, calls=1, uncounted=0.03) if quick else Block(2.0, 4, 0.2)
    return rows / block.median(call)


def _side(mode: str, callers: int) -> str:
    return f"{mode} callers {callers}"


def _ratios(figures: Figures, base: str, every: tuple[int, ...]) -> dict[str, Any]:
    return {
        f"ratio_to_{base}_batch_{rows}": {
            mode: {
                str(callers): ratio(figures, _side(mode, callers), f"{base} batch {rows}")
                for callers in every
            }
            for mode in MODES
        }
        for rows in (1, BATCH)
    }
