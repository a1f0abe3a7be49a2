"""Folders for copies of models, and those that killed servers leave."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from interpret_server.engine.workers.scratch import Scratch

_KILLED = """
import os, signal
from interpret_server.engine.workers.scratch import Scratch
scratch = Scratch()
(scratch.folder / "model.onnx").write_bytes(b"a network")
print(scratch.folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_what_a_killed_server_left_is_swept_by_the_next():
    found = subprocess.run([sys.executable, "-c", _KILLED], capture_output=True, text=True)
    left = Path(found.stdout.strip())
    assert (left / "model.onnx").exists()
    scratch = Scratch()
    assert not left.exists()
    scratch.remove()
    assert not scratch.folder.exists()


def test_folders_in_use_and_those_of_others_are_left_alone(parent: Path):
    first = Scratch()
    foreign, link = parent / "interpret-server-foreign", parent / "interpret-server-link"
    foreign.mkdir()
    link.symlink_to(first.folder)
    second = Scratch()
    assert first.folder.exists()
    assert foreign.exists(), "without a lock it is none of ours"
    assert link.is_symlink()
    first.remove()
    second.remove()
