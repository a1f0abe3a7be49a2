"""Freed memory is used again without the system clearing new pages."""

import subprocess
import sys

import pytest

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


def page_faults(*arguments: str) -> int:
    command = [sys.executable, "-c", _SCRIPT, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    assert page_faults("tuned") < page_faults() / 10
