"""PGD and AutoAttack against Foolbox and torchattacks, in process, with robust accuracies.

The networks are the advertorch MNIST pair: ours as they are served, the others' as eager modules
with the same weights, on the same images with the same budget. Sides take turns within each round,
and a figure is the median over rounds. Time is the processor's with one thread
(`OMP_NUM_THREADS=1`), else the wall's. Stopping rows early is not to be the win: PGD is also
measured with all steps of every row, and AutoAttack on rows that no attack wins, where nobody can
stop. `ATTACK_ROWS` is how many rows AutoAttack takes. `--quick` measures one round of few rows with
fewer steps and writes nothing. Peers are installed by `_attack_peers`.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from interpret_server.engine.allocator import keep_freed_memory

from ._attack_peers import EPSILON, Pair, Peers, digits, ours, pgd_sides
from ._sampling import in_turn, ratio, spread
from .attribution import clock

PGD_ROWS, PGD_ROUNDS = 200, 3
ROWS, ROUNDS = 100, 1  # of AutoAttack
_SIDES = ("torchattacks", "foolbox")


def measured(
    sides: Mapping[str, Callable[[], Tensor]], pair: Pair, labels: Tensor, rounds: int
) -> dict[str, Any]:
    """Seconds and robust accuracy of every side, and ours over the faster of the others."""
    robust: dict[str, int] = {}
    now = clock()

    def timed(name: str) -> Callable[[], float]:
        def call() -> float:
            start = now()
            found = sides[name]()
            seconds = now() - start
            robust[name] = pair.correct(found.detach(), labels)
            return seconds

        return call

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = in_turn({name: timed(name) for name in sides}, rounds)
    others = [name for name in sides if name in _SIDES]
    faster = min(others, key=lambda name: spread(times[name])["median"])
    return {
        "rows": len(labels),
        "faster": faster,
        "sides": {
            name: {
                "seconds": spread(times[name], 3),
                "robust_accuracy": round(robust[name] / len(labels), 4),
                "ratio": ratio(times, name, faster),
            }
            for name in sides
        },
    }


def unbroken(pair: Pair, rows: int) -> tuple[Tensor, Tensor]:
    """Rows that a short AutoAttack does not win."""
    x, labels = digits(4 * rows)
    found = ours("auto_attack", pair.served, x, labels, epsilon=EPSILON, steps=20, queries=200)
    left = torch.nonzero(~found.success).squeeze(1)[:rows]
    return x[left], labels[left]


def auto_attack_sides(
    pair: Pair, peers: Peers, x: Tensor, labels: Tensor, *, quick: bool
) -> dict[str, Callable[[], Tensor]]:
    """The standard version in Linf."""
    steps, queries = (5, 50) if quick else (100, 5000)
    budget: dict[str, Any] = {"epsilon": EPSILON, "steps": steps, "queries": queries}
    reference = peers.auto_attack(pair.eager, steps)
    reference._autoattack.attacks[-1].n_queries = queries
    return {
        "ours": lambda: ours("auto_attack", pair.served, x, labels, **budget).adversarial,
        "torchattacks": lambda: reference(x, labels),
    }


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure and return the figures."""
    keep_freed_memory()  # as the server does; it helps all sides
    peers, figures = Peers(), dict[str, Any]()
    pgd_rows = 20 if quick else PGD_ROWS
    rows = 8 if quick else int(os.environ.get("ATTACK_ROWS", ROWS))
    for name in ("standard", "robust"):
        pair = Pair.load(name)
        x, labels = digits(pgd_rows)
        rounds = 1 if quick else PGD_ROUNDS
        figures[f"PGD-40, {name}"] = measured(
            pgd_sides(pair, peers, x, labels), pair, labels, rounds
        )
        x, labels = digits(rows) if name == "standard" else unbroken(pair, rows)
        form = f"AutoAttack, {name}" + (", rows that stay" if name == "robust" else "")
        sides = auto_attack_sides(pair, peers, x, labels, quick=quick)
        figures[form] = measured(sides, pair, labels, ROUNDS)
    return {
        "quick": quick,
        "threads": torch.get_num_threads(),
        "clock": clock().__name__,
        "epsilon": EPSILON,
        "cases": figures,
    }


def show(figures: dict[str, Any]) -> None:
    """Print all cases as a table."""
    table = Table("case", "side", "seconds", "of the faster peer", "robust accuracy")
    for name, case in figures["cases"].items():
        for side, item in case["sides"].items():
            table.add_row(
                f"{name} ({case['rows']} rows)",
                side,
                f"{item['seconds']['median']:.2f}",
                f"{item['ratio']['median']:.2f}",
                f"{item['robust_accuracy']:.3f}",
            )
    Console(width=120).print(table)
