"""How long a server takes to start and a model to load, and the memory of both.

Loading through the server is compared with loading the same file by `load_classifier` in process.
Memory is that of all processes of the server, where pages that several share are divided among
them, and of each generation: the front end, its children, and theirs.
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import interpret_client

from .._networks import Network, network
from .._processes import by_generation, whole
from .._sampling import in_turn, ratio, spread
from .._serving import MODES, Served, serve, serve_all

NETWORKS = ("lenet5", "squeezenet", "resnet50")


def main(*, quick: bool = False) -> dict[str, Any]:
    """Measure and return the figures."""
    starts = in_turn({mode: partial(_start, mode) for mode in MODES}, 1 if quick else 3)
    with tempfile.TemporaryDirectory() as folder:
        networks = [network(name, Path(folder)) for name in NETWORKS]
        with serve_all() as servers:
            memory = {mode: _memory(served, networks) for mode, served in servers.items()}
            loads = {net.name: _loads(net, servers, 1 if quick else 3) for net in networks}
    return {
        "start_seconds": {mode: spread(values) for mode, values in starts.items()},
        "load": loads,
        "memory_mib": memory,
    }


def _start(mode: str) -> float:
    with serve(mode) as served:
        return served.start_seconds


def _loads(net: Network, servers: dict[str, Served], rounds: int) -> dict[str, Any]:
    sides = {"load_classifier": partial(_timed_here, net)} | {
        mode: partial(_timed_served, served, net) for mode, served in servers.items()
    }
    times = in_turn(sides, rounds)
    return {
        "seconds": {name: spread(values) for name, values in times.items()},
        "ratio_to_load_classifier": {mode: ratio(times, mode, "load_classifier") for mode in MODES},
    }


def _timed_here(net: Network) -> float:
    start = time.perf_counter()
    net.classifier()
    return time.perf_counter() - start


def _timed_served(served: Served, net: Network) -> float:
    start = time.perf_counter()
    served.load(net)
    seconds = time.perf_counter() - start
    with interpret_client.connect(served.address) as client:
        client.unload_model(net.name)
    return seconds


def _memory(served: Served, networks: list[Network]) -> dict[str, Any]:
    """Of the server alone, and what every model adds once it has answered a call."""
    figures: dict[str, Any] = {"idle": _mib(whole(served.pid).pss)}
    with interpret_client.connect(served.address) as client:
        for net in networks:
            before = whole(served.pid).pss
            served.load(net)
            loaded = whole(served.pid).pss
            client.run("saliency", net.name, net.images(1), target=0, seed=0)
            figures[net.name] = {
                "file": _mib(net.path.stat().st_size),
                "loaded": _mib(loaded - before),
                "after_a_call": _mib(whole(served.pid).pss - before),
            }
        figures["generations"] = [
            {"processes": found.processes, "pss": _mib(found.pss), "threads": found.threads}
            for found in by_generation(served.pid)
        ]
        for net in networks:
            client.unload_model(net.name)
    figures["after_unloading"] = _mib(whole(served.pid).pss)
    return figures


def _mib(size: int) -> float:
    return round(size / 2**20, 1)
