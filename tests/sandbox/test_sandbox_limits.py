import mmap
import os
import resource
import signal
import threading
from pathlib import Path

from sandbox_child import in_child, needs_landlock, outcome

from interpret_server.engine.sandbox import Policy, SandboxError, confine

GIB = 1 << 30


def address_space() -> int:
    """Bytes that this process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE


def test_too_much_memory_is_a_memory_error() -> None:
    policy = Policy(memory_bytes=address_space() + GIB)
    assert outcome(lambda: len(bytearray(2 * GIB)), policy) == "MemoryError"
    assert outcome(lambda: len(bytearray(1 << 20)), policy) == 1 << 20


def test_devices_leave_address_space_unlimited() -> None:
    policy = Policy(memory_bytes=address_space() + GIB, devices=True)
    assert outcome(lambda: len(mmap.mmap(-1, 2 * GIB)), policy) == 2 * GIB


def test_a_limit_below_what_is_in_use_is_refused() -> None:
    answer = outcome(lambda: None, Policy(memory_bytes=1 << 20))
    assert answer.startswith("SandboxError('memory_bytes: 1048576 is below the ")


def test_files_that_are_open_already_grow_no_further(tmp_path: Path) -> None:
    with (tmp_path / "output").open("wb", buffering=0) as file:
        write = lambda: os.write(file.fileno(), b"x" * 100)  # noqa: E731
        assert outcome(write) == "EFBIG"
        assert outcome(write, Policy(file_bytes=60)) == 60


def test_memory_outside_the_address_space_cannot_be_hoarded() -> None:
    assert outcome(lambda: os.ftruncate(os.memfd_create("hoard"), 1 << 20)) == "EFBIG"


def test_descriptors_are_limited() -> None:
    def open_many() -> int:
        return len([os.dup(0) for _ in range(100)])

    assert outcome(open_many, Policy(open_files=200)) == 100
    assert outcome(open_many, Policy(open_files=50)) == "EMFILE"


def test_processor_time_ends_the_process() -> None:
    def loop() -> None:
        while True:
            pass

    assert outcome(loop, Policy(cpu_seconds=1)) == f"signal {signal.SIGXCPU.value}"


def test_the_server_may_raise_the_limit_on_processor_time() -> None:
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    limits = outcome(lambda: resource.getrlimit(resource.RLIMIT_CPU), Policy(cpu_seconds=60))
    assert limits == [60, hard]


def test_no_core_is_dumped_and_no_privilege_is_left() -> None:
    def look() -> dict[str, str]:
        with Path("/proc/self/status").open() as status:
            confine(Policy())
            return dict(line.split(":\t", 1) for line in status.read().splitlines())

    fields = in_child(look)
    assert fields["NoNewPrivs"] == "1"
    assert fields["CapPrm"] in ("0000000000000000", "0000000000000004")  # reading any file
    assert fields["CapEff"] == fields["CapPrm"]
    assert outcome(lambda: resource.getrlimit(resource.RLIMIT_CORE)) == [0, 0]


def test_a_second_thread_is_refused() -> None:
    def with_thread() -> None:
        end = threading.Event()
        threading.Thread(target=end.wait, daemon=True).start()
        try:
            confine(Policy())
        finally:
            end.set()

    answer = in_child(with_thread)
    assert answer.startswith("SandboxError('The process has 2 threads")


@needs_landlock
def test_a_path_that_does_not_exist_is_named() -> None:
    answer = outcome(lambda: None, Policy(read=(Path("/nowhere/model.pt"),)))
    sentence = "read: /nowhere/model.pt cannot be opened: No such file or directory."
    assert answer == repr(SandboxError(sentence))
