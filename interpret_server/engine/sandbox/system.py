"""Raw system calls, and what this machine's kernel offers."""

import ctypes
import errno
import os
import platform
from functools import cache

from .numbers import NUMBERS, Machine

_PROBE_LANDLOCK = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PROBE_SECCOMP = 2  # SECCOMP_GET_ACTION_AVAIL
_ERRNO_ACTION = 0x00050000  # SECCOMP_RET_ERRNO


class SandboxError(Exception):
    """The process could not be confined; the message is one sentence for the operator."""


@cache
def machine() -> Machine | None:
    """The processor's architecture, or None where its system calls are not known here."""
    try:
        return Machine(platform.machine())
    except ValueError:
        return None


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A system call by name.

    Raises:
        OSError: the kernel refused it, or this architecture's numbers are not known (ENOSYS).
    """
    here = machine()
    number = None if here is None else NUMBERS[name][here.column]
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), name)
    library = ctypes.CDLL(None, use_errno=True)
    wide = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    result = int(library.syscall(ctypes.c_long(number), *wide))
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


def landlock_abi() -> int:
    """The version of the kernel's Landlock interface.

    Raises:
        OSError: the kernel has none (ENOSYS), or it is off (EOPNOTSUPP) or withheld (EPERM).
    """
    return call("landlock_create_ruleset", None, 0, _PROBE_LANDLOCK)


def probe_seccomp() -> None:
    """Return if the kernel filters system calls.

    Raises:
        OSError: it does not (ENOSYS, EINVAL), or a container withholds it (EPERM).
    """
    call("seccomp", _PROBE_SECCOMP, 0, _ERRNO_ACTION.to_bytes(4, "little"))
