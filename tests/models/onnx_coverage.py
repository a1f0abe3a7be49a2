"""`python onnx_coverage.py [PAGE]`: score the importer on the official cases of the onnx package.

Each case runs in a forked worker, so that a crash or an endless loop costs that case alone. An
output must have the expected shape and type, and values within the case's tolerance. Gradients are
those of the same graph in float64, along a random direction, against central differences.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx_official import SUITES, Case, selected
from onnx_twin import compare_gradient
from torch import Tensor

from interpret_server.models.onnx import to_module

_LIMIT = 120.0  # seconds for one case
_BFLOAT16 = 2.0**-6


@dataclass(frozen=True)
class Result:
    """What became of a case.

    Args:
        reason: why it failed; empty where it passed.
        gradient: `checked`, `zero` (rightly), `none` (nothing to differentiate), or what is wrong.
    """

    reason: str
    gradient: str = "none"

    @property
    def passed(self) -> bool:
        """Whether values and gradients are right."""
        return not self.reason and self.gradient in ("checked", "zero", "none")


def examine(case: Case, gradients: bool = True) -> Result:
    """Import a case, run it on its data and check its gradient."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        onnx.save(case.model, path)
        try:
            module = to_module(path)
            for inputs, outputs in case.data:
                with torch.no_grad():
                    found = module(*map(to_tensor, inputs))
                if wrong := _difference(case, found, outputs):
                    return Result(wrong)
            if not gradients:
                return Result("")
        except Exception as error:
            return Result(f"{type(error).__name__}: {str(error)[:200]}")
    try:
        return Result("", compare_gradient(case, [to_tensor(v) for v in case.data[0][0]]))
    except Exception as error:
        return Result("", f"{type(error).__name__}: {str(error)[:200]}")


def to_tensor(value: Any) -> Tensor:
    """A numpy array as a tensor; bfloat16 too."""
    array = np.array(value, order="C")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _difference(case: Case, found: Sequence[Tensor], expected: Sequence[Any]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} outputs rather than {len(expected)}"
    for index, (ours, array) in enumerate(zip(found, expected, strict=True)):
        theirs = to_tensor(array)
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            told = [f"{list(x.shape)} {str(x.dtype)[6:]}" for x in (ours, theirs)]
            return f"output {index} is {told[0]} rather than {told[1]}"
        rtol = max(case.rtol, _BFLOAT16) if theirs.dtype is torch.bfloat16 else case.rtol
        a, b = ours.double(), theirs.double()
        if not torch.allclose(a, b, rtol=rtol, atol=case.atol, equal_nan=True):
            return f"output {index} differs by up to {float((a - b).abs().max()):.3g}"
    return ""


def run(
    cases: Sequence[Case], jobs: int, *, limit: float = _LIMIT, quick: bool = False
) -> list[Result]:
    """Examine every case in one of `jobs` forked workers.

    Args:
        cases: in the order of the results.
        jobs: how many workers.
        limit: seconds for one case.
        quick: without the gradients of whole networks.
    """
    results: list[Result | None] = [None] * len(cases)
    todo = iter(range(len(cases)))
    workers: dict[Connection, _Worker] = {}

    def start() -> None:
        worker = _Worker(cases, quick)
        if worker.next(todo):
            workers[worker.connection] = worker

    for _ in range(jobs):
        start()
    while workers:
        ready = wait(list(workers), timeout=1.0)
        for connection, worker in list(workers.items()):
            if connection in ready:
                try:
                    results[worker.index] = connection.recv()
                except (EOFError, ConnectionResetError):
                    results[worker.index] = Result("the process crashed")
                else:
                    if worker.next(todo):
                        continue
            elif time.monotonic() < worker.started + limit:
                continue
            else:
                results[worker.index] = Result(f"not done after {limit:.0f} seconds")
            worker.end()
            del workers[connection]
            start()
    return [result or Result("never run") for result in results]


