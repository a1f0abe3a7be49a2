"""Logits of pictures of which a window has changed: by pieces (`Classifier.nearby`) and whole.

Random windows of random pictures, by the form of the network that attacks step with. Both sides in
turn within each round, a figure is the median over rounds. Time is the processor's with one thread
(`OMP_NUM_THREADS=1`), else the wall's. `difference` is of logits, over the largest. `--quick`
measures one round and writes nothing.
"""

from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from interpret_server.engine.allocator import keep_freed_memory
from interpret_server.models.classifier import Classifier
from interpret_server.plugin import Window

from ._attack_peers import Pair
from ._recognisability import judges
from ._sampling import in_turn, ratio, spread
from .attribution import clock

CALLS, ROUNDS = 5, 7  # calls timed together


def measured(model: Classifier, rows: int, side: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a call by either way, and how far their logits differ."""
    x = torch.rand(rows, *model.input_shape)
    room = torch.tensor(x.shape[2:]) - side + 1
    corner = (torch.rand(rows, 2) * room).long()
    trial = x.clone()
    for row, (top, left) in enumerate(corner.tolist()):
        trial[row, :, top : top + side, left : left + side] = torch.rand(x.shape[1], side, side)
    nearby, window, now = model.nearby(), Window(corner, (side, side)), clock()

    def pieces() -> torch.Tensor:
        return nearby.logits(trial, window, x)

    def whole() -> torch.Tensor:
        with torch.no_grad():
            return model(trial)

    def timed(call: Any) -> Any:
        def seconds() -> float:
            start = now()
            for _ in range(CALLS):
                call()
            return (now() - start) / CALLS

        return seconds

    expected = whole()
    difference = float((pieces() - expected).abs().max() / expected.abs().max())
    times = in_turn({"pieces": timed(pieces), "whole": timed(whole)}, rounds)
    return {
        "network": model.name,
        "rows": rows,
        "side": side,
        "pieces_ms": round(1e3 * spread(times["pieces"], 6)["median"], 2),
        "whole_ms": round(1e3 * spread(times["whole"], 6)["median"], 2),
        "ratio": ratio(times, "pieces", "whole"),
        "difference": difference,
    }


def main(*, quick: bool = False) -> list[dict[str, Any]]:
    """Measure and return the figures."""
    keep_freed_memory()
    torch.manual_seed(0)
    cases = [(Pair.load("robust").served, 100, (1, 3, 6, 9))]
    cases += [(judge.classifier, 4, (1, 6, 30)) for judge in judges()]
    return [
        measured(model.scout, rows, side, 1 if quick else ROUNDS)
        for model, rows, sides in cases
        for side in sides
    ]


def show(figures: list[dict[str, Any]]) -> None:
    """Print all cases as a table."""
    table = Table("network", "rows", "window", "whole, ms", "pieces, ms", "ratio", "difference")
    for item in figures:
        table.add_row(
            item["network"], str(item["rows"]), str(item["side"]), f"{item['whole_ms']:g}",
            f"{item['pieces_ms']:g}", f"{item['ratio']['median']:.2f}", f"{item['difference']:g}",
        )  # fmt: skip
    Console().print(table)
