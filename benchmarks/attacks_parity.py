"""Attacks against published figures and against AutoAttack's port, on the advertorch MNIST pair.

PGD-40 (epsilon 0.3, 40 steps of 0.01, no random start) and FAB (Linf) on all 10,000 test images,
and `auto_attack` against torchattacks' port, with the original's 100 steps, image by image from the
first 1,000. Seconds are the processor's with one thread; those of AutoAttack are of separate runs,
`benchmarks.attacks` compares them in one.

A full run takes hours. Images are noted in `results/attacks_parity.partial.jsonl` as they are
finished, a run goes on from there, and the figures are of all that is noted; delete that file after
a change of the code. `PARITY=pgd,fab,auto_attack,reference` picks parts, the last being the port;
`PARITY_ROWS=200` is how many images AutoAttack is to reach. `--quick` takes a few images and notes
nothing.
"""

import json
import os
import statistics
import warnings
from collections.abc import Callable, Iterable
from functools import partial
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
FAB = {"steps": 20}  # towards all classes: advertorch's defaults, with which it was published
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


def auto_attack(pair: Pair, x: Tensor, labels: Tensor) -> Record:
    """Which rows stay right, and the seconds."""
    now = clock()
    start = now()
    stays = ~ours("auto_attack", pair.served, x, labels, epsilon=EPSILON).success
    return {"stays": stays.int().tolist(), "seconds": round(now() - start, 2)}


def reference(peers: Peers, pair: Pair, x: Tensor, labels: Tensor) -> Record:
    """The same by torchattacks' port."""
    now = clock()
    start = now()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = peers.auto_attack(pair.eager)(x, labels).detach()
    seconds = round(now() - start, 2)
    with torch.no_grad():
        stays = pair.eager(found).argmax(1) == labels
    return {"stays": stays.int().tolist(), "seconds": seconds}


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
        parts = [notes.of(part, network) for part in ("auto_attack", "reference")]
        if all(parts):
            item["auto_attack"] = _agreement(*parts)
        found[network] = item
    return found


def _agreement(mine: list[Record], theirs: list[Record]) -> dict[str, Any]:
    """Of the rows that both have met."""
    common = {record["first"] for record in mine} & {record["first"] for record in theirs}
    sides = [[r for r in records if r["first"] in common] for records in (mine, theirs)]
    ours_stay, theirs_stay = ([v for r in side for v in r["stays"]] for side in sides)
    pairs = list(zip(ours_stay, theirs_stay, strict=True))
    return {
        "images": len(pairs),
        "robust_accuracy": round(sum(ours_stay) / len(pairs), 4),
        "reference_robust_accuracy": round(sum(theirs_stay) / len(pairs), 4),
        "won_by_us_alone": sum(a < b for a, b in pairs),
        "won_by_the_reference_alone": sum(a > b for a, b in pairs),
        "seconds": {
            side: round(sum(record["seconds"] for record in records), 1)
            for side, records in zip(("ours", "reference"), sides, strict=True)
        },
    }


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure what is missing, and return the figures."""
    keep_freed_memory()
    notes = _Notes(None if quick else PARTIAL)
    wanted = os.environ.get("PARITY", "pgd,fab,auto_attack,reference").split(",")
    images, chunk = (40, 20) if quick else (IMAGES, CHUNK)
    rows = 0 if quick else int(os.environ.get("PARITY_ROWS", AUTO_ATTACK_ROWS))
    x, labels = digits(images)
    pairs = {network: Pair.load(network) for network in PUBLISHED}
    parts: dict[str, tuple[Callable[[Pair, Tensor, Tensor], Record], int, int]] = {
        "pgd": (pgd, images, chunk),
        "fab": (fab, images, chunk),
        "auto_attack": (auto_attack, rows, AUTO_ATTACK_CHUNK),
    }
    if rows and "reference" in wanted:
        parts["reference"] = (partial(reference, Peers()), rows, AUTO_ATTACK_CHUNK)
    for part, (measure, count, size) in parts.items():
        if part not in wanted:
            continue
        for network, pair in pairs.items():

            def of_rows(first: int) -> Record:
                some = slice(first, first + size)  # noqa: B023
                return {"rows": size, **measure(pair, x[some], labels[some])}  # noqa: B023

            notes.fill(part, network, range(0, count, size), of_rows)
    return figures(notes)
