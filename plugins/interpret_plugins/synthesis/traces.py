"""What is kept of running chains: moments, the last states, and traces of a few quantities."""

from collections import deque

import torch
from torch import Tensor

from interpret_server.noise import normal_rows

from .chains import Chains
from .diagnostics import FEWEST, LARGEST, effective_sample_size, r_hat

_QUANTITIES = 16  # values of z, or random projections of it
_LONGEST = 4096  # draws of a chain that are kept


def by_row(values: Tensor, chains: int) -> Tensor:
    """`(N * chains, ...)` as `(N, chains, ...)`."""
    return values.view(-1, chains, *values.shape[1:])


class Moments:
    """Running mean and variance of M chains (Welford 1962)."""

    def __init__(self, like: Tensor) -> None:
        self.count = 0
        self.mean, self.squares = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, value: Tensor) -> None:
        """Count a state of every chain."""
        self.count += 1
        difference = value - self.mean
        self.mean = self.mean + difference / self.count
        self.squares = self.squares + difference * (value - self.mean)

    def of_rows(self, chains: int) -> tuple[Tensor, Tensor]:
        """Mean and variance over all states of each row's chains, `(N, *shape)`."""
        means = by_row(self.mean, chains)
        within = by_row(self.squares / self.count, chains).mean(1)
        return means.mean(1), within + means.var(1, correction=0)


class Recent:
    """The last states of M chains that were counted.

    Args:
        keep: how many of each chain; 0 for none.
    """

    def __init__(self, keep: int) -> None:
        self._states: deque[Tensor] = deque(maxlen=keep)

    def add(self, z: Tensor) -> None:
        """Count a state of every chain."""
        self._states.append(z)

    def of_rows(self, chains: int) -> Tensor:
        """`(N, chains, kept, *shape)`, oldest first."""
        return by_row(torch.stack(list(self._states), 1), chains)


class Trace:
    """The energy's terms and some values of z, over the states that count.

    Args:
        like: `(M, *shape)`, states.
        draws: how many states of each chain will be counted in a round.
        rounds: each round's chains are chains of their own.
    """

    def __init__(self, like: Tensor, draws: int, rounds: int) -> None:
        size = like[0].numel() if len(like) else 0
        self._directions: Tensor | None = None
        if size > _QUANTITIES:
            seeds = tuple(range(_QUANTITIES))  # the same directions in every call
            directions = normal_rows(seeds, 0, like.new_empty(_QUANTITIES, size))
            self._directions = directions / directions.norm(dim=1, keepdim=True)
        self._every = max(1, -(-draws * rounds // _LONGEST))
        self._draws, self._rounds, self._seen = draws, rounds, 0
        self._values: list[Tensor] = []

    def add(self, chains: Chains) -> None:
        """Count a state of every chain."""
        kept = self._seen % self._draws % self._every == self._every - 1
        self._seen += 1
        if not kept:
            return
        flat = chains.z.flatten(1)
        found = flat if self._directions is None else flat @ self._directions.T
        at = chains.evaluation
        terms = [at.condition, at.log_prior]
        columns = [term[:, None] for term in terms if term is not None]
        self._values.append(torch.cat([*columns, found], 1).double())

    def diagnostics(self, chains: int) -> tuple[Tensor | None, Tensor | None]:
        """Smallest effective sample size and largest R-hat of each row, `(N,)`.

        None where fewer than 4 states of a chain were kept.
        """
        if len(self._values) // self._rounds < FEWEST:
            return None, None
        values = torch.stack(self._values)
        split = values.view(self._rounds, -1, values.shape[1] // chains, chains, values.shape[2])
        traces = split.permute(2, 4, 0, 3, 1).flatten(2, 3)  # N, quantities, all chains, draws
        moving = traces.flatten(2).var(2) > 0
        still = ~moving.any(1)
        # what is constant by nature (no target, say) tells nothing, unless all is
        size = torch.where(moving, effective_sample_size(traces), torch.inf).amin(1)
        worst = torch.where(moving, r_hat(traces), 0.0).amax(1)
        return torch.where(still, 1.0, size), torch.where(still, LARGEST, worst)
