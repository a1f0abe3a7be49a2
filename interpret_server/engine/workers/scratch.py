"""A server's folder for copies of models' files; those that killed servers left are swept."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "interpret-server-"
_LOCK = ".lock"


class Scratch:
    """A folder of its own below the system's temporary one, locked for as long as it is used."""

    def __init__(self) -> None:
        parent = Path(tempfile.gettempdir())
        _sweep(parent)
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        made = self.folder / f"{_LOCK}.new"  # nobody finds it before it is locked
        self._lock = os.open(made, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        made.rename(self.folder / _LOCK)

    def remove(self) -> None:
        """Delete it with all that it holds; once."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(lock)


def _sweep(parent: Path) -> None:
    """Delete the folders of this user that no process holds any more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.getuid() and not folder.is_symlink():
                _delete_unused(folder)


def _delete_unused(folder: Path) -> None:
    with _locked(folder / _LOCK) as free:
        if free:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether nobody else held the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)
