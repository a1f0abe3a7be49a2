"""Loads and runs hostile files in children of a warm process, without a sandbox.

A child has limits of memory and time, so that a test machine survives; what a file does within
them is up to the loaders. Jobs and outcomes are lines of JSON.
"""

import asyncio
import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .kinds import MANIFEST
from .outcome import DIED, EPSILON, HUNG, INPUTS, OK, SALIENT, Outcome, Step

if TYPE_CHECKING:
    from interpret_server.engine.local import LocalWorker

_MEMORY = 6 << 30  # bytes of address space
_FILE = 16 << 20  # bytes of a file


@dataclass(frozen=True)
class Job:
    """One file to try.

    Args:
        path: of the model file.
        manifest: of it.
        seconds: of computing, after which the child is killed; twice that by the clock.
        calls: whether to call the model as well.
    """

    path: str
    manifest: Mapping[str, Any] = field(default_factory=lambda: MANIFEST)
    seconds: int = 10
    calls: bool = True


class Runner:
    """A warm process that forks a child for each job."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.bare"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
            env=environment,
            text=True,
        )

    def run(self, job: Job) -> Outcome:
        """Try a file."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        return Outcome.from_json(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextmanager
def runners(count: int = 2) -> Iterator["Runners"]:
    """Some warm processes, to run jobs side by side."""
    processes = [Runner() for _ in range(count)]
    try:
        yield Runners(processes)
    finally:
        for process in processes:
            process.close()


class Runners:
    """Several `Runner`s."""

    def __init__(self, processes: Sequence[Runner]) -> None:
        self._idle = list(processes)

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Try all files; the outcomes in the order of the jobs."""

        def one(job: Job) -> Outcome:
            runner = self._idle.pop()
            try:
                return runner.run(job)
            finally:
                self._idle.append(runner)

        with ThreadPoolExecutor(len(self._idle)) as pool:
            return list(pool.map(one, jobs))


def main() -> None:
    """Serve jobs until the end of the input."""
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    _warm()
    for line in sys.stdin:
        print(json.dumps(_supervise(Job(**json.loads(line))).to_json()), file=answers, flush=True)


def _warm() -> None:
    import onnx.checker
    import onnx.reference
    import onnxruntime
    import torch

    import interpret_server.engine.local
    import interpret_server.models.exported
    import interpret_server.models.loading
    import interpret_server.models.onnx
    import interpret_server.models.torchscript
    from interpret_server.registry import Registry

    Registry.installed()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # or each child copies the whole memory once it collects
    assert onnx.checker
    assert onnx.reference
    assert onnxruntime
    assert interpret_server.engine.local


def _supervise(job: Job) -> Outcome:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _confess(job, os.fdopen(writing, "w"))
    os.close(writing)
    outcome, lines = Outcome(), b""
    end = time.monotonic() + 2 * job.seconds
    while (left := end - time.monotonic()) > 0 and select.select([reading], [], [], left)[0]:
        part = os.read(reading, 1 << 16)
        if not part:
            break
        lines += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    for line in lines.splitlines(keepends=True):
        if line.endswith(b"\n"):
            told = json.loads(line)
            outcome.steps |= {name: Step(**step) for name, step in told.pop("steps", {}).items()}
            for name, value in told.items():
                setattr(outcome, name, value)
    last = next(reversed(outcome.steps.values()), None)
    if status and (last is None or last.code != HUNG):
        last = outcome.steps["end"] = Step(HUNG)
    if last is None or last.code != HUNG:
        return outcome
    if os.WIFSIGNALED(status):
        late = os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
        last.code = HUNG if late else DIED
        last.message = signal.Signals(os.WTERMSIG(status)).name
    else:
        last.code, last.message = DIED, f"exit status {os.WEXITSTATUS(status)}"
    return outcome


def _confess(job: Job, pipe: IO[str]) -> None:
    """Do the job in this child; each step is told when it begins and when it ends."""
    code = 1
    try:
        for kind, limit in (
            (resource.RLIMIT_AS, _MEMORY),
            (resource.RLIMIT_FSIZE, _FILE),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, job.seconds),
        ):
            resource.setrlimit(kind, (limit, limit))
        asyncio.run(_try(job, pipe))
        code = 0
    finally:
        os._exit(code)


def _say(pipe: IO[str], **values: Any) -> None:
    print(json.dumps(values), file=pipe, flush=True)


async def _try(job: Job, pipe: IO[str]) -> None:
    import torch

    from interpret_server.engine.local import LocalWorker
    from interpret_server.errors import InterpretError
    from interpret_server.models.manifest import Manifest
    from interpret_server.registry import Registry

    worker = LocalWorker(Registry.installed(), device="cpu")

    async def step(name: str, work: Any) -> Any:
        started = time.monotonic()
        _say(pipe, steps={name: asdict(Step(HUNG))})
        values = None
        try:
            values = await work
            end = Step(OK)
        except InterpretError as error:
            end = Step(error.code.name, error.message)
        end.seconds = time.monotonic() - started
        if name != "load":
            end.values = values
        _say(pipe, steps={name: asdict(end)})
        return values

    manifest = Manifest.model_validate(job.manifest)
    info = await step("load", worker.load("net", Path(job.path), manifest))
    if info is None or not job.calls:
        return
    _say(
        pipe,
        steady="deterministic" in info.capabilities,
        told=" ".join((*info.notes, *info.labels)),
    )
    before = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()
    for name in INPUTS:
        await step(name, _call(worker, name))
    after = torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()
    changed = ["the random state", "the number of threads", "the gradient mode"]
    same = [torch.equal(before[0], after[0]), before[1] == after[1], before[2] == after[2]]
    traces = [what for what, kept in zip(changed, same, strict=True) if not kept]
    _say(pipe, traces=[f"the model changed {what}" for what in traces])


async def _call(worker: "LocalWorker", name: str) -> Any:
    import numpy as np

    from interpret_server.engine.api import Array, Call, Result, Target

    plugin = {"predict": "_predict", "triggered": "_predict"}.get(name, name)
    params = {
        "saliency": {"absolute": False},
        "pgd": {"epsilon": EPSILON, "steps": 3},
    }.get(name, {})
    x = INPUTS[name]
    call = Call(
        "net",
        plugin,
        json.dumps(params),
        Array("float32", x.shape, x.tobytes()),
        () if plugin == "_predict" else (Target("class", (SALIENT,)),),
        (0,),
    )
    *_, last = [event async for event in worker.run(call)]
    assert isinstance(last, Result)
    wanted = {"saliency": "attributions", "pgd": "adversarial"}.get(name, "logits")
    found = last.tensors[wanted]
    return np.frombuffer(found.data, found.dtype).reshape(found.shape)[:10].tolist()


if __name__ == "__main__":
    main()
