"""Attacks against proofs: `auto_attack` on the boxes of VNN-COMP benchmarks, all instances.

Boxes that verifiers proved robust (`unsat`) must not be won, and of those with a known violation
(`sat`) all but one in a hundred should be. Bounds are cast to float32 inwards; a success counts
where the point lies in the float64 box and onnxruntime, asked about it alone, gives the answer too.
Robust boxes get one restart and fewer queries. Instances are noted in
`results/attacks_proofs.partial.jsonl`, from where a run goes on; delete that file after a change of
the code. `--quick` takes a few of the smallest network and notes nothing.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.progress import track
from torch import Tensor

from interpret_server.engine.allocator import keep_freed_memory
from interpret_server.models.classifier import Classifier
from interpret_server.models.loading import load_classifier
from interpret_server.models.manifest import Manifest
from interpret_server.plugin import Batch, Job, Targets

from ._attack_peers import plugin_of
from ._networks import DEVICE, SHARED
from .attribution import clock

PARTIAL = Path(__file__).parent / "results" / "attacks_proofs.partial.jsonl"
BUDGETS: dict[str, dict[str, Any]] = {
    "sat": {"restarts": 10, "steps": 100, "queries": 5000},
    "unsat": {"restarts": 1, "steps": 50, "queries": 500},
}
ROWS = 10  # attacked together
Instance = dict[str, Any]


def inwards(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 bounds in float32, the box no larger."""
    low, high = lower.float(), upper.float()
    up, down = torch.full_like(low, torch.inf), torch.full_like(high, -torch.inf)
    low = torch.where(low.double() < lower, low.nextafter(up), low)
    return low, torch.where(high.double() > upper, high.nextafter(down), high)


class Benchmark:
    """The instances of one VNN-COMP benchmark.

    Args:
        folder: with `index.json`, `boxes.npz` and `models`.
    """

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = folder.name, folder
        self.instances: list[Instance] = json.loads((folder / "index.json").read_text())[
            "instances"
        ]
        boxes = np.load(folder / "boxes.npz")
        self._lower, self._upper = (torch.from_numpy(boxes[side]) for side in ("lower", "upper"))

    def size(self, model: str) -> int:
        """Bytes of a network's file: small ones are attacked first."""
        return (self._folder / "models" / model).stat().st_size

    def classifier(self, model: str) -> Classifier:
        """One of its networks; its bounds hold all boxes."""
        shape = tuple(self._lower.shape[1:])
        bounds = (float(self._lower.min()), float(self._upper.max()))
        manifest = Manifest.model_validate({"shape": shape, "bounds": bounds})
        path = self._folder / "models" / model
        return load_classifier(self.name, path, manifest, device=DEVICE).classifier

    def attack(
        self, model: Classifier, file: str, rows: list[Instance], budget: dict[str, Any]
    ) -> list[Instance]:
        """One note for each of some instances of the same network and mode."""
        exact = [side[[row["id"] for row in rows]] for side in (self._lower, self._upper)]
        lower, upper = (side.to(DEVICE) for side in inwards(*exact))
        targeted = rows[0]["mode"] == "targeted"
        labels = [row["targets"][0] if targeted else row["label"] for row in rows]
        plugin = plugin_of("auto_attack")
        params = plugin.params_type.model_validate({**budget, "targeted": targeted})
        targets = Targets.classes(torch.tensor(labels, device=DEVICE))
        seeds = tuple(row["id"] for row in rows)
        middle = lower + (upper - lower) / 2
        batch = Batch(middle, targets, seeds, {"lower": lower, "upper": upper})
        now = clock()
        start = now()
        found = plugin.run(model, batch, params, Job())
        seconds = (now() - start) / len(rows)
        x = found.adversarial.cpu()
        inside = ((x.double() >= exact[0]) & (x.double() <= exact[1])).flatten(1).all(1).tolist()
        says = self._file_says(file, x)
        return [
            {
                "benchmark": self.name,
                "id": row["id"],
                "truth": row["truth"],
                "n_unsat": row["n_unsat"],
                "claimed": bool(found.success[place]),
                "inside": inside[place],
                "confirmed": (says[place] == label) is targeted,
                "won_by": int(found.won_by[place]),
                "seconds": round(seconds, 2),
            }
            for place, (row, label) in enumerate(zip(rows, labels, strict=True))
        ]

    def _file_says(self, file: str, x: Tensor) -> list[int]:
        session = onnxruntime.InferenceSession(str(self._folder / "models" / file))
        name = session.get_inputs()[0].name
        return [int(session.run(None, {name: row[None].numpy()})[0].argmax()) for row in x]


def figures(notes: list[Instance]) -> dict[str, Any]:
    """Of all that is noted, by benchmark and together."""
    found: dict[str, Any] = {}
    for name in [*sorted({note["benchmark"] for note in notes}), "all"]:
        mine = [note for note in notes if name in (note["benchmark"], "all")]
        sat, unsat = ([n for n in mine if n["truth"] == truth] for truth in ("sat", "unsat"))
        won = [n for n in sat if n["claimed"] and n["inside"] and n["confirmed"]]
        found[name] = {
            "violated": len(sat),
            "found": len(won),
            "robust": len(unsat),
            "false_claims": sum(n["claimed"] for n in unsat),
            "outside_the_box": sum(not n["inside"] for n in mine),
            "not_confirmed_by_the_file": sum(n["claimed"] and not n["confirmed"] for n in mine),
        }
    return found


def main(*, quick: bool = False) -> dict[str, Any]:
    """Attack what is not noted yet, and return the figures."""
    keep_freed_memory()
    lines = [] if quick or not PARTIAL.exists() else PARTIAL.read_text().splitlines()
    notes: list[Instance] = [json.loads(line) for line in lines]
    done = {(note["benchmark"], note["id"]) for note in notes}
    folders = [path for path in sorted((SHARED / "vnncomp").iterdir()) if path.is_dir()]
    if quick:
        folders = [path for path in folders if path.name == "mnist_fc_2021"]
    if not folders:
        raise SystemExit("set INTERPRET_SHARED_DATA to the folder with the VNN-COMP benchmarks")
    groups: dict[tuple[str, int, str, str, str], list[Instance]] = defaultdict(list)
    benchmarks = {folder.name: Benchmark(folder) for folder in folders}
    for name, benchmark in benchmarks.items():
        for row in benchmark.instances:
            if row["truth"] in BUDGETS and (name, row["id"]) not in done:
                size = benchmark.size(row["model"])
                groups[row["truth"], size, name, row["model"], row["mode"]].append(row)
    at_once = 4 if quick else ROWS
    for (truth, _, name, file, _), rows in track(sorted(groups.items()), transient=True):
        benchmark, budget = benchmarks[name], BUDGETS[truth]
        model = benchmark.classifier(file)
        if quick:
            rows, budget = rows[:at_once], {"restarts": 1, "steps": 10, "queries": 50}
        for first in range(0, len(rows), at_once):
            found = benchmark.attack(model, file, rows[first : first + at_once], budget)
            notes += found
            if not quick:
                with PARTIAL.open("a") as out:
                    out.writelines(json.dumps(note) + "\n" for note in found)
    return {"budgets": BUDGETS, "benchmarks": figures(notes)}
