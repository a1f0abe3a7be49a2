"""Keeps protobuf from returning the process's freed memory to the system. Imports no torch.

Its C extension calls glibc's `malloc_trim` after every 10,000 blocks that its messages free. Beside
a model that returns the memory of all its batches: allocations of every thread wait for a tenth of
a second, and the next batch faults in a GiB anew. There is no setting for it, so the extension's
entry for that function is pointed at one that does nothing.
"""

import ctypes
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

_FUNCTION = b"malloc_trim"
_LOAD, _DYNAMIC = 1, 2  # types of segments
_STRINGS, _SYMBOLS = 5, 6  # tags of the dynamic section
_TABLES = ((23, 2), (7, 8))  # the same: relocations, and their bytes; of functions, of all else
_RELOCATION, _SYMBOL_BYTES = struct.Struct("<QQq"), 24


def keep_messages_from_trimming() -> bool:
    """Let freed messages trim the heap no more, in this process and those that it forks.

    Returns:
        Whether that was possible: on 64-bit Linux, where the extension has the entry and it can be
        written to. Elsewhere nothing is done.
    """
    if not sys.platform.startswith("linux") or sys.maxsize < 1 << 32:
        return False
    try:
        from google._upb import _message

        library = Path(_message.__file__).resolve()
        entries = list(_entries(library.read_bytes()))
        mapped = _mapped(library)
        base = min(start for start, _, _ in mapped)
        places = [base + entry for entry in entries]
        harmless = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p).value
    except (ImportError, OSError, AttributeError, TypeError, ValueError, struct.error):
        return False
    if not places or not all(_writable(place, mapped) for place in places):
        return False
    for place in places:
        ctypes.c_void_p.from_address(place).value = harmless
    return True


def _entries(elf: bytes) -> Iterator[int]:
    """Where a library keeps the address of the function, counted from its first byte in memory."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64-bit little-endian library")
    (headers,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    segments = [struct.unpack_from("<IIQQQQ", elf, headers + size * n) for n in range(count)]

    def at(address: int) -> int:
        for kind, _, offset, start, _, length in segments:
            if kind == _LOAD and start <= address < start + length:
                return int(offset + address - start)
        raise ValueError("an address outside the file")

    _, _, start, _, _, length = next(item for item in segments if item[0] == _DYNAMIC)
    dynamic = dict(struct.iter_unpack("<qQ", elf[start : start + length]))
    strings, symbols = at(dynamic[_STRINGS]), at(dynamic[_SYMBOLS])
    wanted = _FUNCTION + b"\0"
    for table, bytes_of_it in _TABLES:
        if table not in dynamic:
            continue
        first = at(dynamic[table])
        for place, info, _ in _RELOCATION.iter_unpack(elf[first : first + dynamic[bytes_of_it]]):
            (name,) = struct.unpack_from("<I", elf, symbols + _SYMBOL_BYTES * (info >> 32))
            if elf.startswith(wanted, strings + name):
                yield place


def _mapped(library: Path) -> list[tuple[int, int, str]]:
    """Where a library lies in memory: first and last address of each part, and what is allowed."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    parts = [line for line in lines if len(line) == 6 and line[5] == str(library)]
    return [
        (int(start, 16), int(end, 16), line[1])
        for line in parts
        for start, end in [line[0].split("-")]
    ]


def _writable(place: int, mapped: list[tuple[int, int, str]]) -> bool:
    return any(start <= place < end and "w" in allowed for start, end, allowed in mapped)
