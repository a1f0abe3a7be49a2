"""Shared memory: sealed, bounded, checked on both sides, and given back."""

import dataclasses
import fcntl
import gc
import mmap
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from worker_values import RESULT, array

from interpret_server.engine.workers import protocol_pb2 as pb
from interpret_server.engine.workers.blocks import Writer
from interpret_server.engine.workers.codec import decode_event, encode_event, spans_bytes
from interpret_server.engine.workers.errors import ProtocolError
from interpret_server.engine.workers.memory import available_bytes
from interpret_server.engine.workers.segments import (
    SMALLEST,
    Mapped,
    Reader,
    Segment,
    SegmentPool,
)
from interpret_server.errors import Overloaded


@pytest.fixture
def pool() -> Iterator[SegmentPool]:
    pool = SegmentPool(spare_bytes=4 * SMALLEST)
    yield pool
    pool.close()


@pytest.fixture
def mapped() -> Iterator[Mapped]:
    mapped = Mapped()
    yield mapped
    mapped.close()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:interpret")


def _lend(segment: Segment, mapped: Mapped) -> None:
    mapped.add(segment.id, os.dup(segment.fd), segment.size)
    segment.shared = True
    assert segment.fd == -1


def test_both_sides_see_the_same_bytes(pool: SegmentPool, mapped: Mapped) -> None:
    segment = pool.acquire(100_000)
    _lend(segment, mapped)
    segment.view[70_000:70_005] = b"hello"
    assert bytes(mapped.view(segment.id, 70_000, 5)) == b"hello"
    mapped.whole(segment.id)[:3] = b"bye"
    assert bytes(segment.view[:3]) == b"bye"
    assert mapped.size(segment.id) == segment.size == len(segment.view)


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        (0, SMALLEST),
        (1, SMALLEST),
        (SMALLEST, SMALLEST),
        (SMALLEST + 1, 2 * SMALLEST),
        (5_000_000, 1 << 23),
    ],
)
def test_sizes_are_powers_of_two(pool: SegmentPool, asked: int, size: int) -> None:
    assert pool.acquire(asked).size == size


def test_the_smallest_free_segment_that_fits_is_used_again(pool: SegmentPool) -> None:
    large, small, other = pool.acquire(SMALLEST + 1), pool.acquire(1), pool.acquire(1)
    assert len({large.id, small.id, other.id}) == 3
    for segment in (large, small):
        assert pool.release(segment) == ()
    assert pool.acquire(10) is small
    assert pool.acquire(10) is large
    assert pool.acquire(10) not in (small, large, other)


def test_no_more_than_the_spare_bytes_are_kept(pool: SegmentPool) -> None:
    first, second, third = (pool.acquire(2 * SMALLEST) for _ in range(3))
    assert (pool.used_bytes, pool.free_bytes) == (6 * SMALLEST, 0)
    first.shared = second.shared = True
    assert pool.release(first) == pool.release(second) == ()
    assert pool.release(third) == (first.id,)
    assert (pool.used_bytes, pool.free_bytes) == (0, 4 * SMALLEST)
    huge = pool.acquire(8 * SMALLEST)
    assert pool.release(huge) == (second.id,)  # the others were never shared
    assert pool.free_bytes == 0


def test_a_segment_that_is_released_twice_is_free_once(pool: SegmentPool) -> None:
    segment = pool.acquire(1)
    pool.release(segment)
    pool.release(segment)
    assert pool.free_bytes == mmap.PAGESIZE  # all that was asked for is one byte
    assert pool.acquire(1) is not pool.acquire(1)


@pytest.mark.parametrize("size", [1 << 44, 1 << 50, 1 << 80])
def test_more_than_there_is_memory_for_is_refused(pool: SegmentPool, size: int) -> None:
    before = _descriptors()
    with pytest.raises(Overloaded, match="memory"):
        pool.acquire(size)
    assert (_descriptors(), pool.used_bytes) == (before, 0)


