"""Freed memory is used again without the system clearing new pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from interpret_server.engine import allocator
from interpret_server.engine.trimming import keep_messages_from_trimming

_SCRIPT = """
import resource, sys
import numpy as np
from interpret_server.engine.allocator import keep_freed_memory
if "tuned" in sys.argv:
    assert keep_freed_memory()
def pair():
    a, b = np.ones(1 << 17), np.ones(1 << 17)  # 1 MiB each
for _ in range(3):
    pair()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    pair()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")


def page_faults(*arguments: str, **variables: str) -> int:
    command = [sys.executable, "-c", _SCRIPT, *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**clean, **variables}
    )
    return int(run.stdout)


@linux
def test_freed_memory_is_used_again_without_new_pages() -> None:
    assert page_faults("tuned") < page_faults() / 10


@linux
def test_a_new_process_gets_the_same_from_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in allocator.environment():
        monkeypatch.delenv(name, raising=False)
    assert page_faults(**allocator.environment()) < page_faults() / 10


@linux
def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    own = dict.fromkeys(allocator.environment(), "65536")
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert allocator.environment() == own
    assert page_faults("tuned", **allocator.environment()) > 10 * page_faults("tuned")


_MESSAGES = """
import sys
from pathlib import Path
from pathlib import Path
from google.protobuf.struct_pb2 import Value
from interpret_server.engine.allocator import keep_freed_memory, return_freed_memory
if "tuned" in sys.argv:
    assert keep_freed_memory()
def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) >> 8
blocks = [bytearray(1 << 20) for _ in range(101)]
del blocks[:100]  # the last one keeps them from the heap's end
before = resident_mib()
for _ in range(20_000):
    Value()
kept = resident_mib()
return_freed_memory()
print(before - kept, before - resident_mib())
"""


@linux
@pytest.mark.parametrize("kept", [True, False])
def test_messages_of_protobuf_return_no_memory(kept: bool) -> None:
    """The other way round shows that they would: then there is nothing to keep them from."""
    command = [sys.executable, "-c", _MESSAGES, *(["tuned"] if kept else [])]
    variables = os.environ | allocator.environment()
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    returned, at_rest = map(int, run.stdout.split())
    assert (returned < 10) if kept else (returned > 90)
    assert at_rest > 90


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01"])
def test_what_is_no_library_has_no_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    module = tmp_path / "_message.so"
    module.write_bytes(content)
    monkeypatch.setattr("google._upb._message.__file__", str(module))
    assert not keep_messages_from_trimming()