class _Worker:
    def __init__(self, cases: Sequence[Case], quick: bool) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, inner = context.Pipe()
        self.process = context.Process(target=_work, args=(cases, inner, quick), daemon=True)
        self.process.start()
        inner.close()
        self.index, self.started = 0, 0.0

    def next(self, todo: Iterator[int]) -> bool:
        """Give it another case; False where there is none."""
        self.index, self.started = next(todo, -1), time.monotonic()
        if self.index < 0:
            self.end()
            return False
        self.connection.send(self.index)
        return True

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(cases: Sequence[Case], connection: Connection, quick: bool) -> None:
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    warnings.simplefilter("ignore")
    while True:
        case = cases[connection.recv()]
        connection.send(examine(case, gradients=not quick or case.suite != "light"))


def failures(cases: Sequence[Case], results: Sequence[Result]) -> list[str]:
    """One line per case that fails."""
    return [
        f"{case.suite}/{case.name}: {result.reason or 'gradient: ' + result.gradient}"
        for case, result in zip(cases, results, strict=True)
        if not result.passed
    ]


def page(cases: Sequence[Case], results: Sequence[Result], left_out: dict[str, list[str]]) -> str:
    """The table of results, as Markdown."""
    both = list(zip(cases, results, strict=True))
    nodes = [item for item in both if item[0].suite == "node"]
    lines = [
        "# ONNX coverage",
        "",
        f"Made by `make onnx-coverage` with onnx {onnx.__version__} and torch "
        f"{torch.__version__.partition('+')[0]}.",
        "",
        "Each case of the onnx package's own test suites is imported by "
        "`interpret_server.models.onnx.to_module` and compared with the recorded outputs: shape, "
        "type and values. *Gradients* counts the cases whose gradient was compared with central "
        "differences in float64; the others have no differentiable input or output, or a gradient "
        "that is zero everywhere, which is checked too.",
        "",
        "| suite | cases | passed | gradients | opsets |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(suite, [item for item in both if item[0].suite == suite]) for suite in SUITES]
    lines += ["", "## Operators", ""]
    lines += ["| operator | cases | passed | gradients | opsets |", "|---|---|---|---|---|"]
    lines += [
        _row(name, [item for item in nodes if item[0].operator == name])
        for name in sorted({case.operator for case, _ in nodes}, key=str.lower)
    ]
    lines += ["", "## Left out", "", "| the case | cases |", "|---|---|"]
    lines += [
        f"| {reason} | {len(names)} |"
        for reason, names in sorted(left_out.items(), key=lambda item: -len(item[1]))
    ]
    if wrong := failures(cases, results):
        lines += ["", "## Failures", "", *(f"- {line}" for line in wrong)]
    return "\n".join(lines) + "\n"


def _row(name: str, items: Sequence[tuple[Case, Result]]) -> str:
    opsets = sorted({case.opset for case, _ in items})
    versions = str(opsets[0]) if len(opsets) == 1 else f"{opsets[0]}–{opsets[-1]}" if opsets else ""
    passed = sum(result.passed for _, result in items)
    checked = sum(result.gradient == "checked" for _, result in items)
    return f"| {name} | {len(items)} | {passed} | {checked} | {versions} |"


def main() -> int:
    """Run, print the page and write it; 1 where a case fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, help="where to write the table")
    parser.add_argument("--suites", default=",".join(SUITES))
    parser.add_argument("--match", default="", help="part of the names of cases")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="no gradients of whole networks")
    options = parser.parse_args()
    cases, left_out = selected(tuple(options.suites.split(",")))
    cases = [case for case in cases if options.match in case.name]
    results = run(cases, options.jobs, quick=options.quick)
    told = page(cases, results, left_out)
    print(told)
    print(dict(Counter(result.gradient for result in results if len(result.gradient) < 10)))
    if options.page:
        options.page.write_text(told)
    return 1 if failures(cases, results) else 0


if __name__ == "__main__":
    sys.exit(main())
