"""How large a file, its graph and what importing it computes may be."""

import time
from dataclasses import dataclass

from ...errors import InvalidModel

_MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Upper bounds of one import.

    Args:
        file: bytes of the file itself; protobuf takes no more than 2 GiB.
        data: bytes of the data in the files beside it.
        nodes: of the graph, its subgraphs and functions, and again once functions are expanded.
        depth: of branches, loops and functions inside each other.
        elements: of one attribute that lists numbers.
        seconds: from opening the file to the finished graph.
    """

    file: int = 2 * 2**30
    data: int = 16 * 2**30
    nodes: int = 100_000
    depth: int = 32
    elements: int = 2**24
    seconds: float = 120.0


LIMITS = Limits()


class Deadline:
    """A point in time after which an import stops.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Do nothing before that time.

        Raises:
            InvalidModel: it is past.
        """
        if time.monotonic() > self._end:
            raise InvalidModel(
                f"model: importing the file takes longer than the {self.seconds:g} seconds that "
                "are allowed"
            )


def exceeds(what: str, size: int, limit: int) -> InvalidModel:
    """The refusal of `size` bytes."""
    return InvalidModel(
        f"model: {what} {'is' if what.startswith('the file') else 'are'} {size / _MIB:.0f} MiB; "
        f"at most {limit / _MIB:.0f} MiB are accepted"
    )
