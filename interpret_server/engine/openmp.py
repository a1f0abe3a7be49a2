"""Keeps teams of OpenMP threads to the threads that compute for callers.

GNU OpenMP gives every thread that computes a team of its own. As soon as the process has more of
them than cores, the teams stop spinning between two parallel regions and sleep instead: a forward
and backward pass of SqueezeNet then takes 1.6 times as long on two cores, until one of them
has ended. So threads that only decode, check or load compute alone, and a thread that hands the
device over ends its team.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch

_PAUSE_SOFT = 1  # of OpenMP's omp_pause_resource_t: what the program has set stays


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libgomp.so.1")  # the one that torch has loaded
        library.omp_set_num_threads  # noqa: B018
    except (OSError, AttributeError):
        return None
    return library


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block the calling thread, and it only, computes without a team."""
    library = _library()
    count = torch.get_num_threads()  # also settles torch's own setting for this thread
    if library is None or count == 1:
        yield
        return
    library.omp_set_num_threads(1)
    try:
        yield
    finally:
        library.omp_set_num_threads(count)


def leave_team() -> None:
    """End the calling thread's team; its next parallel region starts a new one.

    Takes tenths of a millisecond, or nothing where the thread has no team.
    """
    if (library := _library()) is not None:
        with suppress(AttributeError):  # GNU OpenMP has it since version 9
            library.omp_pause_resource_all(_PAUSE_SOFT)
