import ctypes
import errno
import mmap
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sandbox_child import in_child, needs_seccomp, outcome, system_call

from interpret_server.engine.sandbox import Policy
from interpret_server.engine.sandbox.numbers import NEWEST, NUMBERS
from interpret_server.engine.sandbox.rules import REFUSED
from interpret_server.engine.sandbox.system import machine

pytestmark = needs_seccomp


def number_of(name: str) -> int:
    here = machine()
    assert here is not None
    number = NUMBERS[name][here.column]
    if number is None:
        pytest.skip(f"{name} does not exist on this processor")
    return number


def test_every_refused_system_call_gives_eperm() -> None:
    here = machine()
    assert here is not None
    numbers = {name: NUMBERS[name][here.column] for name in REFUSED}
    present = {name: number for name, number in numbers.items() if number is not None}

    def try_all() -> dict[str, str]:
        answers = {}
        for name, number in present.items():
            try:
                system_call(number, -1, -1, -1, -1, -1, -1)
                answers[name] = "done"
            except OSError as error:
                answers[name] = errno.errorcode[error.errno or 0]
        return answers

    assert outcome(try_all) == dict.fromkeys(present, "EPERM")


def test_a_system_call_newer_than_the_filter_is_unknown() -> None:
    assert outcome(lambda: system_call(NEWEST + 1, -1, -1, -1, -1, -1, -1)) == "ENOSYS"
    assert outcome(lambda: system_call(500, -1, -1, -1, -1, -1, -1)) == "ENOSYS"


ATTEMPTS: dict[str, Callable[[], object]] = {
    "internet socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "Unix socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "raw socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "socket pair": socket.socketpair,
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "fork": os.fork,
    "vfork": lambda: subprocess.run(["/bin/true"], check=True),
    "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "signal a group": lambda: os.kill(0, 0),
    "signal everybody": lambda: os.kill(-1, 0),
    "limits of the parent": lambda: __import__("resource").prlimit(os.getppid(), 7),
    "session": os.setsid,
    "user": lambda: os.setuid(os.getuid()),
    "process descriptor": lambda: os.pidfd_open(os.getppid()),
    "priority of the parent": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19),
    "scheduler of the parent": lambda: os.sched_setscheduler(
        os.getppid(), os.SCHED_OTHER, os.sched_param(0)
    ),
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_is_refused(name: str) -> None:
    assert outcome(ATTEMPTS[name]) == "EPERM"


def test_inherited_sockets_cannot_connect_bind_listen_or_accept() -> None:
    with socket.socket(socket.AF_INET) as inherited:

        def attempt() -> list[str]:
            answers = []
            for action in (
                lambda: inherited.connect(("127.0.0.1", 9)),
                lambda: inherited.bind(("127.0.0.1", 0)),
                inherited.listen,
                inherited.accept,
            ):
                try:
                    action()
                except OSError as error:
                    answers.append(errno.errorcode[error.errno or 0])
            return answers

        assert outcome(attempt) == ["EPERM"] * 4


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="of x86-64 alone")
@pytest.mark.parametrize("name", ["32-bit", "x32"])
def test_the_other_tables_of_x86_64_kill(name: str) -> None:
    get_process = 20, 39  # in the table of 32-bit programs, and in that of x86-64

    def interrupt() -> int:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8" + get_process[0].to_bytes(4, "little") + b"\xcd\x80\xc3")
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        number: int = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
        return number

    attempts = {
        "32-bit": interrupt,
        "x32": lambda: system_call(0x40000000 | get_process[1]),
    }
    if name == "32-bit" and not isinstance(in_child(interrupt), int):
        pytest.skip("the kernel runs no 32-bit programs")
    assert outcome(attempts[name]) == f"signal {signal.SIGSYS.value}"


def test_a_signal_cannot_be_sent_through_a_descriptor() -> None:
    import fcntl

    reading, writing = os.pipe()
    try:
        attempt = lambda: fcntl.fcntl(reading, fcntl.F_SETOWN, os.getppid())  # noqa: E731
        assert in_child(attempt) == 0
        assert outcome(attempt) == "EPERM"
        assert outcome(lambda: fcntl.fcntl(reading, 10, signal.SIGTERM)) == "EPERM"
        assert outcome(lambda: fcntl.ioctl(reading, 0x8901, b"\0\0\0\0")) == "EPERM"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_process_may_abort_itself() -> None:
    assert outcome(os.abort) == f"signal {signal.SIGABRT.value}"
    assert outcome(lambda: os.kill(os.getpid(), signal.SIGKILL)) == f"signal {signal.SIGKILL.value}"


