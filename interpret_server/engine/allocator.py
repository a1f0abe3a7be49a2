"""When memory goes back to the system. Imports no torch."""

import ctypes
import gc
import sys

# glibc's malloc.h: parameters of mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 1 << 20


def keep_freed_memory() -> bool:
    """Let the process use freed memory again instead of returning it to the system each time.

    Otherwise glibc maps every message and activation of some hundred KiB afresh, and the kernel
    clears its pages again. Up to 512 MiB of freed memory stay with the process.

    Returns:
        Whether the C library has these settings; elsewhere nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    taken = [
        mallopt(_M_MMAP_THRESHOLD, 32 * _MIB),
        mallopt(_M_TRIM_THRESHOLD, 512 * _MIB),
        mallopt(_M_TOP_PAD, 64 * _MIB),
    ]
    return all(taken)


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
