"""Load from a process of its own: `python -m benchmarks._background` runs what `Background` says.

It prints a line once every caller has had an answer, goes on until its standard input ends, and
prints how many calls were answered meanwhile. It imports no torch.
"""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import interpret_client


@dataclass(frozen=True)
class Background:
    """What some callers ask for again and again.

    Args:
        network: by the name under which it is served.
        shape: of one row.
        rows: of each call.
        plugin, params: what runs.
        target: a class.
        callers: each with a connection.
    """

    network: str
    shape: tuple[int, ...]
    rows: int
    plugin: str
    callers: int
    target: int = 0
    params: dict[str, Any] = field(default_factory=dict)


@contextmanager
def load(address: str, background: Background) -> Iterator[list[float]]:
    """Run it meanwhile; afterwards the list holds the calls per second that were answered."""
    text = json.dumps(dataclasses.asdict(background))
    command = [sys.executable, "-m", "benchmarks._background", address, text]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    rate: list[float] = []
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError("the background load failed")
        yield rate
        process.stdin.close()
        rate.append(float(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def main(address: str, text: str) -> None:
    """Ask until standard input ends."""
    background = Background(**json.loads(text))
    shape = (background.rows, *background.shape)
    images = np.random.default_rng(1).random(shape, dtype=np.float32)
    answered, lock = 0, threading.Lock()
    ready = threading.Barrier(background.callers + 1)

    def caller() -> None:
        nonlocal answered
        first = True
        with interpret_client.connect(address) as client:
            while True:
                client.run(
                    background.plugin,
                    background.network,
                    images,
                    target=background.target,
                    params=background.params,
                    seed=0,
                )
                with lock:
                    answered += 1
                if first:
                    ready.wait()
                first = False

    for _ in range(background.callers):
        threading.Thread(target=caller, daemon=True).start()
    ready.wait()
    before, start = answered, time.perf_counter()
    print("running", flush=True)
    sys.stdin.read()
    print((answered - before) / (time.perf_counter() - start), flush=True)
    os._exit(0)  # the callers go on, and would be in the middle of a call


if __name__ == "__main__":
    main(*sys.argv[1:])
