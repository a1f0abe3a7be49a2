"""What serving costs: a saliency call through the server against the same computation in process.

The model is SqueezeNet 1.1 (real weights where INTERPRET_SHARED_DATA has them, else random ones),
the image 3x224x224 float32. In process: Captum's Saliency on the TorchScript archive, which is
what a caller without the server would write, and this project's own classifier. Both sides use
every core. Blocks of calls of each side alternate in one run, the first calls of a block (in which
the other process's threads still spin) are left out, and the figures are medians.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import Saliency

import interpret_client

from ._architectures import squeezenet as architecture

ROUNDS = 8
BLOCK = 10
UNCOUNTED = 3
CALLERS = 16
CALLS_EACH = 6
_SHARED = Path(os.environ.get("INTERPRET_SHARED_DATA", "../shared/data"))
_MANIFEST = {"shape": [3, 224, 224], "bounds": [0, 1]}


def squeezenet(folder: Path) -> Path:
    """A SqueezeNet 1.1 archive: the real one, or one with random weights."""
    real = _SHARED / "models/imagenet/squeezenet1_1_rgb01.pt"
    if real.exists():
        return real
    net = architecture().eval()
    path = folder / "squeezenet.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(net).save(str(path))
    return path


@contextmanager
def served(model: Path, folder: Path) -> Iterator[str]:
    """A server process with the model loaded as `net`; yields its address."""
    ready = folder / "address"
    command = [sys.executable, "-m", "interpret_server", "serve", "--address", "127.0.0.1:0"]
    process = subprocess.Popen([*command, "--ready-file", str(ready)])
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise RuntimeError("the server did not start")
            time.sleep(0.05)
        address = ready.read_text().strip()
        with interpret_client.connect(address) as client:
            client.load_model("net", model, manifest=_MANIFEST)
        yield address
    finally:
        process.terminate()
        process.wait()


def timed(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def concurrent(address: str, images: np.ndarray[Any, Any]) -> float:
    """Images per second of `CALLERS` callers, each with a connection and one image a call."""
    barrier = threading.Barrier(CALLERS + 1)

    def caller(index: int) -> None:
        with interpret_client.connect(address) as client:
            client.predict("net", images[index : index + 1])
            barrier.wait()
            for _ in range(CALLS_EACH):
                client.run("saliency", "net", images[index : index + 1], target=index, seed=0)
            barrier.wait()

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(CALLERS)]
    for thread in threads:
        thread.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - start
    for thread in threads:
        thread.join()
    return CALLERS * CALLS_EACH / seconds


def main() -> dict[str, Any]:
    """Measure and return the figures."""
    from interpret_server.models.loading import load_classifier
    from interpret_server.models.manifest import Manifest
    from interpret_server.plugin import Targets

    rng = np.random.default_rng(0)
    images = rng.random((CALLERS, 3, 224, 224), dtype=np.float32)
    tensors, labels = torch.from_numpy(images), torch.arange(CALLERS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = squeezenet(folder)
        archive = torch.jit.load(str(path)).eval()
        ours = load_classifier(
            "net", path, Manifest.model_validate(_MANIFEST), device=torch.device("cpu")
        ).classifier
        captum = Saliency(archive)

        def in_process(rows: int) -> None:
            captum.attribute(tensors[:rows].clone().requires_grad_(), labels[:rows])

        def lowered(rows: int) -> None:
            ours.gradient(tensors[:rows], Targets.classes(labels[:rows]))

        with served(path, folder) as address, interpret_client.connect(address) as client:

            def through_server() -> None:
                client.run("saliency", "net", images[:1], target=0, seed=0)

            sides = {
                "captum_archive": lambda: in_process(1),
                "classifier": lambda: lowered(1),
                "server": through_server,
            }
            times: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(ROUNDS):
                for name, side in sides.items():
                    seconds = [timed(side) for _ in range(BLOCK)]
                    times[name] += seconds[UNCOUNTED:]
            single = {name: statistics.median(values) for name, values in times.items()}
            batches: dict[str, list[float]] = {"captum_archive": [], "classifier": []}
            callers = []
            for _ in range(3):
                for name, side in (("captum_archive", in_process), ("classifier", lowered)):
                    seconds = min(timed(lambda side=side: side(CALLERS)) for _ in range(4))
                    batches[name].append(CALLERS / seconds)
                callers.append(concurrent(address, images))
    rates = {name: statistics.median(values) for name, values in batches.items()}
    many = statistics.median(callers)
    return {
        "single_call_ms": {name: round(1e3 * value, 2) for name, value in single.items()},
        "single_call_ratio_to_captum": round(single["server"] / single["captum_archive"], 3),
        "single_call_ratio_to_classifier": round(single["server"] / single["classifier"], 3),
        "batch_16_images_per_second": {name: round(value, 1) for name, value in rates.items()},
        "concurrent_16_images_per_second": round(many, 1),
        "concurrent_ratio_to_captum_batch_16": round(many / rates["captum_archive"], 3),
        "concurrent_ratio_to_classifier_batch_16": round(many / rates["classifier"], 3),
    }
