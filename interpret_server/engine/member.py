"""One caller's place in a group of calls that run together."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import Cancelled, DeadlineExceeded, InterpretError
from .api import RowWarning
from .mailbox import Mailbox
from .request import Request


@dataclass(frozen=True)
class Outcome:
    """What a plugin computed for one call; tensors are on the CPU.

    Args:
        tensors: result fields by name, `(N, ...)`.
        predicted: the classes that were aimed at, where the call named no target.
        warnings: about rows of this call.
        queue_seconds, run_seconds: waiting for the device and holding it.
        batch_rows: rows of the largest batch in which rows of the call ran.
    """

    tensors: Mapping[str, Tensor]
    predicted: tuple[int, ...]
    warnings: tuple[RowWarning, ...]
    queue_seconds: float
    run_seconds: float
    batch_rows: int


@dataclass(eq=False)
class Member:
    """A call between its admission and its outcome.

    Args:
        request: what to compute.
        mailbox: where its caller listens.
        deadline: in seconds of `time.monotonic`, or None.
        submitted: when it was admitted.
        cancelled: the caller has gone.
    """

    request: Request
    mailbox: Mailbox[Outcome]
    deadline: float | None = None
    submitted: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def waiting(self) -> bool:
        """Whether somebody still wants the outcome."""
        return not (self.cancelled or self.mailbox.settled or self.late())

    def settle(self, outcome: Outcome | InterpretError) -> None:
        """Tell the caller, once."""
        self.mailbox.settle(outcome)


def why_nobody_waits(members: list[Member]) -> InterpretError:
    """The error for work that none of its callers wants any more."""
    if members and all(member.late() for member in members):
        return DeadlineExceeded("the deadline passed before the answer was ready")
    return Cancelled("the call was cancelled")
