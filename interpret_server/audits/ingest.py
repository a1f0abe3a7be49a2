"""Data sets become the stored batches of an audit, checked as they arrive."""

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..data import DataRoot, DataSet
from ..data.worker import shape_of
from ..engine.api import ITEM_SIZES, Array, ModelInfo
from ..errors import InvalidRequest, RequestTooLarge
from ..threads import in_thread
from .files import AuditFiles, Given

MAX_SAMPLES = 1_000_000  # of an audit
_PIECE = 32 << 20  # bytes of a stored data set that are read at once
_PIECE_ROWS = 8192

T = TypeVar("T")


@dataclass(frozen=True)
class DataChunk:
    """Some samples, in order.

    Args:
        inputs: `(N, *input_shape)`, or encoded images.
        labels: their true classes.
    """

    inputs: Given
    labels: tuple[int, ...]


@dataclass(frozen=True)
class StoredSet:
    """Rows of a data set on the server, which has labels.

    Args:
        name: path below the data root.
        start: the first row.
        count: how many; None for all that follow.
    """

    name: str
    start: int = 0
    count: int | None = None


class Images(NamedTuple):
    """A batch of encoded images, and the number of its first one among the samples."""

    first: int
    images: tuple[bytes, ...]


CheckImages = Callable[[Images], Awaitable[None]]


class Intake:
    """Cuts chunks into batches and stores them. Blocks: use it in a thread.

    Args:
        files: where the batches go.
        model: that takes them.
        batch_size: rows of a batch.
        max_bytes: of all inputs together.
    """

    def __init__(
        self, files: AuditFiles, model: ModelInfo, batch_size: int, max_bytes: int
    ) -> None:
        self._files, self._model = files, model
        self._batch_size, self._max_bytes = batch_size, max_bytes
        self._labels: list[NDArray[np.int64]] = []
        self._waiting: Any = None  # rows of the batch that is not full
        self._full: deque[Any] = deque()  # batches to be stored
        self._samples = self._bytes = self._batches = 0

    def add(self, chunk: DataChunk) -> None:
        """Take a chunk, whose batches are then to be stored.

        Raises:
            InvalidRequest: naming `inputs` or `labels`.
            RequestTooLarge: there are more bytes than an audit may have.
        """
        rows, size = self._rows(chunk.inputs)
        self._bytes += size
        if self._bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        if self._samples + len(rows) > MAX_SAMPLES:
            raise InvalidRequest.field("inputs", f"an audit has at most {MAX_SAMPLES} samples")
        self._check_labels(chunk.labels, len(rows))
        self._labels.append(np.array(chunk.labels, np.int64))
        self._samples += len(rows)
        rows = rows if self._waiting is None else self._joined(rows)
        while len(rows) >= self._batch_size:
            self._full.append(rows[: self._batch_size])
            rows = rows[self._batch_size :]
        self._waiting = rows.copy() if isinstance(rows, np.ndarray) else rows

    @property
    def full(self) -> bool:
        """Whether a batch is to be stored."""
        return bool(self._full)

    def store(self) -> Images | None:
        """Store a batch, and return it if it is one of images."""
        rows, first = self._full.popleft(), self._batches * self._batch_size
        self._files.write_given(self._batches, rows)
        self._batches += 1
        return Images(first, rows) if isinstance(rows, tuple) else None

    def finish(self) -> int:
        """Store the labels; the last batch is then to be stored.

        Returns:
            How many samples there are.

        Raises:
            InvalidRequest: there are none.
        """
        if not self._samples:
            raise InvalidRequest.field("inputs", "there are no rows")
        if len(self._waiting):
            self._full.append(self._waiting)
        self._files.write_labels(np.concatenate(self._labels))
        return self._samples

    def _rows(self, inputs: Given) -> tuple[Any, int]:
        """The rows of a chunk, and how many bytes they have."""
        if isinstance(inputs, tuple):
            for row, image in enumerate(inputs, self._samples):
                if not image:
                    raise InvalidRequest.field("inputs", f"row {row} is an empty image")
            return inputs, sum(map(len, inputs))
        return self._numbers(inputs), len(inputs.data)

    def _numbers(self, array: Array) -> NDArray[Any]:
        model = self._model
        if array.dtype not in ITEM_SIZES or array.dtype == "bool":
            raise InvalidRequest.field("inputs", "the data type must be numeric")
        if "int" in array.dtype and model.inputs and not model.inputs[0].integers:
            raise InvalidRequest.field(
                "inputs",
                f"{array.dtype} values, where {model.name} takes {model.input_dtype}; convert "
                "them, or load the model with inputs[0].dtype in its manifest",
            )
        shape, known = array.shape, model.input_shape
        if len(shape) != len(known) + 1 or any(
            size not in (-1, given) or not given
            for size, given in zip(known, shape[1:], strict=True)
        ):
            sizes = ["rows", *("free" if size < 0 else str(size) for size in known)]
            raise InvalidRequest.field(
                "inputs", f"the shape is {list(shape)}; {model.name} takes [{', '.join(sizes)}]"
            )
        if len(array.data) != math.prod(shape) * ITEM_SIZES[array.dtype]:
            raise InvalidRequest.field("inputs", f"the data is not {list(shape)} {array.dtype}")
        rows = _decoded(array)
        self._check_values(rows)
        return rows

    def _check_values(self, rows: NDArray[Any]) -> None:
        """Finite and within the bounds, compared in the model's type."""
        if not rows.size:
            return
        model = self._model
        values = rows.astype("float64" if model.input_dtype == "float64" else "float32", copy=False)
        if not np.isfinite([values.min(), values.max()]).all():
            row = self._first(~np.isfinite(values))
            raise InvalidRequest.field("inputs", f"row {row} holds NaN or an infinite value")
        if model.bounds is None:
            return
        lower, upper = np.array(model.bounds, values.dtype)
        if values.min() < lower or values.max() > upper:
            row = self._first((values < lower) | (values > upper))
            raise InvalidRequest.field(
                "inputs",
                f"row {row} lies outside the bounds [{lower:g}, {upper:g}] of {model.name}",
            )

    def _first(self, wrong: NDArray[np.bool_]) -> int:
        return self._samples + int(wrong.reshape(len(wrong), -1).any(1).argmax())

    def _joined(self, rows: Any) -> Any:
        """The rows after those that wait, which they must be like."""
        waiting = self._waiting
        if isinstance(waiting, np.ndarray) != isinstance(rows, np.ndarray):
            raise InvalidRequest.field("inputs", "send numbers or images, not both")
        if isinstance(rows, tuple):
            return waiting + rows
        if waiting.dtype != rows.dtype or waiting.shape[1:] != rows.shape[1:]:
            raise InvalidRequest.field("inputs", "all chunks have one data type and one shape")
        return np.concatenate([waiting, rows]) if len(waiting) else rows

    def _check_labels(self, labels: tuple[int, ...], rows: int) -> None:
        if len(labels) != rows:
            raise InvalidRequest.field("labels", f"{len(labels)} labels for {rows} rows")
        classes = self._model.classes
        for row, label in enumerate(labels, self._samples):
            if not 0 <= label < classes:
                raise InvalidRequest.field(
                    "labels", f"row {row} is of class {label}; {self._model.name} has {classes}"
                )


