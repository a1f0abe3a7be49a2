"""Recognisability of class images: the share that a different real classifier puts in its top 5.

Images of 100 fixed ImageNet classes (5, 15, 25, ... 995) are made on SqueezeNet 1.1 and judged by
MobileNet v2, and the other way round: by every preset of `class_visualization`, by the plain recipe
of 2013 and by torch-lucent's default render. Neither the judge nor any photo takes part in making
an image. Seconds are per image: of the processor with one thread (`OMP_NUM_THREADS=1`), else wall
time.

A full run takes hours. `SYNTHESIS_CLASSES=20` takes that many of the classes, evenly spread;
`SYNTHESIS_BY=octaves,torch-lucent` makes images by these alone, `SYNTHESIS_ON=mobilenet_v2` on this
network alone. Finished images are noted in
`results/synthesis.partial.jsonl`: a run goes on from there and reports all that is noted of its
classes; delete that file after a change of the code. `--quick` makes two images each way by the
default preset and writes nothing. `SYNTHESIS_IMAGES=folder` keeps every image as a PNG file.
"""

import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from ._recognisability import LUCENT, SLOW_PRESETS, Judge, Make, judges, makers

CLASSES = tuple(5 + 10 * (37 * place % 100) for place in range(100))  # any first few are spread
SLOW_SHARE = 5  # presets of 500 steps and more make every fifth image only
ROWS = 5  # images made together, but for torch-lucent's render of one
PARTIAL = Path(__file__).parent / "results" / "synthesis.partial.jsonl"
Figures = dict[str, dict[str, dict[str, float]]]


def clock() -> float:
    """Seconds of the processor where one thread works, else of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def figures(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The shares of images among the judge's first, and of those that made them."""
    ranks = [record["rank"] for record in records]
    return {
        "images": len(records),
        "top5": round(sum(rank < 5 for rank in ranks) / len(ranks), 3),
        "top1": round(sum(rank < 1 for rank in ranks) / len(ranks), 3),
        "median_rank": statistics.median(ranks) + 1,
        "own_top1": round(sum(record["own"] < 1 for record in records) / len(records), 3),
        "seconds_per_image": round(statistics.mean(record["seconds"] for record in records), 2),
    }


def keep(images: Tensor, names: Sequence[str]) -> None:
    """Write images `(N, 3, H, W)` in [0, 1] to the folder that the environment names, if any."""
    if folder := os.environ.get("SYNTHESIS_IMAGES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for image, name in zip(images, names, strict=True):
            pixels = (image.clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy()
            Image.fromarray(pixels).save(Path(folder) / f"{name}.png")


def made(
    name: str, make: Make, source: Judge, judge: Judge, classes: Sequence[int]
) -> list[dict[str, Any]]:
    """One record per class."""
    start = clock()
    images = make(source, classes)
    seconds = (clock() - start) / len(classes)
    keep(images, [f"{source.name}.{name}.{label}" for label in classes])
    ranks = zip(judge.ranks(images, classes), source.ranks(images, classes), strict=True)
    return [
        {"class": label, "rank": rank, "own": own, "seconds": seconds}
        for label, (rank, own) in zip(classes, ranks, strict=True)
    ]


class _Notes:
    """What earlier runs finished; inert without a path."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.records = [json.loads(line) for line in lines]

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        self.records += records
        if self._path is not None:
            with self._path.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)

    def of(self, way: str, maker: str, classes: Sequence[int]) -> list[dict[str, Any]]:
        return [
            record
            for record in self.records
            if (record["way"], record["maker"]) == (way, maker) and record["class"] in classes
        ]


def chosen(quick: bool) -> list[int]:
    """The classes of this run."""
    count = 2 if quick else int(os.environ.get("SYNTHESIS_CLASSES", len(CLASSES)))
    return [*CLASSES[:count]]


def _wanted(variable: str, name: str) -> bool:
    """Whether an environment variable names this among others, or nothing."""
    names = os.environ.get(variable, "")
    return not names or name in names.split(",")


def _work(quick: bool) -> Iterator[tuple[str, Make, Judge, Judge, list[int]]]:
    first, second = judges()
    every = chosen(quick)
    for name, make in makers(quick).items():
        classes = every[: len(every) // SLOW_SHARE] if name in SLOW_PRESETS else every
        for source, judge in ((first, second), (second, first)):
            makes = _wanted("SYNTHESIS_BY", name) and _wanted("SYNTHESIS_ON", source.name)
            yield name, make, source, judge, classes if makes else []


def main(quick: bool = False) -> Figures:
    """Shares and seconds by direction and maker."""
    notes, found = _Notes(None if quick else PARTIAL), Figures()
    for name, make, source, judge, classes in track(list(_work(quick)), "recognisability"):
        way = f"{source.name} -> {judge.name}"
        done = {record["class"] for record in notes.of(way, name, chosen(quick))}
        left = [label for label in classes if label not in done]
        rows = 1 if name == LUCENT else ROWS
        for start in range(0, len(left), rows):
            records = made(name, make, source, judge, left[start : start + rows])
            notes.add([{"way": way, "maker": name, **record} for record in records])
        if records := notes.of(way, name, chosen(quick)):
            found.setdefault(way, {})[name] = figures(records)
    return found


def show(found: Figures) -> None:
    """A table for each direction."""
    for way, rows in found.items():
        table = Table("images by", *next(iter(rows.values())), title=way)
        for name, row in rows.items():
            table.add_row(name, *(f"{value:g}" for value in row.values()))
        Console().print(table)
