"""Files of audits, and data sets that become them."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_fakes import SHAPE, array, model_info, tree

from interpret_server.audits import files as files_module
from interpret_server.audits import ingest
from interpret_server.audits.files import AuditFiles
from interpret_server.audits.ingest import (
    DataChunk,
    Images,
    Intake,
    StoredSet,
    ingest_stored,
    ingest_stream,
)
from interpret_server.data import DataRoot
from interpret_server.engine.api import Array
from interpret_server.errors import FailedPrecondition, InvalidRequest, NotFound, RequestTooLarge
from interpret_server.threads import in_thread

ROWS = np.random.default_rng(0).random((10, *SHAPE), dtype=np.float32)
LABELS = tuple(range(3)) * 3 + (0,)


@pytest.fixture
def files(tmp_path: Path) -> AuditFiles:
    return AuditFiles(tmp_path / "audit")


def values(found: Any) -> Any:
    assert isinstance(found, Array)
    return np.frombuffer(found.data, found.dtype).reshape(found.shape)


async def take(
    files: AuditFiles, *chunks: DataChunk, max_bytes: int = 1 << 20, **model: Any
) -> int:
    async def stream() -> AsyncIterator[DataChunk]:
        for chunk in chunks:
            yield chunk

    intake = Intake(files, model_info(**model), 4, max_bytes)
    return await ingest_stream(stream(), intake, no_check)


async def no_check(batch: Images) -> None:
    assert batch.images


def chunks(rows: Any, sizes: tuple[int, ...]) -> list[DataChunk]:
    ends = np.cumsum(sizes)
    return [
        DataChunk(array(rows[end - size : end]), LABELS[end - size : end])
        for size, end in zip(sizes, ends, strict=True)
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("sizes", [(10,), (1,) * 10, (3, 7), (4, 4, 2), (9, 0, 1)])
async def test_batches_do_not_depend_on_chunks(files: AuditFiles, dtype: str, sizes: Any):
    rows = ROWS.astype(dtype)
    assert await take(files, *chunks(rows, sizes)) == 10
    np.testing.assert_array_equal(files.labels(), LABELS)
    for batch, part in enumerate((rows[:4], rows[4:8], rows[8:])):
        found = values(files.given(batch))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, part)
    assert len(tree(files.folder)) == 4


async def test_brain_floats_keep_their_values(files: AuditFiles):
    halves = (ROWS.view(np.uint32) >> 16).astype(np.uint16)
    given = Array("bfloat16", ROWS.shape, halves.tobytes())
    await take(files, DataChunk(given, LABELS))
    expected = (halves.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(values(files.given(0)), expected[:4])


async def test_images_come_back_byte_for_byte(files: AuditFiles):
    images = tuple(os.urandom(size) for size in (5, 1, 300, 7, 9, 2))
    await take(files, DataChunk(images[:1], (0,)), DataChunk(images[1:], (1, 2, 0, 1, 2)))
    assert files.given(0) == images[:4]
    assert files.given(1) == images[4:]


async def test_batches_of_images_are_checked_as_they_fill_up_and_the_last_one_at_the_end(
    files: AuditFiles,
):
    images = tuple(os.urandom(5) for _ in range(6))
    seen: list[Any] = []

    async def stream() -> AsyncIterator[DataChunk]:
        for first in (0, 3):
            yield DataChunk(images[first : first + 3], (0, 1, 2))
            seen.append("next")

    async def check(batch: Images) -> None:
        seen.append(tuple(batch))

    assert await ingest_stream(stream(), Intake(files, model_info(), 4, 1 << 20), check) == 6
    assert seen == ["next", (0, images[:4]), "next", (4, images[4:])]


@pytest.mark.parametrize(
    ("chunk", "field", "message"),
    [
        (DataChunk(array(ROWS), LABELS[:9]), "labels", "9 labels for 10 rows"),
        (DataChunk(array(ROWS), ()), "labels", "0 labels for 10 rows"),
        (DataChunk(array(ROWS), (*LABELS[:9], 3)), "labels", "row 9 is of class 3; net has 3"),
        (DataChunk(array(ROWS), (-1, *LABELS[1:])), "labels", "row 0 is of class -1"),
        (DataChunk(array(ROWS), (1 << 70, *LABELS[1:])), "labels", "row 0 is of class"),
        (DataChunk(array(ROWS[:, 0]), LABELS), "inputs", r"\[10, 2, 2\]; net takes \[rows, 1"),
        (DataChunk(array(ROWS.astype(np.int64)), LABELS), "inputs", "int64 values, where net"),
        (DataChunk(array(ROWS > 0), LABELS), "inputs", "numeric"),
        (DataChunk(array(ROWS, "complex"), LABELS), "inputs", "numeric"),
        (DataChunk(array(ROWS, "float64"), LABELS), "inputs", "the data is not"),
        (DataChunk(array(ROWS + np.float32(0.5)), LABELS), "inputs", r"bounds \[0, 1\] of net"),
        (DataChunk((b"x", b""), (0, 0)), "inputs", "row 1 is an empty image"),
        (DataChunk(array(ROWS[:0]), ()), "inputs", "there are no rows"),
    ],
)
async def test_wrong_chunks_are_named(files: AuditFiles, chunk: Any, field: str, message: str):
    with pytest.raises(InvalidRequest, match=message) as caught:
        await take(files, chunk)
    assert [item.field for item in caught.value.violations] == [field]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
async def test_rows_are_counted_over_chunks(files: AuditFiles, wrong: float):
    rows = ROWS.copy()
    rows[8, 0, 1, 1] = wrong
    with pytest.raises(InvalidRequest, match="inputs: row 8 holds NaN or an infinite value"):
        await take(files, *chunks(rows, (3, 7)))


async def test_no_data_is_refused(files: AuditFiles):
    with pytest.raises(InvalidRequest, match="inputs: there are no rows"):
        await take(files)


@pytest.mark.parametrize("second", [array(ROWS[:1].astype(np.float16)), (b"image",)])
async def test_chunks_are_alike(files: AuditFiles, second: Any):
    with pytest.raises(InvalidRequest, match=r"^inputs: "):
        await take(files, DataChunk(array(ROWS[:1]), (0,)), DataChunk(second, (0,)))


async def test_free_sizes_are_one_size(files: AuditFiles):
    wide = array(np.zeros((1, 1, 2, 3), np.float32))
    free = {"input_shape": (1, 2, -1)}
    with pytest.raises(InvalidRequest, match="one shape"):
        await take(files, DataChunk(array(ROWS[:1]), (0,)), DataChunk(wide, (0,)), **free)


async def test_integers_and_values_without_bounds_are_taken_where_the_model_takes_them(
    files: AuditFiles,
):
    (info,) = model_info().inputs
    integers = {"inputs": (type(info)(**vars(info) | {"integers": True}),), "bounds": None}
    await take(files, DataChunk(array((ROWS * 255).astype(np.uint8)), LABELS), **integers)
    assert values(files.given(0)).dtype == np.uint8


async def test_too_many_bytes_are_refused_as_they_arrive(files: AuditFiles):
    with pytest.raises(RequestTooLarge, match=r"inputs: .* 100 bytes"):
        await take(files, *chunks(ROWS, (5, 5)), max_bytes=100)


async def test_too_many_samples_are_refused(files: AuditFiles, monkeypatch: Any):
    monkeypatch.setattr(ingest, "MAX_SAMPLES", 9)
    with pytest.raises(InvalidRequest, match="inputs: an audit has at most 9 samples"):
        await take(files, *chunks(ROWS, (5, 5)))


async def test_stored_sets_are_read_in_pieces(tmp_path: Path, files: AuditFiles, monkeypatch: Any):
    np.savez_compressed(tmp_path / "set.npz", x=ROWS, y=np.array(LABELS))
    monkeypatch.setattr(ingest, "_PIECE", 3 * ROWS[0].nbytes)
    root, intake = DataRoot(tmp_path), Intake(files, model_info(), 4, 1 << 20)
    stored = StoredSet("set", start=1, count=8)
    assert await ingest_stored(stored, root, model_info(), intake, 1 << 20, no_check) == 8
    np.testing.assert_array_equal(values(files.given(0)), ROWS[1:5])
    np.testing.assert_array_equal(values(files.given(1)), ROWS[5:9])
    np.testing.assert_array_equal(files.labels(), LABELS[1:9])


@pytest.mark.parametrize(
    ("stored", "error", "message"),
    [
        (StoredSet("bare"), InvalidRequest, "labels: bare tells no labels"),
        (StoredSet("nothing"), NotFound, "no data set 'nothing'"),
        (StoredSet("set", start=10), InvalidRequest, "rows: set has 10 rows"),
        (StoredSet("set", start=2, count=9), InvalidRequest, "not rows 2 to 11"),
        (StoredSet("set", start=-1), InvalidRequest, "not rows -1"),
        (StoredSet("set", count=0), InvalidRequest, "not rows 0 to 0"),
        (StoredSet("large"), RequestTooLarge, "more than 200 bytes"),
    ],
)
async def test_wrong_stored_sets_are_named(
    tmp_path: Path, files: AuditFiles, stored: StoredSet, error: Any, message: str
):
    np.savez(tmp_path / "set.npz", x=ROWS, y=np.array(LABELS))
    np.save(tmp_path / "bare.npy", ROWS)
    np.savez(tmp_path / "large.npz", x=np.concatenate([ROWS, ROWS]), y=np.array(LABELS * 2))
    intake = Intake(files, model_info(), 4, 200)
    with pytest.raises(error, match=message):
        await ingest_stored(stored, DataRoot(tmp_path), model_info(), intake, 200, no_check)


def test_inputs_and_examples_are_mapped_not_read(files: AuditFiles):
    files.write_inputs(0, ROWS.astype(">f4"))
    files.write_examples(0, 3, ROWS[2:4])
    for found, expected in ((files.inputs(0), ROWS), (files.examples(0, 3), ROWS[2:4])):
        assert isinstance(found, np.memmap)
        assert found.dtype == np.dtype("<f4")
        np.testing.assert_array_equal(found, expected)
    assert tree(files.folder) == ["examples/000000-003.npy", "inputs/000000.npy"]
    assert files.model == files.folder / "model"


def test_missing_and_damaged_files_are_named(files: AuditFiles):
    files.write_inputs(0, ROWS)
    path = files.folder / "inputs/000000.npy"
    path.write_bytes(path.read_bytes()[:-1])
    (files.folder / "given").mkdir()
    (files.folder / "given/000001.npz").write_bytes(b"PK nothing")
    reads = {
        "inputs/000000.npy": lambda: files.inputs(0),
        "given/labels.npy": files.labels,
        "given/000000.npz": lambda: files.given(0),
        "given/000001.npz": lambda: files.given(1),
        "examples/000002-001.npy": lambda: files.examples(2, 1),
    }
    for name, read in reads.items():
        with pytest.raises(FailedPrecondition, match=f"file {name} is missing or damaged"):
            read()


def test_files_are_flushed_before_they_are_renamed(files: AuditFiles, monkeypatch: Any):
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flush(number: int) -> None:
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{number}")))
        fsync(number)

    def rename(path: Path, target: Path) -> Path:
        order.append(f"to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(files_module.os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    files.write_inputs(0, ROWS)
    assert order == ["audit", ".000000.npy.new", "to 000000.npy", "inputs"]


def test_a_failed_write_leaves_the_old_file(files: AuditFiles, monkeypatch: Any):
    files.write_inputs(0, ROWS)

    def full(file: Any, rows: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_module.np, "save", full)
    with pytest.raises(OSError, match="No space"):
        files.write_inputs(0, ROWS + 1)
    np.testing.assert_array_equal(files.inputs(0), ROWS)
    assert tree(files.folder) == ["inputs/000000.npy"]


async def test_work_in_a_thread_is_over_when_it_is_cancelled():
    started, go_on, over = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        go_on.wait(10)
        over.set()

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(started.wait, 10)
    task.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert over.is_set()
