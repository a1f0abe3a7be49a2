"""Maps files into memory and, unlike `mmap.mmap`, keeps no descriptor of them open."""

import ctypes
import mmap
import os
import weakref

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

_FAILED = ctypes.c_void_p(-1).value
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, since Linux 5.14


def map_shared(descriptor: int, size: int) -> memoryview:
    """The first `size` bytes of a file, writable and shared with whoever else maps it.

    They are unmapped when the last view of them is gone.

    Raises:
        OSError: the system refuses.
    """
    address = _libc.mmap(
        None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0
    )
    if address in (None, _FAILED):
        _raise()
    memory = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(memory, _libc.munmap, address, size).atexit = False
    return memoryview(memory).cast("B")


def populate(view: memoryview, size: int) -> None:
    """Allocate and map the pages of the first `size` bytes, all at once.

    Raises:
        OSError: there is no memory, or (EINVAL) the kernel is older than 5.14.
    """
    address = ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
    if _libc.madvise(address, size, _POPULATE_WRITE):
        _raise()


def _raise() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
