"""Memory, threads and descriptors of all of a server's processes over 10,000 calls.

Eight callers, who connect anew after 32 calls each, ask LeNet-5 for saliency of 1, 16 and 300 rows
(0.9 MB, in several batches), predictions, short PGD runs, streams, and streams that they leave. The
slope is that of a line through what is measured in the second half.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import interpret_client

from .._load import rate
from .._networks import DEVICE, network
from .._processes import whole
from .._serving import MODES, serve_all

CALLS, CALLERS, EACH = 10_000, 8, 32
_PGD = {"steps": 5, "epsilon": 0.01}


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure and return the figures."""
    blocks = (CALLS // 10 if quick else CALLS) // (CALLERS * EACH)
    measured: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        net = network("lenet5", Path(folder))
        images = net.images(300)
        turn = iter(range(10**9))

        def ask(client: interpret_client.Client, _: int) -> None:
            match next(turn) % 32:
                case 0:
                    client.run("saliency", net.name, images, target=0, seed=0)
                case 1 | 2:
                    client.run("saliency", net.name, images[:16], target=0, seed=0)
                case 3 | 4:
                    client.predict(net.name, images[:4])
                case 5:
                    client.run("pgd", net.name, images[:2], target=0, params=_PGD, seed=0)
                case 6:
                    list(client.stream("pgd", net.name, images[:2], target=0, params=_PGD, seed=0))
                case 7:
                    left = client.stream("pgd", net.name, images[:2], target=0, params=_PGD, seed=0)
                    next(left)
                    left.close()
                case _:
                    client.run("saliency", net.name, images[:1], target=0, seed=0)

        with serve_all(net) as servers:
            for _ in range(blocks):
                for mode, served in servers.items():
                    rate(served.address, CALLERS, EACH, ask)
                    measured[mode].append(_now(served.pid))
    return {
        "calls": blocks * CALLERS * EACH,
        "modes": {mode: _figures(values) for mode, values in measured.items()},
    }


def _now(pid: int) -> dict[str, float]:
    found = whole(pid)
    values = {
        "pss_mib": found.pss / 2**20,
        "private_mib": found.private / 2**20,
        "threads": float(found.threads),
        "descriptors": float(found.descriptors),
    }
    if DEVICE.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        values["device_mib"] = (total - free) / 2**20  # of all servers and this process
    return values


def _figures(values: list[dict[str, float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    calls = CALLERS * EACH * np.arange(1, len(values) + 1)
    late = calls > calls[-1] / 2
    for name in values[0]:
        line = np.array([value[name] for value in values])
        slope = float(np.polyfit(calls[late], line[late], 1)[0])
        figures[name] = {
            "first": round(line[0], 1),
            "half": round(line[len(line) // 2], 1),
            "last": round(line[-1], 1),
            "slope_per_1000_calls": round(1000 * slope, 3),
        }
    return figures
