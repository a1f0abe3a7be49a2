"""What Python, its packages and the C library read after start."""

import os
import sys
import sysconfig
import zoneinfo
from collections.abc import Iterable, Iterator
from pathlib import Path

_SYSTEM = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/share/locale",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/null",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/kernel/mm/transparent_hugepage",
)
_CUDA = (
    "/usr/local/cuda",
    "/usr/local/nvidia",
    "/usr/share/nvidia",
    "/etc/nvidia",
    "/etc/OpenCL/vendors",
    "/proc/devices",
    "/proc/driver/nvidia",
    "/proc/driver/nvidia-uvm",
    "/proc/modules",
    "/proc/version",
    "/sys/bus/pci/devices",
    "/sys/devices",
    "/sys/module",
)


def installation() -> tuple[Path, ...]:
    """The files and folders to leave readable: those that exist, none within another.

    That is the standard library, the folders of installed packages, shared libraries, time zones,
    a few harmless devices, and what the kernel tells of processors and memory. Of a folder of
    sources outside the installation (an editable install, a plugin folder), only the modules and
    packages that are loaded belong, not what lies beside them.
    """
    installed = _outermost(_real((*_packages(), *_SYSTEM, *zoneinfo.TZPATH)))
    return _outermost((*installed, *_real(_sources(installed))))


def cuda() -> tuple[Path, ...]:
    """What CUDA's libraries read beyond `installation()`."""
    return tuple(_real(_CUDA))


def cuda_devices() -> tuple[Path, ...]:
    """The device files of NVIDIA's GPUs that this machine shows."""
    folder = Path("/dev")
    found = (*folder.glob("nvidia*"), *folder.glob("nvidia-caps/*"))
    return tuple(sorted(path for path in found if path.is_char_device()))


def _packages() -> Iterator[str]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    yield from (path for name in names if (path := sysconfig.get_path(name)))
    for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}:
        yield from (os.path.join(prefix, name) for name in ("lib", "lib64", "pyvenv.cfg"))
    # Packages of the distribution, of the user, or of an environment that this one extends.
    folders = {"site-packages", "dist-packages"}
    yield from (path for path in sys.path if os.path.basename(path) in folders)
    yield from (path for path in sys.path if os.path.isabs(path) and os.path.isfile(path))


def _sources(installed: tuple[Path, ...]) -> Iterator[str]:
    """The modules and packages outside the installation that are loaded."""
    roots = tuple(f"{path}{os.sep}" for path in installed)
    for name, module in list(sys.modules.items()):
        if "." not in name:
            file = getattr(module, "__file__", None)
            found = list(getattr(module, "__path__", ())) or [file]
            yield from (path for path in found if path and not path.startswith(roots))


def _real(paths: Iterable[str]) -> Iterator[Path]:
    for path in paths:
        if os.path.isabs(path) and os.path.exists(path):
            yield Path(os.path.realpath(path))


def _outermost(paths: Iterable[Path]) -> tuple[Path, ...]:
    kept: list[Path] = []
    for path in sorted(set(paths)):
        if not kept or not path.is_relative_to(kept[-1]):
            kept.append(path)
    return tuple(kept)
