"""What the processes of a server take of the machine (Linux)."""

import re
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Footprint:
    """Of some processes together.

    Args:
        processes: how many.
        pss: bytes, memory that several processes share divided among them.
        private: bytes that would be free if they ended, apart from files.
        threads: how many.
        descriptors: open files, sockets and shared memory.
    """

    processes: int = 0
    pss: int = 0
    private: int = 0
    threads: int = 0
    descriptors: int = 0

    def __add__(self, other: "Footprint") -> "Footprint":
        return Footprint(
            *(mine + others for mine, others in zip(self._all(), other._all(), strict=True))
        )

    def _all(self) -> tuple[int, ...]:
        return self.processes, self.pss, self.private, self.threads, self.descriptors


def generations(pid: int) -> list[list[int]]:
    """A process, its children, their children, and so on."""
    parents: dict[int, int] = {}
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if fields[0] != "Z":
            parents[int(path.parent.name)] = int(fields[1])
    found = [[pid]]
    while children := [child for child, parent in parents.items() if parent in found[-1]]:
        found.append(children)
    return found


def footprint(pid: int) -> Footprint:
    """Of one process; nothing if it has ended."""
    folder = _PROC / str(pid)
    try:
        sizes = {
            name: 1024 * int(size)
            for name, size in re.findall(
                r"^(\w+): +(\d+) kB", (folder / "smaps_rollup").read_text(), re.M
            )
        }
        threads = len(list((folder / "task").iterdir()))
        descriptors = len(list((folder / "fd").iterdir()))
    except FileNotFoundError:
        return Footprint()
    private = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return Footprint(1, sizes["Pss"], private, threads, descriptors)


def whole(pid: int) -> Footprint:
    """Of a process and all its descendants."""
    return sum((footprint(member) for group in generations(pid) for member in group), Footprint())


def by_generation(pid: int) -> list[Footprint]:
    """Of a process, of its children together, and so on."""
    return [sum(map(footprint, group), Footprint()) for group in generations(pid)]
