"""Freed memory is used again without the system clearing new pages."""

import os
import subprocess
import sys

import pytest

from interpret_server.engine import allocator

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
