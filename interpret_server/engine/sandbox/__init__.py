"""Confines a process for ever, so that a model's code can compute and do nothing else.

A model file is code. The process that loads and runs it may read the installation and the files
named for it, write none, reach nobody, and start nothing. Landlock says which files, seccomp which
system calls, resource limits how much. All of it binds the process and its threads until they end.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from .bpf import assemble, install
from .installed import cuda, cuda_devices, installation
from .landlock import restrict
from .limits import give_up_privileges, set_limits
from .numbers import NEWEST
from .rules import refusals
from .surroundings import (
    clear_environment,
    close_inherited,
    environment,
    settle_folders,
)
from .system import SandboxError, landlock_abi, machine, probe_seccomp

__all__ = [
    "Policy",
    "SandboxError",
    "clear_environment",
    "close_inherited",
    "confine",
    "environment",
    "installation",
    "missing",
]

_SINCE_SIGNALS = 6  # the version of Landlock that also keeps signals within


@dataclass(frozen=True)
class Policy:
    """What a confined process may use.

    Args:
        read: files and folders that may be read, beyond `installation()`.
        devices: also use the device files of NVIDIA's GPUs; address space is then not limited.
        memory_bytes: address space (RLIMIT_AS); None for no limit.
        file_bytes: largest file that it may write (RLIMIT_FSIZE), to descriptors that it has.
        open_files: open descriptors (RLIMIT_NOFILE).
        cpu_seconds: processor time (RLIMIT_CPU, soft) after which SIGXCPU ends it; None for no
            limit.
    """

    read: tuple[Path, ...] = ()
    devices: bool = False
    memory_bytes: int | None = None
    file_bytes: int = 0
    open_files: int = 256
    cpu_seconds: int | None = None


def missing() -> tuple[str, ...]:
    """One sentence for each protection that this kernel lacks; empty if all are there."""
    lacking = []
    filters = _why_no_seccomp()
    if filters:
        lacking.append(
            f"seccomp is missing ({filters}): a model's code could start programs, use the "
            "network and signal the server's processes."
        )
    try:
        abi = landlock_abi()
    except OSError as error:
        lacking.append(
            f"Landlock is missing ({_why_no_landlock(error)}): a model's code could read every "
            "file, and the memory of every process, that the server's user can read."
        )
    else:
        if filters and abi < _SINCE_SIGNALS:
            lacking.append(
                f"Landlock's version here is {abi}, and without seccomp it should be at least "
                f"{_SINCE_SIGNALS}: signals and abstract sockets are not confined."
            )
    return tuple(lacking)


def confine(policy: Policy) -> None:
    """Confine this process for ever, with all that the kernel has; see `missing`.

    The process must have one thread only, for the others would stay free. What it will need later
    must exist before: an event loop (which makes a pair of sockets), a signal at the parent's
    death, a session of its own.

    Raises:
        SandboxError: the process has several threads; a path of `policy.read` cannot be opened;
            a limit is below what is in use; or the kernel has a protection but refused to apply
            it. The process is then confined in part, and should end.
    """
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        raise SandboxError(f"The process has {threads} threads; only a single one can be confined.")
    settle_folders()
    give_up_privileges()
    set_limits(
        memory_bytes=None if policy.devices else policy.memory_bytes,
        file_bytes=policy.file_bytes,
        open_files=policy.open_files,
        cpu_seconds=policy.cpu_seconds,
    )
    if _has_landlock():
        extra = cuda() if policy.devices else ()
        nodes = cuda_devices() if policy.devices else ()
        restrict((*installation(), *extra, *policy.read), nodes)
    here = machine()
    if here is not None and not _why_no_seccomp():
        refused = refusals(here, os.getpid(), devices=policy.devices)
        install(assemble(here, refused, NEWEST, errno.ENOSYS))


def _has_landlock() -> bool:
    try:
        return landlock_abi() > 0
    except OSError:
        return False


def _why_no_landlock(error: OSError) -> str:
    return {
        errno.EOPNOTSUPP: "it is switched off: add it to the kernel's lsm= setting",
        errno.EPERM: "something around the server, such as a container, withholds it",
    }.get(error.errno or 0, "Linux has it since 5.13, if built with it")


def _why_no_seccomp() -> str:
    if machine() is None:
        return f"there is no filter for {os.uname().machine} processors"
    try:
        probe_seccomp()
    except OSError as error:
        withheld = "something around the server, such as a container, withholds it"
        return withheld if error.errno == errno.EPERM else "the kernel is built without it"
    return ""
