"""`python -m benchmarks [NAME ...]`: run benchmarks and write `benchmarks/results/NAME.json`.

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


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all."""
    quick, names = "--quick" in names, [name for name in names if name != "--quick"]
    every = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    for name in names or every:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        short = quick and "quick" in inspect.signature(benchmark.main).parameters
        figures = benchmark.main(quick=True) if short else benchmark.main()
        if hasattr(benchmark, "show"):
            benchmark.show(figures)
        else:
            print(json.dumps(figures, indent=2))
        if quick:
            continue
        device = "gpu" if torch.cuda.is_available() else "cpu"
        path = HERE / "results" / f"{name}.{device}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")
        print(path.relative_to(HERE.parent))


if __name__ == "__main__":
    main(sys.argv[1:])
