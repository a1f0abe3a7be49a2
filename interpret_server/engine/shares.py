"""How much of the device each client has had, where several want it.

Start-time fair queueing (Goyal, Vin and Cheng, "Start-time fair queuing", SIGCOMM 1996): a client
pays for the seconds that its rows take, and the one that has paid least is next. One that comes
anew begins where the others are, so that nobody saves up turns and nobody pays for an idle past.
"""

from collections import Counter
from collections.abc import Mapping

_DRIFT = 1 / 64  # so that a stream of new clients cannot hold up an old one for ever
_REMEMBERED = 1024  # clients without a call


class Shares:
    """Virtual device seconds by client; they mean something in one busy period only."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._calls: Counter[str] = Counter()
        self._clock = 0.0

    def enter(self, client: str) -> None:
        """Count a call from its admission on."""
        if not self._calls[client]:
            self._used[client] = max(self._used.get(client, 0.0), self._clock)
        self._calls[client] += 1

    def leave(self, client: str) -> None:
        """Count it no more."""
        self._calls[client] -= 1
        if self._calls[client]:
            return
        del self._calls[client]
        if self._used[client] <= self._clock or len(self._used) > _REMEMBERED:
            del self._used[client]
        if not self._calls:  # idle: the next busy period starts from nothing
            self._used.clear()
            self._clock = 0.0

    def calls(self, client: str) -> int:
        """How many of its calls are not finished."""
        return self._calls[client]

    def used(self, client: str) -> float:
        """Seconds paid by a client that has a call."""
        return self._used[client]

    def least(self, clients: Mapping[str, int]) -> float:
        """Seconds paid by the client of a batch that has paid least."""
        return min(self._used[client] for client in clients)

    def advance(self, clients: Mapping[str, int]) -> None:
        """A batch of these clients begins a turn: whoever comes anew begins here."""
        self._clock = max(self._clock, self.least(clients))

    def charge(self, clients: Mapping[str, int], seconds: float) -> None:
        """Let the clients of a batch pay for a turn, each for its rows."""
        rows = sum(clients.values())
        for client, own in clients.items():
            self._used[client] += seconds * own / rows
        self._clock += seconds * _DRIFT
