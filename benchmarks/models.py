"""What the lowered form costs: loading, forward and gradient against the eager module and the file.

For every architecture, all forms of it run in turn within each round, in an order that rotates, so
that whatever else the machine does hits them alike. A figure is the median over rounds of a form's
time over the eager module's in the same round, with the quartiles as its spread. With one thread
(`OMP_NUM_THREADS=1`) processor time is measured, which other processes disturb less; else wall
time. `python -m benchmarks models --quick` measures fewer rounds and writes no file.
"""

import contextlib
import copy
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from interpret_server.models.classifier import Classifier
from interpret_server.models.execution import Execution
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest

from ._architectures import ARCHITECTURES, Built, build
from ._exports import FORMATS, export, fresh, quiet

ROWS = (1, 16)
HOW = (Execution.EXACT, Execution.AUTO, Execution.FAST)  # that differ
TOLERATED = 1.05
_MEMORY_OF = "resnet50"
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        seconds: for all forms of one architecture, batch size and quantity.
        rounds: at least.
        sample: seconds that one sample takes at least; short calls are repeated.
        loads: of every file.
    """

    seconds: float = 15.0
    rounds: int = 7
    sample: float = 4e-3
    loads: int = 3


QUICK = Effort(seconds=0.5, rounds=3, sample=1e-3, loads=1)


@dataclass(frozen=True)
class Form:
    """One way to run a network.

    Args:
        name: `ours.<format>`, or what else runs it.
        run: from inputs to scores.
        differentiable: whether gradients are measured too.
        guard: entered around every call.
    """

    name: str
    run: Forward
    differentiable: bool = True
    guard: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


def classifier(path: Path, built: Built) -> Classifier:
    """The file as it is served."""
    manifest = Manifest.model_validate({"shape": list(built.shape), "bounds": [0, 1]})
    return load_classifier(built.name, path, manifest, device=torch.device("cpu")).classifier


def running(model: Classifier, how: Execution) -> Classifier:
    """The same model under another execution."""
    twin = copy.copy(model)
    twin.execution = how
    return twin


def forward(form: Form, x: Tensor) -> None:
    """One pass without gradients."""
    with torch.no_grad(), form.guard():
        form.run(x)


def gradient(form: Form, x: Tensor) -> None:
    """One pass forward, and back to the input."""
    leaf = x.detach().clone().requires_grad_()
    with form.guard():
        torch.autograd.grad(form.run(leaf)[:, 0].sum(), leaf)


def clock() -> Callable[[], float]:
    """Processor time where one thread works, else wall time."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def compared(calls: dict[str, Callable[[], None]], effort: Effort) -> dict[str, dict[str, float]]:
    """Milliseconds of each call, and its ratio to the first one's, with quartiles."""
    now = clock()
    names = list(calls)
    for name, call in calls.items():
        for _ in range(3 if name.startswith("archive") else 1):  # the executor compiles at first
            call()
    start = now()
    calls[names[0]]()
    repeats = max(1, round(effort.sample / max(now() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in names}
    begin, done = time.perf_counter(), 0
    while done < effort.rounds or (
        done < 40 and time.perf_counter() - begin < effort.seconds * (done + 1) / (done + 2)
    ):
        for offset in range(len(names)):
            name = names[(offset + done) % len(names)]
            call, start = calls[name], now()
            for _ in range(repeats):
                call()
            times[name].append((now() - start) / repeats)
        done += 1
    figures = {}
    for name in names:
        ratios = [t / base for t, base in zip(times[name], times[names[0]], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        figures[name] = {
            "ms": round(1e3 * statistics.median(times[name]), 4),
            "ratio": round(middle, 3),
            "low": round(low, 3),
            "high": round(high, 3),
        }
    return figures


def forms(built: Built, files: dict[str, Path], models: dict[str, Classifier]) -> Iterator[Form]:
    """Every way to run a network, the eager module first."""
    yield Form("eager", built.module)
    for name, model in models.items():
        yield Form(f"ours.{name}", model)
    if "scripted" in files:
        for how in (Execution.EXACT, Execution.FAST):
            yield Form(f"ours.scripted.{how.value}", running(models["scripted"], how))
        archive = fresh(torch.jit.load(str(files["scripted"])))
        yield Form("archive.default", archive)
        plain = fresh(torch.jit.load(str(files["scripted"])))
        yield Form("archive.plain", plain, guard=lambda: torch.jit.optimized_execution(False))
    if "exported" in files:
        with quiet():
            module = torch.export.load(files["exported"]).module()
        yield Form("torch.export", module)
    if "onnx" in files:
        yield from _onnx_forms(files["onnx"])


def _onnx_forms(path: Path) -> Iterator[Form]:
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        (declared,) = session.get_inputs()

        def run(x: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {declared.name: x.numpy()})[0])

        yield Form("onnxruntime", run, differentiable=False)
    if importlib.util.find_spec("onnx2torch"):
        from onnx2torch import convert

        yield Form("onnx2torch", fresh(convert(str(path))))


def speed(built: Built, every: list[Form], effort: Effort) -> dict[str, Any]:
    """Forward and gradient of all forms at every batch size."""
    figures: dict[str, Any] = {}
    for rows in ROWS:
        x = torch.rand(rows, *built.shape)
        calls = {form.name: lambda form=form, x=x: forward(form, x) for form in every}
        back = {
            form.name: lambda form=form, x=x: gradient(form, x)
            for form in every
            if form.differentiable
        }
        figures[str(rows)] = {
            "forward": compared(calls, effort),
            "gradient": compared(back, effort),
        }
    return figures


def accuracy(built: Built, model: Classifier, rows: int = 16) -> dict[str, dict[str, float]]:
    """How far each row's float32 gradient is from the eager module's in float64.

    The largest difference over the largest value of the row: median and maximum over rows.
    """
    x = torch.rand(rows, *built.shape, generator=torch.Generator().manual_seed(1))
    exact = copy.deepcopy(built.module).double()
    with torch.no_grad():
        targets = exact(x.double()).argmax(1)

    def slope(module: Forward, x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        chosen = module(leaf).gather(1, targets[:, None]).sum()
        return torch.autograd.grad(chosen, leaf)[0].double().flatten(1)

    truth = slope(exact, x.double())
    found = {"eager": slope(built.module, x)}
    for how in HOW:
        found[how.value] = slope(running(model, how), x)
    errors = {
        name: (values - truth).abs().amax(1) / truth.abs().amax(1) for name, values in found.items()
    }
    return {
        name: {"median": float(f"{e.median():.3g}"), "largest": float(f"{e.max():.3g}")}
        for name, e in errors.items()
    }


def loaded(path: Path, built: Built, times: int) -> tuple[Classifier, float]:
    """The file as it is served, and the seconds that loading takes: the median of several."""
    now, seconds = clock(), []
    for _ in range(times):
        start = now()
        model = classifier(path, built)
        seconds.append(now() - start)
    return model, round(statistics.median(seconds), 3)


def load_memory(path: Path, name: str) -> float | None:
    """MiB by which a process of its own grows at most while it loads a file."""
    command = [sys.executable, "-m", "benchmarks.models", str(path), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.returncode == 0 else None


def measure(name: str, folder: Path, effort: Effort) -> dict[str, Any]:
    """All figures of one architecture."""
    built = build(name)
    files: dict[str, Path] = {}
    models: dict[str, Classifier] = {}
    seconds: dict[str, float] = {}
    failed: dict[str, str] = {}
    for form in FORMATS:
        try:
            path = export(built, form, folder)
            models[form], seconds[form] = loaded(path, built, effort.loads)
            files[form] = path
        except Exception as error:  # what cannot be exported or loaded is a result
            failed[form] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    figures: dict[str, Any] = {
        "shape": list(built.shape),
        "parameters": sum(p.numel() for p in built.module.parameters()),
        "file_mib": {form: round(_size(path) / 2**20, 2) for form, path in files.items()},
        "load_seconds": seconds,
        "failed": failed,
        "gradient_error": accuracy(built, models["scripted"]),
        "rows": speed(built, list(forms(built, files, models)), effort),
    }
    if name == _MEMORY_OF:
        figures["load_mib"] = {form: load_memory(path, name) for form, path in files.items()}
    return figures


def _size(path: Path) -> int:
    return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure and return the figures."""
    effort = QUICK if quick else Effort()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for architecture in track(ARCHITECTURES, description="models", transient=True):
            figures[architecture] = measure(architecture, Path(name), effort)
    ratios = {
        f"{architecture} {rows} {quantity} {form}": found["ratio"]
        for architecture, item in figures.items()
        for rows, quantities in item["rows"].items()
        for quantity, cells in quantities.items()
        for form, found in cells.items()
        if form.startswith("ours.") and form.count(".") == 1
    }
    slower = {what: ratio for what, ratio in ratios.items() if ratio > TOLERATED}
    return {
        "quick": quick,
        "threads": torch.get_num_threads(),
        "clock": clock().__name__,
        "cells": len(ratios),
        "median_ratio_to_eager": round(statistics.median(ratios.values()), 3),
        "slower_than_tolerated": slower,
        "architectures": figures,
    }


def show(figures: dict[str, Any]) -> None:
    """Print the ratios to the eager module as tables."""
    console = Console(width=150)
    for quantity in ("forward", "gradient"):
        table = Table(title=f"{quantity}: time over the eager module's")
        columns: dict[str, None] = {}
        for item in figures["architectures"].values():
            for found in item["rows"].values():
                columns |= dict.fromkeys(found[quantity])
        columns.pop("eager", None)
        for heading in ("network", "rows", "eager ms", *columns):
            table.add_column(heading.replace(".", "\n"), justify="right")
        for architecture, item in figures["architectures"].items():
            for rows, found in item["rows"].items():
                cells = found[quantity]
                ratios = (
                    f"{cells[column]['ratio']:.2f}" if column in cells else "" for column in columns
                )
                table.add_row(architecture, rows, f"{cells['eager']['ms']:.2f}", *ratios)
        console.print(table)
    table = Table(title="loading, seconds")
    for heading in ("network", *FORMATS):
        table.add_column(heading, justify="right")
    for architecture, item in figures["architectures"].items():
        seconds = item["load_seconds"]
        table.add_row(architecture, *(str(seconds.get(form, "")) for form in FORMATS))
    console.print(table)
    table = Table(title="gradient in float32 against float64: median and largest over rows")
    for heading in ("network", "eager", *(how.value for how in HOW)):
        table.add_column(heading, justify="right")
    for architecture, item in figures["architectures"].items():
        errors = item["gradient_error"].values()
        table.add_row(architecture, *(f"{e['median']:.1e}  {e['largest']:.1e}" for e in errors))
    console.print(table)
    console.print(
        f"{figures['cells']} cells, median ratio {figures['median_ratio_to_eager']}; slower than "
        f"{TOLERATED}: {figures['slower_than_tolerated'] or 'none'}"
    )


def _child(path: str, name: str) -> None:
    architecture = ARCHITECTURES[name]
    before = _peak_mib()
    classifier(Path(path), Built(name, torch.nn.Identity(), architecture.shape))
    print(json.dumps(round(_peak_mib() - before, 1)))


def _peak_mib() -> float:
    """The most memory that this process has held; getrusage would count its parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    _child(*sys.argv[1:])
