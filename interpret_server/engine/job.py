"""The job that plugins see: progress, previews and warnings, split among the callers."""

import time
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ..plugin import Job
from ..registry import AnyPlugin
from .api import Preview, Progress, RowWarning
from .arrays import to_array
from .explained import by_input, token_attributions
from .member import Member, why_nobody_waits

PROGRESS_SECONDS = 0.01
PREVIEW_SECONDS = 0.05

Span = tuple[Member, range]


def spans(members: Sequence[Member]) -> list[Span]:
    """Which rows of the joined batch belong to which member."""
    result, start = [], 0
    for member in members:
        result.append((member, range(start, start + member.request.rows)))
        start += member.request.rows
    return result


class EngineJob(Job):
    """One run of a plugin for some callers, perhaps in several chunks of rows.

    Args:
        members: the callers, in the order of their rows.
        offer: passes the device to others that wait and returns when it is this job's turn again.
        held: seconds for which this job has had the device.

    Attributes:
        filled: whether the plugin has asked how many rows to fill a pass with, in this chunk.
    """

    def __init__(
        self, members: Sequence[Member], offer: Callable[[], None], held: Callable[[], float]
    ) -> None:
        seconds = members[0].request.models
        super().__init__({role: second.classifier for role, second in seconds.items()})
        self._members = list(members)
        self._followed = [member for member in members if member.request.call.progress]
        self._spans = spans(members)
        self._offer, self._held = offer, held
        self._viewers = [span for span in self._spans if span[0].request.call.previews]
        self._warnings: list[tuple[str, range | Sequence[int]]] = []
        self._fresh: list[tuple[str, Sequence[int]]] = []
        self._earlier = 0  # steps of the chunks that are done
        self._finished = 0  # steps of this chunk's loops that are done
        self._current = 0  # the step of the running loop, counted from 1
        self._total = 0  # steps of this chunk, as far as known
        self._depth = 0
        self._due = False  # a loop ended without offering the device
        self._rows = range(0)
        self.max_rows = 1
        self._chunks_left = 1
        self._begun = self._longest = 0.0  # of this chunk's steps
        self._reported = self._previewed = float("-inf")

    @property
    def max_rows(self) -> int:
        """Most rows that should go through the model at once."""
        self.filled = True
        return self._max_rows

    @max_rows.setter
    def max_rows(self, rows: int) -> None:
        self._max_rows, self.filled = rows, False

    def begin_chunk(self, rows: range, chunks_left: int, max_rows: int) -> None:
        """Start on some rows; `chunks_left` counts this chunk too."""
        self.max_rows = max_rows
        self._rows, self._chunks_left = rows, chunks_left
        self._finished = self._current = self._total = self._depth = 0
        self._fresh = []
        self._begun, self._longest = self._held(), 0.0

    def end_chunk(self) -> float:
        """Keep what the chunk said, and offer the device if more chunks follow.

        Returns the seconds of the chunk's longest step.
        """
        self._end_step()
        longest = self._longest
        self._earlier += self._total
        self._warnings += self._fresh
        if self._chunks_left > 1:
            self.boundary()
        return longest

    def track(self, total: int) -> Iterator[int]:
        outer = self._depth == 0  # a loop within a loop is observed, but not counted
        self._depth += 1
        try:
            self._refuse_modes()
            if self._due:
                self.boundary()
            self._observe()
            if outer:
                self._total = self._finished + total
            for step in range(total):
                if outer:
                    self._current = self._finished + step + 1
                yield step
                self._refuse_modes()
                if outer:
                    self._report(self._current)
                # After its last step a plugin is about to finish: a round of others' steps would
                # only delay its callers.
                self._due = step + 1 == total
                if not self._due:
                    self.boundary()
            if outer:
                self._finished += total
        finally:
            self._depth -= 1

    def boundary(self) -> None:
        """Let others have the device, and stop if nobody waits for this job any more."""
        self._due = False
        self._end_step()
        self._observe()
        self._offer()
        self._observe()

    def preview(self, **tensors: Tensor | Callable[[], Tensor]) -> None:
        now = time.monotonic()
        if not self._viewers or now - self._previewed < PREVIEW_SECONDS:
            return
        self._previewed = now
        made = {name: item() if callable(item) else item for name, item in tensors.items()}
        for member, rows in self._viewers:
            first, last = max(rows.start, self._rows.start), min(rows.stop, self._rows.stop)
            if first >= last or not member.waiting():
                continue
            part = slice(first - self._rows.start, last - self._rows.start)
            half = member.request.call.half
            mine = by_input(member.request, {name: item[part] for name, item in made.items()})
            mine |= token_attributions(member.request, mine)
            arrays = {name: to_array(item, half=half) for name, item in mine.items()}
            done, total = self._position(self._current)
            member.mailbox.preview(Preview(done, total, arrays))

    def warn(self, rows: Tensor, message: str) -> None:
        if len(rows) != len(self._rows):
            raise ValueError(f"warn: a mask of {len(rows)} rows for {len(self._rows)} rows")
        found = rows.flatten().nonzero().flatten().tolist()
        if found:
            self._fresh.append((message, [self._rows.start + row for row in found]))

    def find(self, name: str) -> AnyPlugin | None:
        return self._members[0].request.methods.get(name)

    def warnings(self, rows: range) -> tuple[RowWarning, ...]:
        """The warnings about some rows, numbered from the first of them."""
        found: dict[str, list[int]] = {}
        for message, about in self._warnings:
            if mine := [row - rows.start for row in about if row in rows]:
                found.setdefault(message, []).extend(mine)
        return tuple(
            RowWarning(message, tuple(sorted(set(about)))) for message, about in found.items()
        )

    def _position(self, done: int) -> tuple[int, int]:
        return self._earlier + done, self._earlier + self._total * self._chunks_left

    def _report(self, done: int) -> None:
        now = time.monotonic()
        often = done < self._total and now - self._reported < PROGRESS_SECONDS
        if often or not self._followed:
            return
        self._reported = now
        progress = Progress(*self._position(done))
        for member in self._followed:
            member.mailbox.progress(progress)

    def _end_step(self) -> None:
        held = self._held()
        self._begun, self._longest = held, max(self._longest, held - self._begun)

    def _observe(self) -> None:
        if not any(member.waiting() for member in self._members):
            raise why_nobody_waits(self._members)

    @staticmethod
    def _refuse_modes() -> None:
        if modes := _get_current_dispatch_mode_stack():
            names = ", ".join(type(mode).__name__ for mode in modes)
            raise RuntimeError(
                f"a step of Job.track began or ended inside {names}; close every ReLU rule and "
                "dispatch mode within the step that opened it"
            )
