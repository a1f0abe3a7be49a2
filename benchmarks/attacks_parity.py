"""Attacks against published figures and against AutoAttack's port, on the advertorch MNIST pair.

PGD-40 (epsilon 0.3, 40 steps of 0.01, no random start) and FAB (Linf) on all 10,000 test images,
and `auto_attack` against torchattacks' port, with the original's 100 steps, on the adversarially
trained network, image by image from the first. Seconds are the processor's with one thread.

A full run takes hours. Images are noted in `results/attacks_parity.partial.jsonl` as they are
finished, a run goes on from there, and the figures are of all that is noted; delete that file after
a change of the code. `PARITY=pgd,fab,auto_attack` picks parts, `PARITY_ROWS=200` is how many
images AutoAttack is to reach. `--quick` takes a few images and notes nothing.
"""

import json
import os
import statistics
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpret_server.engine.allocator import keep_freed_memory

from ._attack_peers import EPSILON, Pair, Peers, digits, ours
from .attribution import clock

PARTIAL = Path(__file__).parent / "results" / "attacks_parity.partial.jsonl"
IMAGES, CHUNK, AUTO_ATTACK_ROWS, AUTO_ATTACK_CHUNK = 10_000, 250, 1000, 50
# Published with the networks: accuracy, PGD-40's success (over all images, those misclassified to
# begin with included), FAB's median distance.
PUBLISHED = {
    "standard": {"accuracy": 0.9889, "pgd_success": 1.0, "fab_median_linf": 0.112},
    "robust": {"accuracy": 0.9864, "pgd_success": 0.068, "fab_median_linf": 0.3509},
}
FAB = {"steps": 40, "classes": 3}
Record = dict[str, Any]


def pgd(pair: Pair, x: Tensor, labels: Tensor) -> Record:
    """What PGD-40 does to some rows."""
    settings: dict[str, Any] = {"epsilon": EPSILON, "step_size": 0.01, "random_start": False}
    found = ours("pgd", pair.served, x, labels, steps=40, **settings)
    correct = found.initially_correct.bool()
    return {"correct": int(correct.sum()), "won": int((found.success & correct).sum())}


def fab(pair: Pair, x: Tensor, labels: Tensor) -> Record:
    """The distances of some rows; none of rows that were wrong or not won."""
    found = ours("fab", pair.served, x, labels, **FAB)
    counted = found.initially_correct.bool() & found.success
    distances = found.distance_linf[counted].tolist()
    return {
        "correct": int(found.initially_correct.sum()),
        "distances": [round(distance, 5) for distance in distances],
    }


def auto_attack(pair: Pair, peers: Peers, x: Tensor, labels: Tensor) -> Record:
    """Which rows stay right, and the seconds, on either side."""
    now = clock()
    start = now()
    mine = ours("auto_attack", pair.served, x, labels, epsilon=EPSILON)
    middle = now()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peers.auto_attack(pair.eager)(x, labels).detach()
    end = now()
    with torch.no_grad():
        stays = pair.eager(theirs).argmax(1) == labels
    return {
        "ours": (~mine.success).int().tolist(),
        "reference": stays.int().tolist(),
        "ours_seconds": round(middle - start, 2),
        "reference_seconds": round(end - middle, 2),
    }


class _Notes:
    """What earlier runs finished; inert without a path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.records: list[Record] = [json.loads(line) for line in lines]

    def of(self, part: str, network: str) -> list[Record]:
        """In the order of the rows."""
        found = [r for r in self.records if (r["part"], r["network"]) == (part, network)]
        return sorted(found, key=lambda record: int(record["first"]))

    def fill(
        self, part: str, network: str, firsts: Iterable[int], measure: Callable[[int], Record]
    ) -> None:
        """Measure the chunks that begin at `firsts` and are not noted yet."""
        done = {record["first"] for record in self.of(part, network)}
        for first in firsts:
            if first in done:
                continue
            record = {"part": part, "network": network, "first": first, **measure(first)}
            self.records.append(record)
            if self._path is not None:
                with self._path.open("a") as file:
                    file.write(json.dumps(record) + "\n")


def figures(notes: _Notes) -> dict[str, Any]:
    """Of all that is noted, beside what was published."""
    found: dict[str, Any] = {}
    for network, published in PUBLISHED.items():
        item: dict[str, Any] = {"published": published}
        if records := notes.of("pgd", network):
            rows = sum(record["rows"] for record in records)
            correct, won = (sum(record[name] for record in records) for name in ("correct", "won"))
            item["pgd"] = {
                "images": rows,
                "accuracy": round(correct / rows, 4),
                "success": round((rows - correct + won) / rows, 4),
                "success_of_correct": round(won / correct, 4),
            }
        if records := notes.of("fab", network):
            distances = [value for record in records for value in record["distances"]]
            correct = sum(record["correct"] for record in records)
            # A row that FAB did not win counts as one that is farther than all others.
            ordered = sorted(distances) + [float("inf")] * (correct - len(distances))
            item["fab"] = {
                "images": sum(record["rows"] for record in records),
                "not_won": correct - len(distances),
                "median_linf": round(statistics.median(ordered), 4),
                **FAB,
            }
        if records := notes.of("auto_attack", network):
            item["auto_attack"] = _agreement(records)
        found[network] = item
    return found


def _agreement(records: list[Record]) -> dict[str, Any]:
    mine = [value for record in records for value in record["ours"]]
    theirs = [value for record in records for value in record["reference"]]
    seconds = {side: sum(r[f"{side}_seconds"] for r in records) for side in ("ours", "reference")}
    return {
        "images": len(mine),
        "robust_accuracy": round(sum(mine) / len(mine), 4),
        "reference_robust_accuracy": round(sum(theirs) / len(theirs), 4),
        "won_by_us_alone": sum(a < b for a, b in zip(mine, theirs, strict=True)),
        "won_by_the_reference_alone": sum(a > b for a, b in zip(mine, theirs, strict=True)),
        "seconds": {side: round(value, 1) for side, value in seconds.items()},
        "ratio": round(seconds["ours"] / seconds["reference"], 3),
    }


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure what is missing, and return the figures."""
    keep_freed_memory()
    notes = _Notes(None if quick else PARTIAL)
    parts = os.environ.get("PARITY", "pgd,fab,auto_attack").split(",")
    images, chunk = (40, 20) if quick else (IMAGES, CHUNK)
    x, labels = digits(images)
    for network in PUBLISHED:
        pair = Pair.load(network)
        for name, measure in (("pgd", pgd), ("fab", fab)):
            if name not in parts:
                continue

            def of_rows(
                first: int, measure: Callable[[Pair, Tensor, Tensor], Record] = measure
            ) -> Record:
                rows = slice(first, first + chunk)
                return {"rows": chunk, **measure(pair, x[rows], labels[rows])}  # noqa: B023

            notes.fill(name, network, range(0, images, chunk), of_rows)
    if "auto_attack" in parts and not quick:
        peers = Peers()
        most = int(os.environ.get("PARITY_ROWS", AUTO_ATTACK_ROWS))

        def both(first: int) -> Record:
            rows = slice(first, first + AUTO_ATTACK_CHUNK)
            return auto_attack(pair, peers, x[rows], labels[rows])

        notes.fill("auto_attack", "robust", range(0, most, AUTO_ATTACK_CHUNK), both)
    return figures(notes)
