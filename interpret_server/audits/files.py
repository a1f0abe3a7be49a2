"""The files of an audit: the samples as they were sent and as plugins saw them, and its examples.

    model/                  the kept model
    given/000000.npy|.npz   rows of a batch as they were sent: numbers, or encoded images
    given/labels.npy        of all samples
    inputs/000000.npy       rows of a batch as plugins see them
    examples/000000-003.npy confirmed adversarial examples of a batch and a stage

A file is there whole or not at all, also after a loss of power: it is written beside its place,
flushed to the disk and renamed.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..data.arrays import as_array
from ..durable import sync_folder
from ..engine.api import Array
from ..errors import FailedPrecondition
from .records import Rows

Given = Array | tuple[bytes, ...]


class AuditFiles:
    """Reads and writes the files of one audit, batch by batch.

    Args:
        folder: of the audit; made with the first file.

    Raises:
        FailedPrecondition: in every method that reads: the file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def model(self) -> Path:
        """The folder of the kept model."""
        return self.folder / "model"

    def labels(self) -> NDArray[np.int64]:
        """The true classes of all samples, `(samples,)`."""
        labels: NDArray[np.int64] = self._read("given/labels.npy")
        return labels

    def given(self, batch: int) -> Given:
        """The rows of a batch as they were sent; numbers stay on the disk until they are used."""
        if (self.folder / f"given/{batch:06}.npy").exists():
            return as_array(self._read(f"given/{batch:06}.npy"))
        name = f"given/{batch:06}.npz"
        try:
            with np.load(self.folder / name, allow_pickle=False) as archive:
                values, ends = archive["values"], archive["ends"]
            return tuple(piece.tobytes() for piece in np.split(values, ends[:-1]))
        except (OSError, ValueError, KeyError, EOFError):
            raise _damaged(name) from None

    def inputs(self, batch: int) -> Rows:
        """The float32 rows of a batch as plugins see them, memory-mapped."""
        rows: Rows = self._read(f"inputs/{batch:06}.npy")
        return rows

    def examples(self, batch: int, stage: int) -> Rows:
        """The confirmed examples of a batch and the stage of that number, memory-mapped."""
        rows: Rows = self._read(f"examples/{batch:06}-{stage:03}.npy")
        return rows

    def write_labels(self, labels: NDArray[np.int64]) -> None:
        """Keep the true classes of all samples."""
        self._write("given/labels.npy", lambda file: np.save(file, labels))

    def write_given(self, batch: int, rows: NDArray[Any] | Sequence[bytes]) -> None:
        """Keep rows as they were sent: numbers in their own type, or encoded images."""
        if isinstance(rows, np.ndarray):
            self._write(f"given/{batch:06}.npy", lambda file: np.save(file, rows))
            return
        values = np.frombuffer(b"".join(rows), np.uint8)
        ends = np.cumsum([len(row) for row in rows])
        self._write(f"given/{batch:06}.npz", lambda file: np.savez(file, values=values, ends=ends))

    def write_inputs(self, batch: int, rows: Rows) -> None:
        """Keep the rows of a batch as plugins see them."""
        self._write(f"inputs/{batch:06}.npy", lambda file: np.save(file, _little(rows)))

    def write_examples(self, batch: int, stage: int, rows: Rows) -> None:
        """Keep the confirmed examples of a batch and a stage, in order of its outcomes."""
        name = f"examples/{batch:06}-{stage:03}.npy"
        self._write(name, lambda file: np.save(file, _little(rows)))

    def _read(self, name: str) -> Any:
        try:
            return np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise _damaged(name) from None

    def _write(self, name: str, fill: Callable[[IO[bytes]], None]) -> None:
        path = self.folder / name
        _make(path.parent)
        write_whole(path, fill)


def write_whole(path: Path, fill: Callable[[IO[bytes]], None]) -> None:
    """Write a file that is there whole or not at all, and stays."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _make(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)


def _little(rows: Rows) -> Rows:
    return np.ascontiguousarray(rows, "<f4")


def _damaged(name: str) -> FailedPrecondition:
    return FailedPrecondition(f"the audit's file {name} is missing or damaged")
