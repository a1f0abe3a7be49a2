"""Calls whose inputs are rows of a data set on the server."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..engine.api import MAX_ROWS, Call
from ..errors import InvalidRequest

FIELD = "inputs.dataset"


@dataclass(frozen=True)
class StoredRows:
    """Some rows of a data set.

    Args:
        name: path below the data root, with or without its ending.
        start: the first row.
        count: how many; None for all that follow.
        rows: these, in this order, in place of `start` and `count`.
    """

    name: str
    start: int = 0
    count: int | None = None
    rows: tuple[int, ...] = ()

    def of(self, length: int) -> Sequence[int]:
        """The numbers of the rows, in a data set of so many.

        Raises:
            InvalidRequest: there are no such rows, or too many.
        """
        stop = length if self.count is None else self.start + self.count
        count = len(self.rows) or stop - self.start
        if count > MAX_ROWS:
            raise _wrong_rows(f"{count} rows in one call; ask for at most {MAX_ROWS}")
        if count <= 0:
            raise _wrong_rows(f"{self.name} has {length} rows, and none from row {self.start} on")
        found = self.rows or range(self.start, stop)
        wrong = next((row for row in found if not 0 <= row < length), None)
        if wrong is not None:
            raise _wrong_rows(f"{self.name} has {length} rows, and no row {wrong}")
        return found


@dataclass(frozen=True, kw_only=True)
class StoredCall(Call):
    """A call without inputs as yet: they are the rows of a data set.

    Args:
        dataset: which.
    """

    dataset: StoredRows


def _wrong_rows(description: str) -> InvalidRequest:
    return InvalidRequest.field(f"{FIELD}.rows", description)
