"""CSV files: a header, then one row of numbers for each example."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidRequest
from .arrays import as_array
from .calls import FIELD
from .columns import Columns, Shape, whole_numbers
from .sets import DataSet, Inputs

MAX_LINE = 1 << 22  # bytes
MAX_LINES = 10_000_000


class CsvTable(DataSet):
    """Numbers in columns; lines are found once, and only those asked for are read again.

    Args:
        path: of the file: UTF-8, comma or semicolon or tab between fields, names in line 1.
        name: for messages.
        shape: of the model's rows.

    Raises:
        InvalidRequest: it has no header or no rows, or a line is too long.
    """

    def __init__(self, path: Path, name: str, shape: Shape) -> None:
        super().__init__(name)
        self._path, self._shape = path, shape
        with path.open("rb") as file:
            header = self._line(file)
            self._starts = self._index(file)
        self._dialect = max(",;\t", key=lambda sign: header.count(sign.encode()))
        names = [field.strip() for field in self._fields(header)]
        self._places = {key: place for place, key in enumerate(names)}
        self._columns = Columns.of(names, shape, name)

    def __len__(self) -> int:
        return len(self._starts)

    def nbytes(self, rows: Sequence[int]) -> int:
        return 4 * len(rows) * len(self._columns.values)

    def inputs(self, rows: Sequence[int]) -> Inputs:
        return as_array(self._shape.rows(self._read(rows, self._columns.values, np.float32)))

    def labels(self, rows: Sequence[int]) -> NDArray[np.int64] | None:
        if self._columns.label is None:
            return None
        return whole_numbers(self._read(rows, (self._columns.label,), np.float64)[:, 0], self.name)

    def _index(self, file: BinaryIO) -> NDArray[np.int64]:
        starts, start = [], file.tell()
        while line := self._line(file):
            if line.strip():
                starts.append(start)
            start += len(line)
            if len(starts) > MAX_LINES:
                raise InvalidRequest.field(FIELD, f"{self.name} has more than {MAX_LINES} rows")
        if not starts:
            raise InvalidRequest.field(FIELD, f"{self.name} has no rows below its header")
        return np.array(starts, np.int64)

    def _line(self, file: BinaryIO) -> bytes:
        line = file.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise InvalidRequest.field(FIELD, f"{self.name} has a line of over {MAX_LINE} bytes")
        return line

    def _fields(self, line: bytes) -> list[str]:
        try:
            text = line.decode("utf-8-sig").rstrip("\r\n")
            return next(csv.reader([text], delimiter=self._dialect, strict=True))
        except (UnicodeDecodeError, csv.Error, StopIteration):
            raise InvalidRequest.field(
                FIELD, f"{self.name} is no CSV file of one line for each row"
            ) from None

    def _read(
        self, rows: Sequence[int], names: Sequence[str], dtype: type[np.floating]
    ) -> NDArray[np.floating]:
        found = np.empty((len(rows), len(names)), dtype)
        with self._path.open("rb") as file:
            for place, row in enumerate(rows):
                file.seek(int(self._starts[row]))
                fields = self._fields(self._line(file))
                if len(fields) != len(self._places):
                    raise InvalidRequest.field(
                        FIELD,
                        f"row {row} of {self.name} has {len(fields)} fields, and its header "
                        f"{len(self._places)}",
                    )
                for column, key in enumerate(names):
                    found[place, column] = self._number(fields[self._places[key]], row, key)
        return found

    def _number(self, text: str, row: int, key: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise InvalidRequest.field(
                FIELD, f"column {key[:64]!r} of row {row} of {self.name} is no number"
            ) from None
