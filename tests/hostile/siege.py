"""Sends hostile files to a running server, beside a caller of a well-behaved model.

    python -m tests.hostile.siege ADDRESS REPOSITORY [PATTERN]

tries the files whose names hold PATTERN on the server at ADDRESS, whose model repository is the
folder REPOSITORY on this machine, and prints what became of each. The secret lies in
REPOSITORY/../bait, and the server should have been started with a short --load-seconds and
--step-seconds.
"""

import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

import interpret_client
from interpret_client import InterpretClientError

from . import foreign_files
from .bait import Bait
from .corpus import files
from .kinds import CALM, MANIFEST, HostileFile, honest
from .outcome import EPSILON, HUNG, INPUTS, OK, SALIENT, Outcome, Step, faults

GOOD = "well-behaved"
_PAUSE = 0.02  # seconds between two calls of the well-behaved model
_SLACK = 0.5  # seconds before a client's own deadline, which no server's status carries


@dataclass
class Watch:
    """What a caller of the well-behaved model saw.

    Args:
        seconds: each call took.
        failures: one sentence for everything that was not its answer.
    """

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line."""
        if len(self.seconds) < 2:
            return "no calls"
        last = statistics.quantiles(self.seconds, n=100)[98]
        return (
            f"{len(self.seconds)} calls, median {statistics.median(self.seconds) * 1e3:.1f} ms, "
            f"p99 {last * 1e3:.1f} ms, longest {max(self.seconds) * 1e3:.1f} ms, "
            f"{len(self.failures)} failed"
        )


class Besieger:
    """A client with a hostile file after the other.

    Args:
        address: of the server.
        repository: of the server, on this machine.
        load_seconds, call_seconds: after which a load or a call counts as hung.
    """

    def __init__(
        self,
        address: str,
        repository: Path,
        *,
        load_seconds: float = 60.0,
        call_seconds: float = 30.0,
    ) -> None:
        self._repository = repository
        self._load_seconds, self._call_seconds = load_seconds, call_seconds
        self.client = interpret_client.connect(address, tries=1)

    def close(self) -> None:
        """Close the connection."""
        self.client.close()

    def load_good(self) -> None:
        """Load the model that `watched` calls."""
        self.client.load_model(
            GOOD, foreign_files.onnx(), manifest=MANIFEST, replace=True, timeout=60
        )

    @contextmanager
    def watched(self) -> Iterator[Watch]:
        """Call the well-behaved model all along."""
        watch, stop = Watch(), threading.Event()

        def call() -> None:
            while not stop.wait(_PAUSE):
                started = time.monotonic()
                try:
                    answer = self.client.predict(GOOD, CALM, timeout=self._call_seconds)
                except InterpretClientError as error:
                    watch.failures.append(f"{type(error).__name__}: {error.message}")
                else:
                    if not np.allclose(answer.logits, honest(CALM), atol=1e-5):
                        watch.failures.append(f"logits {answer.logits.tolist()}")
                watch.seconds.append(time.monotonic() - started)

        thread = threading.Thread(target=call)
        thread.start()
        try:
            yield watch
        finally:
            stop.set()
            thread.join()

    def attack(self, items: Sequence[HostileFile], bait: Bait, at_once: int = 2) -> list[Outcome]:
        """Send every file and call what was loaded; the outcomes in order."""
        for item in items:
            item.write(self._repository, bait)
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(self.visit, items))

    def visit(self, item: HostileFile, *, unload: bool = True) -> Outcome:
        """Load one file of the repository, call it, and unload it unless told otherwise."""
        outcome = Outcome()
        model = self._step(outcome, "load", self._load_seconds, lambda: self._load(item))
        if model is None:
            return outcome
        outcome.steady = "deterministic" in model.capabilities
        outcome.told = " ".join((*model.notes, *model.labels, model.form_reason))
        for name in INPUTS:
            values = self._step(
                outcome, name, self._call_seconds, lambda name=name: self._call(item.name, name)
            )
            if values is not None:
                outcome.steps[name].values = values
        if unload:
            self._step(outcome, "unload", self._call_seconds, lambda: self._unload(item.name))
        return outcome

    def _load(self, item: HostileFile) -> Any:
        folder = self._repository / item.name / "1"
        path = folder / f"model.{item.suffix}"
        content = path.read_bytes()
        alone = len(list(folder.iterdir())) == 1
        if alone and content and item.runs_code:
            return self.client.load_model(
                item.name, content, manifest=item.manifest, timeout=self._load_seconds
            )
        return self.client.load_model(item.name, timeout=self._load_seconds)

    def _unload(self, name: str) -> str:
        self.client.unload_model(name)
        return name

    def _call(self, model: str, name: str) -> Any:
        x, seconds = INPUTS[name], self._call_seconds
        if name in ("predict", "triggered"):
            return self.client.predict(model, x, timeout=seconds).logits
        params: dict[str, Any] = {"absolute": False}
        if name == "pgd":
            params = {"epsilon": EPSILON, "steps": 3}
        result = self.client.run(
            name, model, x, target=SALIENT, params=params, seed=0, timeout=seconds
        )
        return result.tensors["attributions" if name == "saliency" else "adversarial"]

    @staticmethod
    def _step(outcome: Outcome, name: str, limit: float, work: Callable[[], Any]) -> Any:
        started, values = time.monotonic(), None
        try:
            values = work()
            step = Step(OK)
        except InterpretClientError as error:
            cause = error.__cause__
            status = cause.code() if isinstance(cause, grpc.RpcError) else None
            step = Step("INVALID_ARGUMENT" if status is None else status.name, error.message)
        step.seconds = time.monotonic() - started
        if step.code == "DEADLINE_EXCEEDED" and step.seconds > limit - _SLACK:
            step.code = HUNG
        outcome.steps[name] = step
        return values


def main(address: str, repository: Path, pattern: str = "") -> None:
    """Try files and print what became of them."""
    bait = Bait(repository.parent / "bait")
    bait.lay()
    besieger = Besieger(address, repository)
    besieger.load_good()
    with besieger.watched() as watch:
        for name, item in files().items():
            if not re.search(pattern, name):
                continue
            item.write(repository, bait)
            outcome = besieger.visit(item)
            wrong = faults(item, outcome) + bait.damage()
            message = next((step.message for step in outcome.steps.values() if step.message), "")
            print(
                "WRONG" if wrong else "ok   ", name, outcome.summary(), wrong or repr(message[:150])
            )
            bait.lay()
    print(watch.summary(), *watch.failures[:5])
    besieger.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).absolute(), *sys.argv[3:])
