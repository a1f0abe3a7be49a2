"""When memory goes back to the system. Imports no torch."""

import ctypes
import gc
import os
import sys

from .trimming import keep_messages_from_trimming

_MIB = 1 << 20
# Parameter of mallopt in glibc's malloc.h, name in the environment, value. Arenas of other threads
# than the first hold 64 MiB at most: what is larger would be mapped and cleared every time.
_SETTINGS = (
    (-3, "MALLOC_MMAP_THRESHOLD_", 1024 * _MIB),
    (-1, "MALLOC_TRIM_THRESHOLD_", 512 * _MIB),
    (-2, "MALLOC_TOP_PAD_", 64 * _MIB),
    (-8, "MALLOC_ARENA_MAX", 1),
)


def keep_freed_memory() -> bool:
    """Let the process use freed memory again instead of returning it to the system each time.

    Otherwise glibc maps every message and activation of some hundred KiB afresh, and the kernel
    clears its pages again. Freed memory stays with the process until `return_freed_memory`, at
    the end of its heap up to 512 MiB. To be called before other threads start. What the environment
    sets already stays as it is.

    Returns:
        Whether the C library has these settings; elsewhere nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    keep_messages_from_trimming()
    taken = [mallopt(number, value) for number, name, value in _SETTINGS if name not in os.environ]
    return all(taken)


def environment() -> dict[str, str]:
    """Variables that give a new process the settings of `keep_freed_memory` from its start.

    glibc reads them when a program starts, and other C libraries ignore them. A variable that this
    process has keeps its value.
    """
    return {name: os.environ.get(name, str(value)) for _, name, value in _SETTINGS}


def freeze_start_up() -> None:
    """Exempt what exists now from garbage collection: modules, plugins, settings.

    A full collection stops every thread. Afterwards it takes milliseconds instead of some tenths
    of a second, so it can follow every load.
    """
    gc.collect()
    gc.freeze()


def collect(*, thorough: bool) -> None:
    """Free what a load left in reference cycles, and return the memory to the system.

    Args:
        thorough: also where start-up has not been frozen, so that it takes longer.
    """
    if thorough or gc.get_freeze_count():
        gc.collect()
        return_freed_memory()


def return_freed_memory() -> bool:
    """Return to the system what `keep_freed_memory` keeps.

    Returns:
        Whether the C library could return any.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):  # another C library
        return False
