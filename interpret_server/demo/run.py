"""Trains, exports, serves, asks everything over gRPC, and writes the gallery."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

import interpret_client
from interpret_client import Client, FailedPrecondition, InvalidRequest

from .digits import (
    EPOCHS,
    DigitNet,
    Digits,
    accuracy,
    load_digits,
    save_onnx,
    save_torchscript,
    train,
)
from .gallery import Cell, Gallery, Section
from .recipes import Recipe, recipe

MODELS = ("digits-torchscript", "digits-onnx")
JUDGE = "judge-torchscript"
START_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """What one plugin gave on one model, and how long it took."""

    result: interpret_client.Result
    seconds: float


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A server process of its own on a free loopback port; yields its address."""
    ready, log = folder / "address", folder / "server.log"
    command = [sys.executable, "-m", "interpret_server", "serve"]
    command += ["--address", "127.0.0.1:0", "--ready-file", str(ready)]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output) as process,
    ):
        try:
            deadline = time.monotonic() + START_SECONDS
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start:\n{log.read_text()}")
                time.sleep(0.05)
            yield ready.read_text().strip()
        finally:
            process.terminate()
            process.wait(timeout=30)


def one_of_each(data: Digits) -> Digits:
    """The first digit of each class, 0 to 9."""
    rows = np.array([int(np.flatnonzero(data.labels == label)[0]) for label in range(10)])
    return Digits(data.images[rows], data.labels[rows])


def ask(
    client: Client, plugin: str, model: str, plan: Recipe, digits: Digits, bar: Progress
) -> Outcome:
    """Run one plugin on one model, with a progress bar of its steps.

    Raises:
        FailedPrecondition: the model cannot be asked this.
    """
    task = bar.add_task(f"{plugin:>20}  {model}", total=1)
    started = time.perf_counter()
    result = None
    for event in client.stream(
        plugin,
        model,
        digits.images if plan.inputs else None,
        target=plan.targets(digits.labels),
        params=plan.params,
        tensors=plan.tensors(digits.images),
        seed=0,
        render=True,
    ):
        if event.progress is not None:
            bar.update(task, completed=event.progress.done, total=event.progress.total)
        if event.result is not None:
            result = event.result
    if result is None:
        raise RuntimeError(f"{plugin} on {model} ended without a result")
    total = bar.tasks[task].total
    bar.update(task, completed=total)
    return Outcome(result, time.perf_counter() - started)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _advance(bar: Progress, task: TaskID, done: int) -> None:
    bar.update(task, completed=done)


def prepare(folder: Path, console: Console) -> tuple[Digits, dict[str, Path]]:
    """Train two networks on disjoint digits and export them; returns held-out digits and files."""
    first, second, held_out = load_digits()
    nets: dict[str, DigitNet] = {}
    with _progress(console) as bar:
        for name, data, seed in (("digits", first, 0), ("judge", second, 1)):
            task = bar.add_task(f"{'train':>20}  {name}", total=EPOCHS)
            nets[name] = train(data, seed, partial(_advance, bar, task))
    files = {
        MODELS[0]: folder / "digits.pt",
        MODELS[1]: folder / "digits.onnx",
        JUDGE: folder / "judge.pt",
    }
    save_torchscript(nets["digits"], files[MODELS[0]])
    save_onnx(nets["digits"], files[MODELS[1]])
    save_torchscript(nets["judge"], files[JUDGE])
    for name, net in nets.items():
        console.print(f"{name}: {accuracy(net, held_out):.1%} of {len(held_out)} held-out digits")
    return held_out, files


def section(
    title: str, plan: Recipe, outcomes: dict[str, Outcome], digits: Digits, judge: list[int] | None
) -> Section:
    """A plugin's part of the gallery: one line of pictures per file."""
    lines: dict[str, list[Cell]] = {}
    for model, outcome in outcomes.items():
        result = outcome.result
        for field, pictures in result.pictures.items():
            one_each = len(pictures) == len(digits) and not plan.everything
            cells = []
            for row, png in enumerate(pictures):
                caption = plan.caption(result, row, digits) if one_each else ""
                if judge is not None and field == "images":
                    caption += f", judge says {judge[row]}"
                cells.append(Cell(png, caption))
            lines[f"{field} · {model} ({outcome.seconds:.1f} s)"] = cells
    return Section(title, plan.text, lines)


