"""Arrays in `.npy` and `.npz` files: their types and shapes, and some of their rows.

Only the rows that are asked for are read, never pickles, and a compressed array only as far as its
last such row.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..engine.api import ITEM_SIZES, Array
from ..errors import InvalidRequest
from .calls import FIELD

MAX_INFLATED = 1 << 30  # bytes of a compressed array up to the last row that is asked for
MAX_MEMBERS = 1024
_HEADER = 1 << 16  # bytes that a header may have
_PIECE = 1 << 20
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,  # encrypted
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class StoredArray:
    """An array in a file.

    Args:
        path: of the file.
        name: of the data set, for messages.
        dtype, shape: as its header says.
        offset: of its first row: in the file, or in its member of a compressed archive.
        member: of a compressed archive; None where the bytes lie in the file as they are.
    """

    path: Path
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    member: str | None = None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def read(self, rows: Sequence[int]) -> NDArray[Any]:
        """Some rows, in the order in which they are asked for.

        Raises:
            InvalidRequest: the file is not whole, or too much of it is compressed.
        """
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        size = self.row_bytes
        if not size:
            return found
        end = self.offset + (max(rows) + 1) * size
        if self.member is not None and end > MAX_INFLATED:
            raise InvalidRequest.field(
                FIELD,
                f"{self.name} is compressed, and these rows end after {end >> 20} MiB of it; at "
                f"most {MAX_INFLATED >> 20} MiB are inflated: save it with numpy.savez or as .npy",
            )
        view = found.reshape(-1).view(np.uint8).data
        try:
            with self.path.open("rb") as file:
                if self.member is None:
                    self._fill(file, view, rows)
                else:
                    with zipfile.ZipFile(file) as archive, archive.open(self.member) as stream:
                        self._fill(stream, view, rows)
        except _UNREADABLE:
            raise unreadable(self.name) from None
        return found

    def _fill(self, stream: IO[bytes], view: memoryview, rows: Sequence[int]) -> None:
        size = self.row_bytes
        for first, last, place in _runs(rows):
            stream.seek(self.offset + first * size)
            start, stop = place * size, (place + last - first) * size
            while start < stop:
                piece = stream.read(min(_PIECE, stop - start))
                if not piece:
                    raise EOFError
                view[start : start + len(piece)] = piece
                start += len(piece)


def _runs(rows: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first row, row after the last, place of the first) of what lies together, in file order."""
    if isinstance(rows, range):
        return [(rows.start, rows.stop, 0)]
    return sorted((row, row + 1, place) for place, row in enumerate(rows))


def npy_array(path: Path, name: str) -> StoredArray:
    """The array of a `.npy` file.

    Raises:
        InvalidRequest: it is not whole, or holds what no tensor can.
    """
    try:
        with path.open("rb") as file:
            return _described(file, path, name, path.stat().st_size)
    except _UNREADABLE:
        raise unreadable(name) from None


def npz_arrays(path: Path, name: str) -> dict[str, StoredArray | InvalidRequest]:
    """The arrays of a `.npz` file by name; what none can be made of, with the reason.

    Raises:
        InvalidRequest: it is not whole.
    """
    found: dict[str, StoredArray | InvalidRequest] = {}
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise InvalidRequest.field(FIELD, f"{name} holds {len(members)} arrays")
            for member in members:
                key = member.filename.removesuffix(".npy")
                try:
                    found[key] = _member(archive, member, path, f"{name}:{key}")
                except InvalidRequest as error:
                    found[key] = error
    except _UNREADABLE:
        raise unreadable(name) from None
    return found


def _member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, name: str
) -> StoredArray:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise unreadable(name)
    with archive.open(member) as stream:
        compressed = member.compress_type != zipfile.ZIP_STORED
        inner = member.filename if compressed else None
        start = 0 if compressed else _data_offset(archive, member)
        return _described(stream, path, name, member.file_size, start, inner)


def _data_offset(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a member that is not compressed begin in the file."""
    file = archive.fp
    assert file is not None
    file.seek(member.header_offset)
    header = file.read(30)
    sizes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return member.header_offset + 30 + sum(sizes)


def _described(
    stream: IO[bytes], path: Path, name: str, size: int, start: int = 0, member: str | None = None
) -> StoredArray:
    """An array by its header, whose file or member has `size` bytes.

    Args:
        start: of the member in the file.
    """
    header = io.BytesIO(stream.read(_HEADER))
    try:
        read = _HEADERS[np.lib.format.read_magic(header)]
        shape, fortran, dtype = read(header)
    except Exception:  # whatever numpy raises on a header that is damaged
        raise unreadable(name) from None
    if dtype.hasobject:
        raise InvalidRequest.field(FIELD, f"{name} holds Python objects, which are never unpickled")
    if dtype.name not in ITEM_SIZES:
        raise InvalidRequest.field(FIELD, f"{name} is of type {dtype}, which no tensor has")
    if not shape:
        raise InvalidRequest.field(FIELD, f"{name} is a single number; the first axis is the rows")
    if fortran and len(shape) > 1:
        raise InvalidRequest.field(
            FIELD, f"{name} is in Fortran order; save numpy.ascontiguousarray of it"
        )
    if any(axis < 0 for axis in shape) or header.tell() + dtype.itemsize * math.prod(shape) > size:
        raise unreadable(name)
    return StoredArray(path, name, dtype, shape, start + header.tell(), member)


def as_array(values: NDArray[Any]) -> Array:
    """The same outside numpy."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return Array(values.dtype.name, values.shape, little.reshape(-1).view(np.uint8).data)


def unreadable(name: str) -> InvalidRequest:
    """The error for a file that is not what its name says."""
    return InvalidRequest.field(FIELD, f"{name} cannot be read: it is no whole numpy file")
