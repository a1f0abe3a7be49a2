"""Server processes for the benchmarks, and what they take of the machine."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import interpret_client

from ._networks import DEVICE, Network

MODES: Mapping[str, tuple[str, ...]] = {  # how models run -> flags of `serve`
    "workers": (),
    "trusted": ("--trust-models",),
} | ({"recorded": ("--execution", "recorded")} if DEVICE.type == "cuda" else {})
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Served:
    """A server.

    Args:
        address: where it answers.
        pid: of its front end.
        start_seconds: from the command to the first answer.
    """

    address: str
    pid: int
    start_seconds: float

    def load(self, network: Network) -> None:
        """Load a network under its own name."""
        with interpret_client.connect(self.address) as client:
            client.load_model(network.name, network.path, manifest=network.manifest)


@contextmanager
def serve(mode: str, *networks: Network) -> Iterator[Served]:
    """A server process that runs models the given way (a key of `MODES`)."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "address"
        flags = ["--address", "127.0.0.1:0", "--log-level", "warning", "--ready-file", str(ready)]
        command = [sys.executable, "-m", "interpret_server", "serve", *flags, *MODES[mode]]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not ready.exists():
                if process.poll() is not None or time.perf_counter() > start + _START_SECONDS:
                    raise RuntimeError("the server did not start")
                time.sleep(0.002)
            seconds = time.perf_counter() - start
            served = Served(ready.read_text().strip(), process.pid, seconds)
            for network in networks:
                served.load(network)
            yield served
        finally:
            process.terminate()
            process.wait()


@contextmanager
def serve_all(*networks: Network) -> Iterator[dict[str, Served]]:
    """A server of every mode."""
    with ExitStack() as stack:
        yield {mode: stack.enter_context(serve(mode, *networks)) for mode in MODES}