def _decoded(array: Array) -> NDArray[Any]:
    if array.dtype == "bfloat16":  # numpy has no such type; its values are float32 values
        halves = np.frombuffer(array.data, "<u2").astype("<u4")
        return (halves << 16).view("<f4").reshape(array.shape)
    dtype = np.dtype(array.dtype).newbyteorder("<")
    return np.frombuffer(array.data, dtype).reshape(array.shape)


def too_large(limit: int) -> RequestTooLarge:
    """The error for a data set that is larger than an audit's may be."""
    return RequestTooLarge(
        f"inputs: the data set has more than {limit} bytes, the most that an audit on this server "
        "may keep; send fewer rows"
    )


async def ingest_stream(
    chunks: AsyncIterator[DataChunk], intake: Intake, check: CheckImages
) -> int:
    """Take all chunks of a stream; returns how many samples there are.

    Args:
        check: refuses images that cannot be decoded.
    """
    async for chunk in chunks:
        await _stored(intake, check, lambda chunk=chunk: intake.add(chunk))  # type: ignore[misc]
    return await _stored(intake, check, intake.finish)


async def _stored(intake: Intake, check: CheckImages, work: Callable[[], T]) -> T:
    """The result of work, after which all full batches are stored; one by one, to be cancelled."""
    done = await in_thread(work)
    while intake.full:
        images = await in_thread(intake.store)
        if images is not None:
            await check(images)
    return done


async def ingest_stored(
    stored: StoredSet,
    root: DataRoot,
    model: ModelInfo,
    intake: Intake,
    max_bytes: int,
    check: CheckImages,
) -> int:
    """Take rows of a data set on the server; returns how many samples there are.

    Args:
        check: refuses images that cannot be decoded.

    Raises:
        NotFound, InvalidRequest: there is no such data set, or it tells no labels.
        RequestTooLarge: there are more bytes than an audit may have.
    """
    pieces = await in_thread(lambda: _pieces(stored, root, model, max_bytes))
    while (chunk := await in_thread(lambda: next(pieces, None))) is not None:
        await _stored(intake, check, lambda chunk=chunk: intake.add(chunk))  # type: ignore[misc]
    return await _stored(intake, check, intake.finish)


def _pieces(
    stored: StoredSet, root: DataRoot, model: ModelInfo, max_bytes: int
) -> Iterator[DataChunk]:
    data = root.open(stored.name, [item.name for item in model.inputs], shape_of(model))
    stop = len(data) if stored.count is None else stored.start + stored.count
    if not 0 <= stored.start < stop <= len(data):
        raise InvalidRequest.field(
            "inputs.dataset.rows",
            f"{stored.name} has {len(data)} rows, and not rows {stored.start} to {stop}",
        )
    rows = range(stored.start, stop)
    size = _guarded(data, lambda: data.nbytes(rows))
    if size > max_bytes:
        raise too_large(max_bytes)
    step = max(1, min(_PIECE_ROWS, _PIECE * len(rows) // max(1, size)))
    return _read(data, [rows[first : first + step] for first in range(0, len(rows), step)])


def _read(data: DataSet, pieces: Sequence[range]) -> Iterator[DataChunk]:
    for rows in pieces:
        labels = data.labels(rows)
        if labels is None:
            raise InvalidRequest.field("labels", f"{data.name} tells no labels")
        inputs = _guarded(data, lambda rows=rows: data.inputs(rows))  # type: ignore[misc]
        if not isinstance(inputs, Array | tuple):
            raise InvalidRequest.field("inputs", f"{data.name} has several inputs")
        yield DataChunk(inputs, tuple(labels.tolist()))


def _guarded(data: DataSet, read: Callable[[], T]) -> T:
    try:
        return read()
    except OSError:  # removed meanwhile
        raise InvalidRequest.field("inputs.dataset", f"{data.name} cannot be read") from None