def test_half_of_the_memory_that_is_left_may_go_into_one_segment(
    pool: SegmentPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 4 << 20
    monkeypatch.setattr(
        "interpret_server.engine.workers.segments.available_bytes", lambda: left, raising=True
    )
    segment = pool.acquire(2 << 20)
    pool.release(segment)
    with pytest.raises(Overloaded):
        pool.acquire((2 << 20) + 1)
    left = 0
    with pytest.raises(Overloaded):
        pool.acquire((2 << 20) + 1)
    assert pool.acquire(1 << 20)  # so little is not worth asking


def test_memory_is_what_the_machine_and_the_container_leave(tmp_path: Path) -> None:
    system, group = tmp_path / "meminfo", tmp_path / "group"
    assert available_bytes(system, group) is None
    system.write_text("MemTotal:  9000 kB\nMemAvailable:    700 kB\nHugePages_Total:  0\n\n")
    assert available_bytes(system, group) == 700 * 1024
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    (group / "memory.stat").write_text("anon 1000\nfile 900000\nshmem 500\n")
    assert available_bytes(system, group) == 700 * 1024
    (group / "memory.max").write_text("2000\n")
    assert available_bytes(system, group) == 500
    (group / "memory.max").write_text("1200\n")
    assert available_bytes(system, group) == 0


def test_this_machine_says_how_much_memory_is_left() -> None:
    left = available_bytes()
    assert left is not None
    assert 1 << 20 < left < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_running_out_of_pages_is_an_error_and_no_fault(
    pool: SegmentPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Segment, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Segment, "allocate", full)
    before = _descriptors(), _mappings()
    with pytest.raises(Overloaded):
        pool.acquire(1)
    assert (_descriptors(), _mappings()) == before
    assert pool.used_bytes == 0


def test_pages_are_allocated_on_kernels_without_populate(
    pool: SegmentPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interpret_server.engine.workers.mapping._POPULATE_WRITE", 9999)
    segment = pool.acquire(1)
    assert os.stat(segment.fd).st_blocks * 512 == SMALLEST
    segment.shared = True
    pool.release(segment)
    assert pool.acquire(SMALLEST) is segment


def test_a_segment_can_be_made_where_the_kernel_knows_no_executable_seal(
    pool: SegmentPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interpret_server.engine.workers.segments._NOT_EXECUTABLE", 1 << 20)
    assert pool.acquire(1).size == SMALLEST


def test_nobody_can_change_the_size_of_a_segment(pool: SegmentPool) -> None:
    descriptor = pool.acquire(1).fd
    for size in (0, SMALLEST // 2, 2 * SMALLEST):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


_HOLE = """
import ctypes, sys
from interpret_server.engine.workers.segments import Segment
segment = Segment(1, 1 << 20)
segment.allocate(1 << 20)
segment.view[:] = b"x" * (1 << 20)
punch = ctypes.CDLL(None, use_errno=True).fallocate
punch.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
assert punch(segment.fd, 3, 0, 1 << 20) == 0
sys.exit(any(bytes(segment.view)))
"""


def test_a_hole_that_a_worker_punches_reads_as_zeros() -> None:
    done = subprocess.run([sys.executable, "-c", _HOLE], check=False)
    assert done.returncode == 0, signal.strsignal(-done.returncode)


def test_a_worker_takes_only_sealed_files_of_the_size_that_was_said(mapped: Mapped) -> None:
    before = _descriptors()
    unsealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, SMALLEST)
    with pytest.raises(ProtocolError, match="shrink"):
        mapped.add(1, unsealed, SMALLEST)
    reading, writing = os.pipe()
    os.close(writing)
    for size in (0, SMALLEST):
        with pytest.raises(ProtocolError):
            mapped.add(1, os.dup(reading), size)
    os.close(reading)
    segment = Segment(1, SMALLEST)
    for size in (SMALLEST - 1, SMALLEST + 1, 0, 1 << 70):
        with pytest.raises(ProtocolError, match="bytes"):
            mapped.add(1, os.dup(segment.fd), size)
    mapped.add(1, os.dup(segment.fd), SMALLEST)
    with pytest.raises(ProtocolError, match="already"):
        mapped.add(1, os.dup(segment.fd), SMALLEST)
    segment.close()
    mapped.close()
    assert _descriptors() == before


@pytest.mark.parametrize(
    ("identifier", "offset", "length"),
    [(1, SMALLEST, 1), (1, 0, SMALLEST + 1), (1, 2**64 - 1, 2), (1, -1, 1), (1, 5, -1), (2, 0, 1)],
)
def test_a_span_outside_its_segment_is_refused(
    mapped: Mapped, identifier: int, offset: int, length: int
) -> None:
    segment = Segment(1, SMALLEST)
    _lend(segment, mapped)
    with pytest.raises(ProtocolError):
        mapped.view(identifier, offset, length)
    if min(offset, length) >= 0:
        block = pb.Block(span=pb.Span(segment=identifier, offset=offset, length=length))
        with pytest.raises(ProtocolError):
            mapped.block(block)
        with pytest.raises(ProtocolError):
            Reader({1: segment})(block)
    segment.close()


def test_a_span_at_the_very_end_is_fine(mapped: Mapped) -> None:
    segment = Segment(1, SMALLEST)
    _lend(segment, mapped)
    for offset, length in ((0, SMALLEST), (SMALLEST, 0), (SMALLEST - 1, 1)):
        assert len(mapped.view(1, offset, length)) == length
    segment.close()


def test_a_segment_that_was_dropped_is_not_known(pool: SegmentPool, mapped: Mapped) -> None:
    segment = pool.acquire(1)
    _lend(segment, mapped)
    kept = mapped.view(segment.id, 0, 5)
    mapped.drop(segment.id)
    mapped.drop(segment.id)
    for ask in (mapped.size, mapped.whole):
        with pytest.raises(ProtocolError, match="not known"):
            ask(segment.id)
    segment.view[:5] = b"still"
    assert bytes(kept) == b"still"


def test_a_reader_copies_no_more_than_was_lent(pool: SegmentPool) -> None:
    segment = pool.acquire(SMALLEST)
    read = Reader({segment.id: segment})
    block = pb.Block(span=pb.Span(segment=segment.id, length=SMALLEST // 2))
    first = read(block)
    segment.view[:1] = b"x"
    assert first == bytes(SMALLEST // 2)
    read(block)
    with pytest.raises(ProtocolError, match="more bytes"):
        read(block)
    assert read(pb.Block(inline=b"abc")) == b"abc"


@pytest.mark.parametrize("size", [100_000, 8 << 20])
def test_what_was_read_does_not_change_any_more(pool: SegmentPool, size: int) -> None:
    segment = pool.acquire(size)
    segment.view[:size] = b"a" * size
    copy = Reader({segment.id: segment})(pb.Block(span=pb.Span(segment=segment.id, length=size)))
    segment.view[:size] = b"b" * size
    assert copy == b"a" * size
    with pytest.raises(TypeError):
        memoryview(copy)[0] = 0


def test_a_reader_and_a_writer_outlive_their_segment(pool: SegmentPool) -> None:
    segment = pool.acquire(SMALLEST)
    read, write = Reader({segment.id: segment}), Writer(segment.view, segment.id)
    pool.close()
    assert read(write(b"x" * SMALLEST)) == b"x" * SMALLEST
    with pytest.raises(ProtocolError, match="not lent"):
        Reader({segment.id: segment})(pb.Block(span=pb.Span(segment=segment.id)))


def test_a_result_goes_through_shared_memory(pool: SegmentPool, mapped: Mapped) -> None:
    result = dataclasses.replace(RESULT, tensors={"attributions": array((100, 100))})
    segment = pool.acquire(spans_bytes(result))
    _lend(segment, mapped)
    message = encode_event(result, Writer(mapped.whole(segment.id), segment.id))
    assert decode_event(message, Reader({segment.id: segment})) == result


def test_damaged_spans_are_refused_or_mean_something(pool: SegmentPool) -> None:
    result = dataclasses.replace(RESULT, tensors={"attributions": array((100, 100))})
    segment = pool.acquire(spans_bytes(result))
    whole = encode_event(result, Writer(segment.view, segment.id)).SerializeToString()
    span = pb.Span(segment=segment.id, length=40_000).SerializeToString()
    start, chance, refused = whole.index(span), random.Random(0), 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[start + chance.randrange(len(span))] = chance.randrange(256)
        try:
            decode_event(pb.Event.FromString(bytes(damaged)), Reader({segment.id: segment}))
        except (ProtocolError, DecodeError):
            refused += 1
    assert refused > 900


def test_nothing_is_left_of_segments_that_are_closed() -> None:
    gc.collect()
    before = _descriptors(), _mappings()
    pool, mapped = SegmentPool(spare_bytes=1 << 20), Mapped()
    chance, used = random.Random(0), []
    for _ in range(200):
        segment = pool.acquire(chance.randrange(1 << 20))
        if not segment.shared:
            _lend(segment, mapped)
        used.append(segment)
        if len(used) > 5:
            for identifier in pool.release(used.pop(chance.randrange(len(used)))):
                mapped.drop(identifier)
    assert _mappings() - before[1] <= 2 * (len(used) + (1 << 20) // SMALLEST)
    pool.close()
    mapped.close()
    assert (_descriptors(), _mappings()) == before


def test_a_mapping_goes_with_the_last_view_of_it() -> None:
    before = _mappings()
    pool = SegmentPool()
    segment = pool.acquire(1)
    view = segment.view[5:10]
    pool.close()
    assert _mappings() == before + 1
    assert bytes(view) == bytes(5)
    del view, segment
    gc.collect()
    assert _mappings() == before


def test_a_mapping_that_fails_leaves_no_descriptor(
    mapped: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = Segment(1, SMALLEST)
    before = _descriptors()
    monkeypatch.setattr("interpret_server.engine.workers.mapping.mmap.MAP_SHARED", 0)  # EINVAL
    with pytest.raises(Overloaded):
        SegmentPool().acquire(1)
    with pytest.raises(ProtocolError, match="cannot be mapped"):
        mapped.add(1, os.dup(segment.fd), SMALLEST)
    assert _descriptors() == before
    segment.close()


def test_lent_segments_take_no_descriptors(mapped: Mapped) -> None:
    before = _descriptors()
    pool = SegmentPool()
    for _ in range(100):
        _lend(pool.acquire(1), mapped)
    assert _descriptors() == before
    pool.close()
