"""Latency of a small call while the server is idle, and beside heavy calls.

The small call is saliency of one 28x28 image with LeNet-5, asked for again and again by one caller.
Beside it run, in a process of their own: PGD on the same network, PGD on SqueezeNet 1.1, and
saliency of 32 images of 3x224x224 (19 MB a call). At the 99th percentile a call should take no
longer than three times what it takes on the idle server, or than that and one capped step.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import interpret_client

from .._background import Background, load
from .._networks import Network, network
from .._sampling import percentile
from .._serving import Served, serve_all

CAPPED_STEP = 0.25  # seconds
_PGD = {"steps": 40, "epsilon": 1e-5, "targeted": True, "confirm_small_epsilon": True}


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure and return the figures."""
    seconds, samples = (2.0, 200) if quick else (8.0, 1000)
    with tempfile.TemporaryDirectory() as folder:
        small, large = network("lenet5", Path(folder)), network("squeezenet", Path(folder))
        beside = {
            "pgd_same_network": Background(small.name, small.shape, 64, "pgd", 4, params=_PGD),
            "pgd_other_network": Background(large.name, large.shape, 8, "pgd", 2, params=_PGD),
            "saliency_19_mb": Background(large.name, large.shape, 32, "saliency", 1),
        }
        with serve_all(small, large) as servers:
            return {
                mode: _conditions(served, small, beside, seconds, samples)
                for mode, served in servers.items()
            }


def _conditions(
    served: Served,
    small: Network,
    beside: dict[str, Background],
    seconds: float,
    samples: int,
) -> dict[str, Any]:
    image = small.images(1)
    figures: dict[str, Any] = {}
    with interpret_client.connect(served.address) as client:
        _probe(client, small.name, image, 1.0, 100)
        idle = _probe(client, small.name, image, seconds, samples)
        limit = max(3 * percentile(idle, 0.99), percentile(idle, 0.99) + CAPPED_STEP)
        figures["idle"] = _figures(idle)
        for name, background in beside.items():
            with load(served.address, background) as rate:
                times = _probe(client, small.name, image, seconds, samples)
            figures[name] = {
                **_figures(times),
                "p99_ratio_to_idle": round(percentile(times, 0.99) / percentile(idle, 0.99), 2),
                "aim_met": percentile(times, 0.99) <= limit,
                "calls_per_second_beside": round(rate[0], 2),
            }
    return figures


def _probe(
    client: interpret_client.Client,
    name: str,
    image: np.ndarray[Any, Any],
    seconds: float,
    samples: int,
) -> list[float]:
    """The seconds of every call, until there are so many or the time is over."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < samples and time.perf_counter() < end:
        start = time.perf_counter()
        client.run("saliency", name, image, target=0, seed=0)
        times.append(time.perf_counter() - start)
    return times


def _figures(times: list[float]) -> dict[str, Any]:
    return {
        "calls": len(times),
        "p50_ms": round(1e3 * percentile(times, 0.5), 2),
        "p99_ms": round(1e3 * percentile(times, 0.99), 2),
        "worst_ms": round(1e3 * max(times), 2),
    }
