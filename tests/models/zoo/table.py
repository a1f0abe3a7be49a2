"""Writes docs/zoo.md: how far every served form is from its eager module.

Run `python -m tests.models.zoo.table` in the repository's root; with `--full` for every opset.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch

from .architectures import ZOO, eager
from .cells import Cell, ExporterRefuses, judge, load
from .exports import Exporter, parameters
from .known import ROUNDED, ROUNDED_LIMIT, find
from .plan import DYNAMO_OPSETS, LEGACY_OPSETS, covering, full

PAGE = Path(__file__).parents[3] / "docs" / "zoo.md"
_COLUMNS = {
    "scripted": (Exporter.SCRIPT,),
    "traced": (Exporter.TRACE,),
    "frozen": (Exporter.FREEZE, Exporter.FREEZE_TRACE),
    "mixed": (Exporter.MIXED,),
    "torch.export": (Exporter.EXPORT,),
    "ONNX, TorchScript exporter": (Exporter.LEGACY,),
    "ONNX, dynamo exporter": (Exporter.DYNAMO,),
}
_HEAD = """# The architecture zoo

Small networks from code, with random weights and realistic batch statistics, are exported in every
way and served. Each file is compared with its eager module: logits, the input gradient (for tokens,
at the embedding), the values of a layer in the middle, that layer's gradient, and guided
backpropagation where there are rectifiers; at batch 1 and 5, and at a second size where sizes are
free. The tables hold the largest difference over the largest value, the worst of all these and of
all files in the column. `tests/models/zoo` fails beyond 1e-5 in float32 and 1e-10 in float64.

ONNX opsets {legacy} (TorchScript exporter) and {dynamo} (dynamo exporter), batch free and fixed to
1. {count} files; torch {torch}, onnx {onnx}, onnxruntime {onnxruntime}. "–" stands for what was not
exported. Regenerate with `python -m tests.models.zoo.table{full}`.
"""
_ROUNDED = """
Numbers with an asterisk are of files into which the exporter writes some numbers as float32; they
may differ by {limit:.0e}.
"""

Worst = dict[tuple[str, str], tuple[float, bool]]  # architecture, column -> difference, rounded


def measured(cells: Iterable[Cell]) -> tuple[Worst, list[str]]:
    """The worst differences, and what exporters refuse, one line each."""
    worst: Worst = {}
    refused: dict[str, list[str]] = defaultdict(list)
    columns = {exporter: name for name, group in _COLUMNS.items() for exporter in group}
    for cell in cells:
        with tempfile.TemporaryDirectory() as folder:
            try:
                loaded = load(cell, Path(folder))
            except ExporterRefuses as error:
                refused[f"{cell.name}, {columns[cell.export.exporter]}: {error}"[:160]].append(
                    str(cell.export)
                )
                continue
        found = max(item.measured for item in judge(cell, loaded))
        key = cell.name, columns[cell.export.exporter]
        before = worst.get(key, (0.0, False))
        worst[key] = max(before[0], found), before[1] or find(ROUNDED, cell) is not None
    return worst, [f"- {line} ({', '.join(exports)})" for line, exports in refused.items()]


def table(worst: Worst) -> list[str]:
    """A markdown table of architectures and columns."""
    lines = [
        f"| architecture | parameters | {' | '.join(_COLUMNS)} |",
        f"|---|---{'|---' * len(_COLUMNS)}|",
    ]
    for name in ZOO:
        entries = []
        for column in _COLUMNS:
            difference, rounded = worst.get((name, column), (None, False))
            star = "*" if rounded else ""
            entries.append("–" if difference is None else f"{difference:.0e}{star}")
        lines.append(f"| {name} | {parameters(eager(name)):,} | {' | '.join(entries)} |")
    return lines


def page(cells: list[Cell], full: bool) -> str:
    """The page, measured anew."""
    lines = [
        _HEAD.format(
            legacy=f"{LEGACY_OPSETS.start} to {LEGACY_OPSETS.stop - 1}",
            dynamo=f"{DYNAMO_OPSETS.start} to {DYNAMO_OPSETS.stop - 1}",
            count=len(cells),
            full=" --full" if full else "",
            **{name: version(name) for name in ("torch", "onnx", "onnxruntime")},
        )
    ]
    refused: list[str] = []
    for dtype, title in ((torch.float32, "float32"), (torch.float64, "float64")):
        worst, missing = measured(cell for cell in cells if cell.export.dtype is dtype)
        refused += missing
        lines += [f"## In {title}", "", *table(worst), ""]
    lines[-1] += _ROUNDED.format(limit=ROUNDED_LIMIT)
    if refused:
        lines += ["## What exporters refuse", "", *refused, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="every opset and every batch")
    wanted = parser.parse_args().full
    PAGE.write_text(page(full() if wanted else covering(), wanted))
