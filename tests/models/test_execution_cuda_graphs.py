"""CUDA graphs are asked for as torch documents; without a GPU by stand-ins for its classes."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from interpret_server.models.execution import cuda_graphs, recorder_of
from interpret_server.models.execution.replay import Replays
from tests.models.tape import Tape

GPU = torch.device("cuda", 0)


class Cuda:
    """What `torch.cuda` is called for, and in which order; graphs are recorded on a tape."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.current = "main"
        self.pools = 0
        self.free = 50
        self.signature = inspect.signature(torch.cuda.graph)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cuda = self

        class Stream:
            def __init__(self, name: Any = "main") -> None:
                self.name = name if isinstance(name, str) else "aside"

            def wait_stream(self, other: "Stream") -> None:
                cuda.log.append(f"{self.name} waits for {other.name}")

        class Graph:
            def replay(self) -> None:
                cuda.log.append(f"replay on {cuda.current}")
                self.play()

        @contextmanager
        def inside(stream: Stream) -> Iterator[None]:
            before, cuda.current = cuda.current, stream.name
            try:
                yield
            finally:
                cuda.current = before

        @contextmanager
        def recording(*args: Any, **settings: Any) -> Iterator[None]:
            given = cuda.signature.bind(*args, **settings).arguments
            assert given["capture_error_mode"] == "thread_local"
            with inside(given["stream"]):
                cuda.log.append(f"record on {cuda.current} into {given['pool']}")
                given["cuda_graph"].play = lambda: None
                yield

        def handle() -> str:
            cuda.pools += 1
            return f"pool {cuda.pools}"

        for name, stand_in in {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "stream": inside,
            "graph": recording,
            "graph_pool_handle": handle,
            "current_stream": lambda device: Stream(),
            "mem_get_info": lambda device: (self.free, 100),
            "memory_reserved": lambda device: 20,
            "memory_allocated": lambda device: 15,
        }.items():
            assert hasattr(torch.cuda, name)
            monkeypatch.setattr(torch.cuda, name, stand_in)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    made.install(monkeypatch)
    return made


def test_passes_are_warmed_and_recorded_in_one_stream_and_a_pool_of_their_own(cuda: Cuda) -> None:
    seen: list[str] = []

    def work() -> tuple[Tensor, ...]:
        seen.append(cuda.current)
        return (torch.ones(2),)

    first = recorder_of(GPU)
    assert first is not None
    results, replay = first.record(work)
    assert seen == ["aside"] * (cuda_graphs._WARM + 1)
    assert torch.equal(results[0], torch.ones(2))
    assert cuda.log == [
        "aside waits for main",
        "main waits for aside",
        "record on aside into pool 1",
    ]
    replay()
    assert cuda.log[-1] == "replay on main"
    assert cuda.current == "main"
    first.record(work)
    assert cuda.log[-1] == "record on aside into pool 1"
    first.apart().record(work)
    assert cuda.log[-1] == "record on aside into pool 2"


def test_a_recording_that_fails_leaves_the_callers_stream(cuda: Cuda) -> None:
    recorder, calls = recorder_of(GPU), []

    def work() -> tuple[Tensor, ...]:
        calls.append(1)
        if len(calls) > cuda_graphs._WARM:
            raise RuntimeError("operation not permitted when stream is capturing")
        return (torch.ones(2),)

    assert recorder is not None
    with pytest.raises(RuntimeError, match="capturing"):
        recorder.record(work)
    assert cuda.current == "main"


@pytest.mark.parametrize(("free", "room"), [(50, True), (21, True), (20, False), (0, False)])
def test_a_quarter_of_the_memory_stays_free(free: int, room: bool, cuda: Cuda) -> None:
    recorder = recorder_of(GPU)
    cuda.free = free
    assert recorder is not None
    assert recorder.has_room() == room


def test_the_cpu_has_no_recorder() -> None:
    assert recorder_of(torch.device("cpu")) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_replays_what_it_computes() -> None:
    recorder = recorder_of(GPU)
    assert recorder is not None
    weight = torch.randn(8, 8, device=GPU)
    replays = Replays(recorder)

    def work(x: Tensor) -> tuple[Tensor, ...]:
        return (torch.relu(x @ weight).tanh(),)

    for seed in range(8):
        x = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed)).to(GPU)
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        (found,), (expected,) = replays.run("it", work, leaf), work(other)
        torch.testing.assert_close(found, expected)
        ours, theirs = (
            torch.autograd.grad(value.square().sum(), by)[0]
            for value, by in ((found, leaf), (expected, other))
        )
        torch.testing.assert_close(ours, theirs)
    assert len(replays) == 1


def test_the_tape_is_a_recorder_too() -> None:
    tape = Tape()
    x = torch.ones(2)
    (result,), play = tape.record(lambda: (x * 2,))
    x.fill_(3)
    play()
    assert result.tolist() == [6, 6]
