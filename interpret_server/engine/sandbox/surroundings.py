"""What a process would otherwise inherit: environment variables and open descriptors."""

import ctypes
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

_HOME = "/dev/null"  # where not even root can make a folder
_NO_FILES = "/proc"  # always there, and nobody can make files in it
_CACHE = "TORCHINDUCTOR_CACHE_DIR"  # which torch wants to exist when it is first differentiated
_PATH = "/usr/bin:/bin"
_KEPT = frozenset(
    {
        "LANG",
        "LANGUAGE",
        "TZ",
        "TZDIR",
        "PYTHONTZPATH",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",  # another allocator, often
        "GLIBC_TUNABLES",
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONHASHSEED",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONFAULTHANDLER",
        "VIRTUAL_ENV",
    }
)
_KEPT_PREFIXES = (
    "LC_",
    "MALLOC_",
    "OMP_",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "DNNL_",
    "ONEDNN_",
    "ATEN_",
    "PYTORCH_",
    "CUDA_",
    "CUBLAS_",
    "CUDNN_",
    "NVIDIA_",
)
_SECRET = ("AUTH", "CREDENTIAL", "KEY", "PASS", "SECRET", "TOKEN")
_BLOCK_FIELDS = (49, 50)  # env_start and env_end in /proc/self/stat, from 0


def environment() -> dict[str, str]:
    """The environment for a process that will run models.

    Only what computing and locale need is taken over from this process: threads and allocators,
    CUDA, library and module paths. Variables whose names speak of secrets never are. `HOME` is no
    folder.
    """
    fixed = {
        "HOME": _HOME,
        "PATH": _PATH,
        _CACHE: _NO_FILES,
        # Else onnxruntime (from 1.29 on) starts a thread on import, which reports to its maker.
        "ORT_DISABLE_TELEMETRY": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # else cuBLAS may round otherwise each time
        "MPLCONFIGDIR": _matplotlib(),  # else it surveys the fonts at each start
    }
    return fixed | _kept(os.environ)


def clear_environment() -> None:
    """Reduce this process's environment to `environment()`, for ever.

    The block of memory that held the variables when the process started is overwritten too.
    """
    kept = environment()
    block = _initial_block()
    os.environ.clear()
    os.environ.update(kept)
    if block is not None:
        start, end = block
        ctypes.memset(start, 0, end - start)


def settle_folders() -> None:
    """Answer code that asks where to put temporary files and caches, and then writes none.

    Python would otherwise look for a folder by writing into several, and fail.
    """
    tempfile.tempdir = _NO_FILES
    os.environ.setdefault(_CACHE, _NO_FILES)


def close_inherited(keep: set[int]) -> None:
    """Close every open descriptor of this process but those in `keep`."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            _close(int(name))


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:  # the listing's own, closed by now
        return


def _matplotlib() -> str:
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.environ.get("MPLCONFIGDIR") or os.path.join(caches, "matplotlib")


def _kept(variables: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in variables.items()
        if name in _KEPT
        or (name.startswith(_KEPT_PREFIXES) and not any(word in name for word in _SECRET))
    }


def _initial_block() -> tuple[int, int] | None:
    try:
        line = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        fields = line.rpartition(")")[2].split()  # the third field onwards
        start, end = (int(fields[position - 2]) for position in _BLOCK_FIELDS)
    except (OSError, ValueError, IndexError):
        return None
    return (start, end) if 0 < start < end else None
