"""How much memory is left, so that asking for more is refused before the system kills somebody."""

from pathlib import Path

_SYSTEM = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def available_bytes(system: Path = _SYSTEM, group: Path = _GROUP) -> int | None:
    """Bytes that can be allocated on this machine and in this container; None if that is unknown.

    Args:
        system: a `meminfo` file.
        group: the folder of the control group (version 2) that limits this process.
    """
    left = [_left_of_system(system), _left_of_group(group)]
    return min((size for size in left if size is not None), default=None)


def _left_of_system(path: Path) -> int | None:
    kilobytes = _table(path).get("MemAvailable:")
    return None if kilobytes is None else 1024 * kilobytes


def _left_of_group(folder: Path) -> int | None:
    try:
        limit = int((folder / "memory.max").read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    used = _table(folder / "memory.stat")
    return max(0, limit - used.get("anon", 0) - used.get("shmem", 0))  # the rest can be reclaimed


def _table(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {words[0]: int(words[1]) for line in lines if len(words := line.split()) > 1}
