"""Limits on what a process may use, and the privileges that it gives up."""

import ctypes
import os
import resource
import struct
from pathlib import Path

from .system import SandboxError, call

_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS
_CAPABILITIES_VERSION = 0x20080522
_READ_ANY_FILE = 1 << 2  # CAP_DAC_READ_SEARCH


def give_up_privileges() -> None:
    """Rule out new privileges, and drop all that the process has but one.

    Root keeps the right to read other users' files, for a model may be one; Landlock says which.

    Raises:
        SandboxError: the kernel refused.
    """
    header = struct.pack("=Ii", _CAPABILITIES_VERSION, 0)
    held = bytearray(24)  # effective, permitted and inheritable; the 32 low bits, then the high
    try:
        call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        buffer = (ctypes.c_char * 24).from_buffer(held)
        call("capget", header, buffer)
        effective, permitted, *_ = struct.unpack("=6I", held)
        kept = (effective & _READ_ANY_FILE, permitted & _READ_ANY_FILE)
        call("capset", header, struct.pack("=6I", *kept, 0, 0, 0, 0))
    except OSError as error:
        raise SandboxError(f"privileges could not be given up: {error.strerror}.") from error


def set_limits(
    *, memory_bytes: int | None, file_bytes: int, open_files: int, cpu_seconds: int | None
) -> None:
    """Limit address space, file size, descriptors and processor time; forbid core dumps.

    The limit on processor time is soft: from outside, the server may raise it again.

    Raises:
        SandboxError: a limit is below what is used already, or out of range.
    """
    if memory_bytes is not None and memory_bytes < (used := _address_space()):
        raise SandboxError(
            f"memory_bytes: {memory_bytes} is below the {used} bytes of address space that the "
            "process has already."
        )
    _limit("core", resource.RLIMIT_CORE, 0)
    _limit("file_bytes", resource.RLIMIT_FSIZE, file_bytes)
    _limit("open_files", resource.RLIMIT_NOFILE, open_files)
    if memory_bytes is not None:
        _limit("memory_bytes", resource.RLIMIT_AS, memory_bytes)
    if cpu_seconds is not None:
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        _set("cpu_seconds", resource.RLIMIT_CPU, (_lower(cpu_seconds, hard), hard))


def _limit(name: str, limit: int, value: int) -> None:
    value = _lower(value, resource.getrlimit(limit)[1])
    _set(name, limit, (value, value))


def _lower(value: int, hard: int) -> int:
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _set(name: str, limit: int, values: tuple[int, int]) -> None:
    try:
        resource.setrlimit(limit, values)
    except (OSError, ValueError, OverflowError) as error:
        raise SandboxError(f"{name}: the limit {values[0]} could not be set: {error}.") from error


def _address_space() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
