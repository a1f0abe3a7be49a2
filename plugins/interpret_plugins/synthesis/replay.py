"""Where chains begin: at the inputs, at random, or in a replay buffer of earlier states."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interpret_server.noise import mix, normal_rows, uniform_rows
from interpret_server.plugin import Batch, InvalidRequest

from .centred import Centred

if TYPE_CHECKING:
    from .langevin import LangevinParams


def chain_seeds(seeds: tuple[int, ...], chains: int) -> tuple[int, ...]:
    """A seed for every chain of every row, row by row; the first chain's is the row's own."""
    return tuple(mix(seed, chain) if chain else seed for seed in seeds for chain in range(chains))


@dataclass
class Starts:
    """The starts of each round, and the replay buffer (Du & Mordatch 2019, "Implicit generation and
    modeling with energy-based models"; its use with a classifier: Grathwohl et al. 2020).

    Attributes:
        buffer: `(N, size, *shape)` in input units, or None.
    """

    batch: Batch
    params: "LangevinParams"
    space: Centred
    buffer: Tensor | None = None
    _places: Tensor | None = field(default=None, init=False)

    @classmethod
    def of(cls, batch: Batch, params: "LangevinParams", space: Centred) -> "Starts":
        """The starts of a call.

        Raises:
            InvalidRequest: the buffer has another shape, or holds fewer states than there are
                chains.
        """
        made = cls(batch, params, space)
        given, field_ = batch.tensors.get("buffer"), "tensors.buffer"
        if given is not None:
            if given.dim() < 2 or given.shape[2:] != batch.inputs.shape[1:]:
                raise InvalidRequest.field(
                    field_,
                    f"each row holds states of shape {list(batch.inputs.shape[1:])}, not "
                    f"{list(given.shape[2:])}",
                )
            made.buffer = given.to(batch.inputs)
        elif params.buffer_size:
            field_ = "params.buffer_size"
            first = params.rounds * (params.steps + 1)
            states = [made._fresh(first + place) for place in range(params.buffer_size)]
            made.buffer = space.to_input(torch.stack(states, 1))
        if made.buffer is not None and made.buffer.shape[1] < params.chains:
            raise InvalidRequest.field(
                field_,
                f"the buffer holds {made.buffer.shape[1]} states, and each of the "
                f"{params.chains} chains takes one of its own",
            )
        return made

    def begin(self, number: int) -> Tensor:
        """Where the chains of a round start, `(N * chains, *shape)` in z."""
        count, total = self.params.chains, self.params.rounds * self.params.steps
        fresh = self._fresh(total + number, chains=count)
        if self.buffer is None:
            return fresh
        seeds, size = self.batch.seeds, self.buffer.shape[1]
        like = self.buffer.new_empty(len(seeds), size)
        order = uniform_rows(seeds, -(total + 2 * number + 1), like).argsort(1)
        self._places = order[:, :count]
        draw = uniform_rows(seeds, -(total + 2 * number + 2), like)[:, :count]
        rows = torch.arange(len(seeds), device=like.device)[:, None]
        stored = self.space.from_input(self.buffer[rows, self._places].flatten(0, 1))
        again = (draw < self.params.restart).flatten()
        return torch.where(again.view(-1, *(1,) * (stored.dim() - 1)), fresh, stored)

    def end(self, z: Tensor) -> None:
        """Put the last states of a round back where they were taken from."""
        if self.buffer is None or self._places is None:
            return
        rows = torch.arange(len(self.buffer), device=self.buffer.device)[:, None]
        states = self.space.to_input(z).view(*self._places.shape, *z.shape[1:])
        self.buffer = self.buffer.index_put((rows, self._places), states)

    def _fresh(self, number: int, chains: int = 1) -> Tensor:
        params, space = self.params, self.space
        rows = torch.arange(len(self.batch), device=self.batch.inputs.device)
        z = space.from_input(self.batch.inputs)[rows.repeat_interleave(chains)]
        seeds = chain_seeds(self.batch.seeds, chains)
        if params.start == "uniform":
            share = uniform_rows(seeds, -1 - number - 2 * params.rounds * (params.steps + 1), z)
            lower = -0.5 if space.lower is None else space.lower
            upper = 0.5 if space.upper is None else space.upper
            z = lower + share * (upper - lower)
        if params.start_noise:
            z = z + params.start_noise * normal_rows(seeds, number, z)
        return z
