"""Parquet files: columns of numbers, lists of numbers, or encoded images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FailedPrecondition, InvalidRequest
from .arrays import as_array
from .calls import FIELD
from .columns import Columns, Shape, class_column, whole_numbers
from .sets import INPUTS, DataSet, Inputs

MAX_GROUP = 1 << 30  # bytes of a row group before compression


class ParquetTable(DataSet):
    """A column of encoded images, a column of lists, or columns of numbers; and classes.

    Images are bytes, or structures with a field `bytes`. Only the row groups of the rows that are
    asked for are read.

    Args:
        path: of the file.
        name: for messages.
        shape: of the model's rows.

    Raises:
        FailedPrecondition: pyarrow is not installed.
        InvalidRequest: it is no whole Parquet file, or has no such columns.
    """

    def __init__(self, path: Path, name: str, shape: Shape) -> None:
        super().__init__(name)
        self._shape = shape
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise FailedPrecondition(
                f"{FIELD}: Parquet files need pyarrow; install interpret-server[parquet]"
            ) from None
        self._arrow = arrow
        try:
            self._file = parquet.ParquetFile(path)
        except (arrow.ArrowException, OSError, ValueError):
            raise self._wrong("cannot be read: it is no whole Parquet file") from None
        metadata = self._file.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        if any(group.total_byte_size > MAX_GROUP for group in groups):
            raise self._wrong(f"has a row group of over {MAX_GROUP >> 20} MiB; write smaller ones")
        counts = [group.num_rows for group in groups]
        self._ends: NDArray[np.int64] = np.cumsum(counts, dtype=np.int64)
        self._length = sum(map(int, counts))
        if not len(self):
            raise self._wrong("has no rows")
        schema = self._file.schema_arrow
        self._whole = self._whole_row(schema)
        known = self._whole is None
        names = [field.name for field in schema if known or field.name != self._whole]
        columns = Columns.of(names, shape, name) if known else Columns((), class_column(names))
        self._columns = columns
        self._row_bytes: int = (
            sum(group.total_byte_size for group in groups) // max(1, len(self)) + 1
        )

    def __len__(self) -> int:
        return self._length

    def nbytes(self, rows: Sequence[int]) -> int:
        if self._whole is None:
            return 4 * len(rows) * len(self._columns.values)
        return self._row_bytes * len(rows)

    def inputs(self, rows: Sequence[int]) -> Inputs:
        if self._whole is None:
            columns = [self._numbers(rows, key, np.float32) for key in self._columns.values]
            return as_array(self._shape.rows(np.stack(columns, 1)))
        values = self._values(rows, self._whole)
        if self._arrow.types.is_list(kind := values.type) or self._is_fixed(kind):
            return as_array(self._shape.rows(self._lists(values)))
        found = [item["bytes"] if isinstance(item, dict) else item for item in values.to_pylist()]
        missing = next((place for place, item in enumerate(found) if item is None), None)
        if missing is not None:
            raise self._wrong(f"has no image in row {rows[missing]}")
        return tuple(found)

    def labels(self, rows: Sequence[int]) -> NDArray[np.int64] | None:
        label = self._columns.label
        if label is None:
            return None
        return whole_numbers(self._numbers(rows, label, None), self.name)

    def _whole_row(self, schema: Any) -> str | None:
        """The column that holds a whole row in each of its values."""
        types = self._arrow.types
        names = [
            field.name
            for field in schema
            if types.is_binary(field.type)
            or types.is_large_binary(field.type)
            or types.is_list(field.type)
            or self._is_fixed(field.type)
            or (types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0)
        ]
        known = [key for key in (*INPUTS, "image") if key in names]
        if len(names) > 1 and not known:
            raise self._wrong(
                f"has {len(names)} columns of images or lists; call one {INPUTS[0]} or image"
            )
        return (known or names or [None])[0]

    def _is_fixed(self, kind: Any) -> bool:
        return bool(self._arrow.types.is_fixed_size_list(kind))

    def _lists(self, values: Any) -> NDArray[np.float32]:
        try:
            found = np.array(values.to_pylist(), np.float32)
        except (ValueError, TypeError):
            raise self._wrong(f"has lists of differing lengths in {self._whole!r}") from None
        if np.isnan(found).any():
            raise self._wrong(f"has empty values in {self._whole!r}")
        return found

    def _numbers(self, rows: Sequence[int], key: str, dtype: Any) -> NDArray[Any]:
        values = self._values(rows, key)
        types = self._arrow.types
        kind = values.type
        if values.null_count or not (types.is_integer(kind) or types.is_floating(kind)):
            raise self._wrong(f"has something else than a number in column {key[:64]!r}")
        found: NDArray[Any] = values.to_numpy()
        return found if dtype is None else found.astype(dtype)

    def _values(self, rows: Sequence[int], key: str) -> Any:
        """A column's values in some rows, in their order."""
        parts, places = [], np.empty(len(rows), np.int64)
        start = 0
        for group, inside, where in self._grouped(rows):
            column = self._group(group, key)
            parts += column.take(self._arrow.array(inside)).chunks
            places[where] = np.arange(start, start + len(inside))
            start += len(inside)
        whole = self._arrow.chunked_array(parts, column.type)
        return whole.take(self._arrow.array(places)).combine_chunks()

    def _group(self, group: int, key: str) -> Any:
        try:
            return self._file.read_row_group(group, [key], use_threads=False).column(0)
        except (self._arrow.ArrowException, OSError):
            raise self._wrong("cannot be read: it is no whole Parquet file") from None

    def _grouped(
        self, rows: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """(row group, rows inside it, their places in `rows`)."""
        wanted = np.asarray(rows, np.int64)
        groups = np.searchsorted(self._ends, wanted, side="right")
        for group in np.unique(groups):
            where = np.flatnonzero(groups == group)
            first = int(self._ends[group - 1]) if group else 0
            yield int(group), wanted[where] - first, where

    def _wrong(self, what: str) -> InvalidRequest:
        return InvalidRequest.field(FIELD, f"{self.name} {what}")
