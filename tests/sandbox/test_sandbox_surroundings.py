import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from sandbox_child import in_child, outcome

from interpret_server.engine.sandbox import clear_environment, close_inherited, environment

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "s3cret",
    "GITHUB_TOKEN": "s3cret",
    "NVIDIA_API_KEY": "s3cret",
    "HF_TOKEN": "s3cret",
    "CUDA_DOWNLOAD_TOKEN": "s3cret",
    "SSH_AUTH_SOCK": "/run/agent",
    "PASSWORD": "s3cret",
}
NEEDED = {
    "OMP_NUM_THREADS": "3",
    "MKL_NUM_THREADS": "3",
    "KMP_AFFINITY": "none",
    "CUDA_VISIBLE_DEVICES": "1",
    "MALLOC_TRIM_THRESHOLD_": "1000000",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "LD_LIBRARY_PATH": "/opt/lib",
    "PYTHONPATH": "/opt/python",
    "VIRTUAL_ENV": "/opt/venv",
}


def test_only_what_computing_needs_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, **NEEDED, "HOME": "/home/me", "USER": "me"}.items():
        monkeypatch.setenv(name, value)
    taken = environment()
    assert taken.items() >= NEEDED.items()
    assert not taken.keys() & SECRETS.keys()
    assert "USER" not in taken
    assert not Path(taken["HOME"]).is_dir()


def test_a_program_starts_with_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import ctypes, hashlib, tempfile; print('started')"],
        env=environment(),
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"started\n"


def test_clearing_leaves_no_trace_in_memory() -> None:
    program = (
        "import os\n"
        "from interpret_server.engine.sandbox import clear_environment\n"
        "clear_environment()\n"
        "print(open('/proc/self/environ', 'rb').read().strip(b'\\0'))\n"
        "print('GITHUB_TOKEN' in os.environ, os.environ['OMP_NUM_THREADS'])\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": path, "GITHUB_TOKEN": "s3cret", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["b''", "False 2"]


def test_onnxruntime_reports_to_nobody() -> None:
    program = "import os, onnxruntime; print(len(os.listdir('/proc/self/task')))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"


def test_matplotlib_keeps_its_list_of_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert environment()["MPLCONFIGDIR"] == "/home/me/.cache/matplotlib"
    monkeypatch.setenv("MPLCONFIGDIR", "/var/cache/fonts")
    assert environment()["MPLCONFIGDIR"] == "/var/cache/fonts"


def test_clearing_reaches_what_c_libraries_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "s3cret")
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p

    def look() -> list[bool]:
        before = getenv(b"GITHUB_TOKEN") is not None
        clear_environment()
        return [before, getenv(b"GITHUB_TOKEN") is None, getenv(b"HOME") == b"/dev/null"]

    assert in_child(look) == [True, True, True]


def test_inherited_descriptors_are_closed() -> None:
    kept = os.open(os.devnull, os.O_RDONLY)
    left = os.open(os.devnull, os.O_RDONLY)
    high = os.dup2(left, 200)

    def close_and_look(answer: int = kept) -> list[bool]:
        pipes = {int(name) for name in os.listdir("/proc/self/fd")} - {left, high}
        close_inherited(pipes)
        return [os.path.exists(f"/proc/self/fd/{number}") for number in (kept, left, high)]

    assert in_child(close_and_look) == [True, False, False]
    for descriptor in (kept, left, high):
        os.close(descriptor)


def test_asking_for_a_temporary_folder_does_not_fail() -> None:
    assert outcome(lambda: os.path.isdir(tempfile.gettempdir())) is True
    assert outcome(lambda: tempfile.mkdtemp()) in ("EPERM", "EACCES")