def test_threads_cannot_become_processes() -> None:
    if machine() is None:
        pytest.skip("the numbers of this processor's system calls are not known")
    thread, memory, signals, files = 0x10000, 0x100, 0x800, 0x400
    clone = number_of("clone")
    assert outcome(lambda: system_call(clone, signal.SIGCHLD, 0, 0, 0, 0)) == "EPERM"
    assert outcome(lambda: system_call(clone, memory | signals | files, 0, 0, 0, 0)) == "EPERM"
    namespace = thread | 0x10000000  # CLONE_NEWUSER
    assert outcome(lambda: system_call(clone, namespace, 0, 0, 0, 0)) == "EPERM"
    assert outcome(lambda: system_call(number_of("clone3"), 0, 0)) == "ENOSYS"


def test_limits_cannot_be_raised_but_can_be_read() -> None:
    import resource

    assert outcome(lambda: resource.getrlimit(resource.RLIMIT_NOFILE)) == [256, 256]
    raising = outcome(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9)))
    assert raising == "ValueError('not allowed to raise maximum limit')"


def test_death_with_the_parent_cannot_be_called_off() -> None:
    assert outcome(lambda: system_call(number_of("prctl"), 1, 0, 0, 0, 0)) == "EPERM"


def test_threads_time_and_memory_work() -> None:
    def compute() -> list[int]:
        with ThreadPoolExecutor(4) as pool:
            squares = list(pool.map(lambda item: item * item, range(8)))
        event = threading.Event()
        threading.Timer(0.001, event.set).start()
        assert event.wait(10)
        time.sleep(0.001)
        assert time.monotonic() > 0
        assert len(os.urandom(8)) == 8
        block = mmap.mmap(-1, 1 << 20)
        block.madvise(mmap.MADV_DONTNEED)
        block[:4] = b"data"
        assert os.sched_getaffinity(0)
        os.sched_setaffinity(0, os.sched_getaffinity(0))
        os.sched_yield()
        return squares

    assert outcome(compute) == [item * item for item in range(8)]


def test_pinning_other_processes_does_nothing() -> None:
    allowed = os.sched_getaffinity(0)
    assert outcome(lambda: os.sched_setaffinity(os.getppid(), {min(allowed)})) is None
    assert os.sched_getaffinity(0) == allowed


def test_memory_policies_of_numa_libraries_are_let_through() -> None:
    mbind, get_policy = {"x86_64": (237, 239), "aarch64": (235, 236)}[os.uname().machine]

    def ask() -> list[int]:
        block = mmap.mmap(-1, 1 << 16)
        address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        answers = []
        for number, arguments in ((mbind, (address, 1 << 16, 0, 0, 0, 0)), (get_policy, (0,) * 5)):
            try:
                answers.append(system_call(number, *arguments))
            except OSError as error:
                answers.append(error.errno or -1)
        return answers

    assert outcome(ask) == in_child(ask)
    assert errno.EPERM not in outcome(ask)


def test_messages_with_descriptors_pass_through_an_inherited_socket() -> None:
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("lent")
    os.ftruncate(memory, 4096)
    with ours, theirs:
        socket.send_fds(ours, [b"take"], [memory])

        def write_into_lent_memory() -> str:
            message, descriptors, _, _ = socket.recv_fds(theirs, 16, 1)
            with mmap.mmap(descriptors[0], 4096) as shared:
                shared[:5] = b"hello"
            theirs.sendall(b"done")
            return message.decode()

        assert outcome(write_into_lent_memory) == "take"
        assert ours.recv(16) == b"done"
    assert os.pread(memory, 5, 0) == b"hello"
    os.close(memory)


def test_printing_to_an_inherited_pipe_works() -> None:
    reading, writing = os.pipe()
    assert outcome(lambda: os.write(writing, b"printed") and os.isatty(writing)) is False
    assert os.read(reading, 16) == b"printed"
    os.close(reading)
    os.close(writing)


def test_devices_do_not_loosen_the_refusals() -> None:
    policy = Policy(devices=True)
    assert outcome(lambda: socket.socket(socket.AF_INET), policy) == "EPERM"
    assert outcome(lambda: os.open("/tmp/never", os.O_WRONLY | os.O_CREAT), policy) == "EPERM"
    assert outcome(os.fork, policy) == "EPERM"
