"""`python -m benchmarks [NAME ...]`: run benchmarks, write `benchmarks/results/NAME.DEVICE.json`.

A NAME is a module, such as `models` or `engine.overhead`, or a folder of them, such as `engine`.
With `--quick`, those that have a short form run it, and nothing is written.
"""

import importlib
import inspect
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import interpret_server

HERE = Path(__file__).parent


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":")[1] for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "interpret_server": interpret_server.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def text(value: Any, indent: str = "") -> str:
    """JSON with every object and list of plain values on a line of its own."""
    inner = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(inner, list) or not any(isinstance(item, dict | list) for item in inner):
        return json.dumps(value)
    deeper = indent + "  "
    if isinstance(value, list):
        lines, ends = [text(item, deeper) for item in value], "[]"
    else:
        lines = [f"{json.dumps(key)}: {text(item, deeper)}" for key, item in value.items()]
        ends = "{}"
    return ends[0] + "\n" + ",\n".join(deeper + line for line in lines) + "\n" + indent + ends[1]


def chosen(names: list[str]) -> list[str]:
    """The benchmarks that names of modules and folders stand for; all of them for none."""
    paths = (path.relative_to(HERE).with_suffix("") for path in HERE.rglob("*.py"))
    every = sorted(".".join(path.parts) for path in paths if not path.name.startswith("_"))
    found = [[item for item in every if f"{item}.".startswith(f"{name}.")] for name in names]
    for name, items in zip(names, found, strict=True):
        if not items:
            raise SystemExit(f"there is no benchmark {name!r}; there are: {', '.join(every)}")
    return [item for items in found for item in items] if names else every


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all."""
    quick, names = "--quick" in names, [name for name in names if name != "--quick"]
    for name in chosen(names):
        benchmark = importlib.import_module(f"benchmarks.{name}")
        short = quick and "quick" in inspect.signature(benchmark.main).parameters
        figures = benchmark.main(quick=True) if short else benchmark.main()
        if hasattr(benchmark, "show"):
            benchmark.show(figures)
        else:
            print(text(figures))
        if quick:
            continue
        device = "gpu" if torch.cuda.is_available() else "cpu"
        path = HERE / "results" / f"{name}.{device}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text({"machine": machine(), "figures": figures}) + "\n")
        print(path.relative_to(HERE.parent))


if __name__ == "__main__":
    main(sys.argv[1:])
