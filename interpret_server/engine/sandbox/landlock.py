"""Landlock: what a process may open, given by a list of files and folders.

Source: Linux, Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h.
"""

import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from .system import SandboxError, call, landlock_abi

_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_FOLDER = 1 << 3
_CONTROL_DEVICE = 1 << 15  # ioctl

# Rights over files: 13 in the first version, then renaming into other folders (2), truncation (3)
# and ioctl on devices (5).
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_NETWORK_RIGHTS = {4: 0b11}  # bind and connect, TCP
_SCOPES = {6: 0b11}  # abstract Unix sockets and signals

_PATH_BENEATH = 1


def restrict(readable: Iterable[Path], devices: Iterable[Path] = ()) -> None:
    """Deny this thread, and all that it starts, every file but these, for ever.

    Where a path is a folder, all that lies below it may be read. Nothing may be executed.

    Args:
        readable: may be read and mapped.
        devices: device files that may be read, written and controlled as well.

    Raises:
        SandboxError: a path does not exist, or the kernel refused.
        OSError: the kernel has no Landlock.
    """
    abi = landlock_abi()
    rights = _at(_FILE_RIGHTS, abi)
    handled = struct.pack("=QQQ", rights, _at(_NETWORK_RIGHTS, abi), _at(_SCOPES, abi))
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = call("landlock_create_ruleset", handled, size, 0)
    try:
        for path in readable:
            _allow(ruleset, path, _READ_FILE | _READ_FOLDER)
        for path in devices:
            _allow(ruleset, path, rights & (_READ_FILE | _WRITE_FILE | _CONTROL_DEVICE))
        call("landlock_restrict_self", ruleset, 0)
    except OSError as error:
        raise SandboxError(
            f"Landlock is there but could not be applied: {error.strerror}."
        ) from error
    finally:
        os.close(ruleset)


def _at(rights: dict[int, int], abi: int) -> int:
    return max((bits for since, bits in rights.items() if since <= abi), default=0)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxError(f"read: {path} cannot be opened: {error.strerror}.") from error
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= ~_READ_FOLDER
        rule = struct.pack("=Qi", rights, descriptor)
        call("landlock_add_rule", ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)
