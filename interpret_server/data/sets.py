"""Data sets: rows of inputs, and labels where they have any."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..engine.api import Array
from ..errors import InvalidRequest
from .arrays import StoredArray, as_array, npy_array, npz_arrays
from .calls import FIELD

INPUTS, LABELS = ("inputs", "images", "x"), ("labels", "y")  # names of arrays
IMAGES = frozenset({".png", ".jpg", ".jpeg"})

Inputs = Array | tuple[bytes, ...] | Mapping[str, Array]


class DataSet(ABC):
    """Rows on a disk; row i of inputs and labels is example i.

    Args:
        name: for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def __len__(self) -> int:
        """How many rows."""

    @abstractmethod
    def nbytes(self, rows: Sequence[int]) -> int:
        """How many bytes `inputs` would give."""

    @abstractmethod
    def inputs(self, rows: Sequence[int]) -> Inputs:
        """Some rows as a caller would send them: an array, arrays by name, or encoded images.

        Raises:
            InvalidRequest: naming `inputs.dataset`.
        """

    @abstractmethod
    def labels(self, rows: Sequence[int]) -> NDArray[np.int64] | None:
        """The classes of some rows, `(N,)`; None where the data set tells none.

        Raises:
            InvalidRequest: naming `inputs.dataset`.
        """


class Arrays(DataSet):
    """A `.npy` file, or a `.npz` file with labels.

    Args:
        path: of the file.
        name: for messages.
        names: of the inputs of a model that takes several; an array for each is then read.
    """

    def __init__(self, path: Path, name: str, names: Sequence[str] = ()) -> None:
        super().__init__(name)
        self._labels: StoredArray | InvalidRequest | None = None
        self._inputs: dict[str, StoredArray] = {}
        if path.suffix == ".npy":
            if len(names) > 1:
                raise InvalidRequest.field(
                    FIELD, f"{name} is one array, and the model takes {' and '.join(names)}"
                )
            self._inputs[""] = npy_array(path, name)
            return
        found = npz_arrays(path, name)
        self._labels = next((found[key] for key in LABELS if key in found), None)
        wanted = {key: key for key in names} if len(names) > 1 else {"": self._sole(found, names)}
        for given, key in wanted.items():
            stored = found.get(key)
            if not isinstance(stored, StoredArray):
                raise stored or InvalidRequest.field(FIELD, f"{name} has no array {key!r}")
            self._inputs[given] = stored
        lengths = {len(stored) for stored in self._inputs.values()}
        if len(lengths) > 1:
            raise InvalidRequest.field(FIELD, f"the arrays of {name} differ in rows")

    def _sole(self, found: Mapping[str, object], names: Sequence[str]) -> str:
        candidates = [key for key in (*INPUTS, *names) if key in found]
        others = [key for key in found if key not in LABELS]
        if candidates or len(others) == 1:
            return (candidates or others)[0]
        raise InvalidRequest.field(
            FIELD,
            f"{self.name} holds {', '.join(list(found)[:8]) or 'nothing'}; call the array of the "
            f"rows {', '.join(INPUTS[:-1])} or {INPUTS[-1]}",
        )

    def __len__(self) -> int:
        return len(next(iter(self._inputs.values())))

    def nbytes(self, rows: Sequence[int]) -> int:
        return len(rows) * sum(stored.row_bytes for stored in self._inputs.values())

    def inputs(self, rows: Sequence[int]) -> Inputs:
        read = {key: as_array(stored.read(rows)) for key, stored in self._inputs.items()}
        return read[""] if read.keys() == {""} else read

    def labels(self, rows: Sequence[int]) -> NDArray[np.int64] | None:
        stored = self._labels
        if stored is None:
            return None
        if not isinstance(stored, StoredArray):
            raise stored
        if stored.shape != (len(self),) or stored.dtype.kind not in "iu":
            raise InvalidRequest.field(
                FIELD, f"the labels of {self.name} are not one whole number for each row"
            )
        return stored.read(rows).astype(np.int64)


class ImageFolder(DataSet):
    """Encoded images of a folder in the order of their names, or of one folder for each class.

    Args:
        path: of the folder.
        name: for messages.
        root: the real folder that no link may lead out of.
    """

    def __init__(self, path: Path, name: str, root: Path) -> None:
        super().__init__(name)
        self._root = root
        self._files = _images(path)
        self._labels: NDArray[np.int64] | None = None
        if self._files:
            return
        classes = sorted(item for item in path.iterdir() if _visible(item) and item.is_dir())
        found = [(label, file) for label, item in enumerate(classes) for file in _images(item)]
        self._files = [file for _, file in found]
        self._labels = np.array([label for label, _ in found], np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def nbytes(self, rows: Sequence[int]) -> int:
        return sum(self._file(row).stat().st_size for row in rows)

    def inputs(self, rows: Sequence[int]) -> Inputs:
        return tuple(self._file(row).read_bytes() for row in rows)

    def labels(self, rows: Sequence[int]) -> NDArray[np.int64] | None:
        return None if self._labels is None else self._labels[list(rows)]

    def _file(self, row: int) -> Path:
        try:
            real = self._files[row].resolve(strict=True)
        except (OSError, RuntimeError):
            raise InvalidRequest.field(FIELD, f"row {row} of {self.name} cannot be read") from None
        if not real.is_relative_to(self._root):
            raise InvalidRequest.field(
                FIELD, f"row {row} of {self.name} is a link that leads out of the data root"
            )
        return real


def _images(folder: Path) -> list[Path]:
    return sorted(
        item
        for item in folder.iterdir()
        if _visible(item) and item.suffix.lower() in IMAGES and item.is_file()
    )


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")