def agreement(outcomes: dict[str, Outcome]) -> float | None:
    """Largest difference between the two files' main tensors, over the largest value."""
    first, second = (outcomes[model].result.tensors for model in MODELS)
    name = next((n for n in ("attributions", "images", "adversarial") if n in first), None)
    if name is None:
        return None
    scale = float(np.abs(first[name]).max()) or 1.0
    return float(np.abs(first[name] - second[name]).max()) / scale


def main(output: Path = Path("demo-output")) -> None:
    """Run the demonstration and leave `index.html` in `output`."""
    console = Console()
    started = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held_out, files = prepare(folder, console)
        digits = one_of_each(held_out)
        with server(folder) as address, interpret_client.connect(address) as client:
            console.print(f"serving on {address}")
            gallery, table = explore(client, files, digits, held_out, console)
    page = output / "index.html"
    page.write_text(gallery.html(), encoding="utf-8")
    console.print(table)
    console.print(f"{page} · {time.perf_counter() - started:.0f} s")


def explore(
    client: Client,
    files: dict[str, Path],
    digits: Digits,
    held_out: Digits,
    console: Console,
) -> tuple[Gallery, Table]:
    """Load the files, run every plugin on both, and collect what they gave."""
    gallery = Gallery("interpret-server on handwritten digits")
    for name, path in files.items():
        model = client.load_model(
            name, path, manifest={"shape": [1, 8, 8], "bounds": [0, 1]}, replace=True
        )
        labels = client.predict(name, held_out.images).classes
        gallery.fact(
            name,
            f"{model.form} form, {len(model.layers)} layers, within "
            f"{model.verification.max_difference:.1e} of {model.verification.reference}, "
            f"{float((labels == held_out.labels).mean()):.1%} of {len(held_out)} held-out digits, "
            f"sha256 {model.sha256[:12]}…",
        )
    logits = [client.predict(name, digits.images).logits for name in MODELS]
    gap = float(np.abs(logits[0] - logits[1]).max())
    gallery.fact(
        "the two files", f"logits differ by at most {gap:.1e}" if gap else "logits are identical"
    )
    gallery.add(Section.originals(digits.images, [f"digit {label}" for label in digits.labels]))

    table = Table("plugin", "torchscript", "onnx", "files differ by", "what came out")
    with _progress(console) as bar:
        for plugin in sorted(client.plugins(), key=lambda p: (p.kind, p.name)):
            plans = {model: recipe(plugin, client.model(model)) for model in MODELS}
            plan = plans[MODELS[0]]
            shown_digits = held_out if plan.everything else digits
            try:
                outcomes = {
                    model: ask(client, plugin.name, model, plans[model], shown_digits, bar)
                    for model in MODELS
                }
            except (FailedPrecondition, InvalidRequest) as refusal:
                gallery.add(Section(plugin.name, f"{plan.text} Left out: {refusal}", {}))
                gallery.row(plugin.name, "", f"left out: {refusal}")
                table.add_row(plugin.name, "", "", "", "left out, see the gallery")
                continue
            judge = None
            if plan.judged:
                images = outcomes[MODELS[0]].result.tensors["images"]
                judge = [int(label) for label in client.predict(JUDGE, images).classes]
            gallery.add(section(plugin.name, plan, outcomes, shown_digits, judge))
            difference = agreement(outcomes)
            summary = plan.summary(outcomes[MODELS[0]].result)
            if judge is not None:
                right = sum(label == row for row, label in enumerate(judge))
                summary += f"; judge right on {right} of {len(judge)}"
            shown = "" if difference is None else f"{difference:.1e}" if difference else "nothing"
            gallery.row(plugin.name, shown, summary)
            seconds = [f"{outcomes[model].seconds:.2f} s" for model in MODELS]
            table.add_row(plugin.name, *seconds, shown, summary)
    return gallery, table
