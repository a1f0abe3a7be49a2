"""Notices a process that computes although nobody asked it to."""

import os
import time
from pathlib import Path

_SHARE = 0.1  # of one core; an idle worker takes a thousandth
_TICKS = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM = 11, 12  # of /proc/PID/stat, after the name


class Idleness:
    """How a process spends the time in which it has nothing to do.

    A model may have started a thread that goes on after its answer.

    Args:
        seconds: of idleness after which it is judged.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: tuple[float, float] | None = None

    def wasted(self, process_id: int | None, *, idle: bool) -> bool:
        """Whether it has had nothing to do all the time, and computed nevertheless.

        Args:
            process_id: of the process, once it is known.
            idle: whether it had nothing to do since the last time this was asked.
        """
        now, spent = time.monotonic(), None if process_id is None else computed(process_id)
        if not idle or spent is None:
            self._since = None
        elif self._since is None:
            self._since = now, spent
        elif (passed := now - self._since[0]) >= self._seconds:
            used, self._since = spent - self._since[1], (now, spent)
            return used > _SHARE * passed
        return False


def computed(process_id: int) -> float | None:
    """Seconds that a process has computed in all its threads; None where it has ended."""
    try:
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS
