"""The folders of audits below one root, which one server at a time uses.

An audit's folder appears when its row is stored and goes with it. Whatever ended the server in
between, `sweep` puts the two in step again: `.new-<id>` is being filled, `.old-<id>` is going.
"""

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from ..durable import sync_folder
from ..errors import FailedPrecondition

_NEW, _OLD = ".new-", ".old-"
_LOCK = ".lock"


class Folders:
    """Blocks: use it in a thread.

    Args:
        root: made by `open`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: int | None = None

    def open(self) -> None:
        """Take the root.

        Raises:
            FailedPrecondition: it cannot be made or written, or another server has it.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.root / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise FailedPrecondition(
                f"audit_root: the folder cannot be used ({error.strerror})"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise FailedPrecondition("audit_root: another server uses the folder") from None
        self._lock = lock

    def close(self) -> None:
        """Give the root back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def of(self, audit_id: str) -> Path:
        """The folder of an audit that is stored."""
        return self.root / audit_id

    def has(self, audit_id: str) -> bool:
        """Whether an audit's files are here."""
        return self.of(audit_id).is_dir()

    def begin(self, audit_id: str) -> Path:
        """A folder to fill for an audit that is not stored yet."""
        folder = self.root / f"{_NEW}{audit_id}"
        folder.mkdir()
        return folder

    def settle(self, audit_id: str) -> None:
        """The audit is stored: its folder gets its name."""
        (self.root / f"{_NEW}{audit_id}").rename(self.of(audit_id))
        sync_folder(self.root)

    def retire(self, audit_id: str) -> None:
        """The audit is about to be forgotten."""
        if self.of(audit_id).exists():
            self.of(audit_id).rename(self.root / f"{_OLD}{audit_id}")
            sync_folder(self.root)

    def remove(self, audit_id: str) -> None:
        """The audit is forgotten, or never was stored."""
        for prefix in ("", _NEW, _OLD):
            shutil.rmtree(self.root / f"{prefix}{audit_id}", ignore_errors=True)

    def sweep(self, stored: Collection[str]) -> tuple[str, ...]:
        """Finish what an earlier server began.

        Args:
            stored: ids of the audits that are stored.

        Returns:
            Those of them that were being deleted, and are to be forgotten.
        """
        for audit_id in tuple(self._left(_NEW)):
            if audit_id in stored:
                self.settle(audit_id)
            else:
                self.remove(audit_id)
        return tuple(audit_id for audit_id in self._left(_OLD))

    def _left(self, prefix: str) -> Iterator[str]:
        for path in sorted(self.root.glob(f"{prefix}*")):
            yield path.name.removeprefix(prefix)
