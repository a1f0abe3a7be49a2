"""Several inputs as one row, and back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InvalidRequest


@dataclass(frozen=True)
class Part:
    """One of several tensors that a row holds.

    Args:
        name: of the file's input.
        sizes: of one row; None for the free size, at most once.
        fixed: it is given and never changed: a mask, lengths, token indices.
    """

    name: str
    sizes: tuple[int | None, ...]
    fixed: bool = False

    def shape(self, free: int) -> tuple[int, ...]:
        """The row's shape at a free size."""
        return tuple(free if size is None else size for size in self.sizes)

    def count(self) -> tuple[int, int]:
        """`(a, b)`: the part has `a * free + b` values in a row."""
        product = 1
        for size in self.sizes:
            product *= 1 if size is None else size
        return (product, 0) if None in self.sizes else (0, product)


class Packing:
    """The order of several parts in a flat row `(N, total)`.

    Args:
        parts: of which all free sizes are one and the same.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        counts = [part.count() for part in parts]
        self._slope = sum(slope for slope, _ in counts)
        self._base = sum(base for _, base in counts)

    @property
    def sizes(self) -> tuple[int | None]:
        """Of a flat row: None where it varies."""
        return (None,) if self._slope else (self._base,)

    def free(self, total: int) -> int:
        """The free size of a row of `total` values; 0 where nothing is free.

        Raises:
            InvalidRequest: no row has that many values.
        """
        rest = total - self._base
        if not self._slope and not rest:
            return 0
        if not self._slope or rest <= 0 or rest % self._slope:
            names = ", ".join(part.name for part in self.parts)
            raise InvalidRequest.field("inputs", f"no row of {names} has {total} values")
        return rest // self._slope

    def pack(self, values: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Tensors `(N, *shape)`, one per part, to `(N, total)`."""
        flat = [value.reshape(len(value), math.prod(value.shape[1:])).to(dtype) for value in values]
        return torch.cat(flat, 1)

    def unpack(self, rows: Tensor) -> list[Tensor]:
        """`(N, total)` to tensors `(N, *shape)`, one per part."""
        free = self.free(rows.shape[1])
        values, start = [], 0
        for part in self.parts:
            slope, base = part.count()
            end = start + slope * free + base
            values.append(rows[:, start:end].reshape(len(rows), *part.shape(free)))
            start = end
        return values


class Slot(nn.Module):
    """One input of the file, made from a row's parts.

    Args:
        part: the position of the part that it is; None for a constant.
        dtype: that the file takes.
        mean: subtracted first, or None.
        std: divided by next, or None.
        sizes: of a constant's row; None for the free size.
        value: that fills a constant.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        part: int | None,
        dtype: torch.dtype,
        *,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        sizes: tuple[int | None, ...] = (),
        value: float = 0.0,
    ) -> None:
        super().__init__()
        self.part, self.dtype, self.sizes, self.value = part, dtype, sizes, value
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, parts: Sequence[Tensor], free: int) -> Tensor:
        if self.part is None:
            rows = parts[0]
            shape = (len(rows), *(free if size is None else size for size in self.sizes))
            return torch.full(shape, self.value, dtype=self.dtype, device=rows.device)
        value = parts[self.part]
        if not self.dtype.is_floating_point:
            return value.detach().round().to(self.dtype)
        value = value if self.mean is None else value - self.mean
        value = value if self.std is None else value / self.std
        return value.to(self.dtype)


class Unpack(nn.Module):
    """A row to the inputs of a file: its parts, converted, and its constants.

    Args:
        packing: of `(N, total)` rows; None where the row is the only part itself.
        slots: one per value to make.
        free_axis: of the only part, where there is no packing and a size is free.
    """

    def __init__(
        self, packing: Packing | None, slots: Sequence[Slot], free_axis: int | None = None
    ) -> None:
        super().__init__()
        self.packing, self.free_axis = packing, free_axis
        self.slots = nn.ModuleList(slots)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """`(N, ...)` to one tensor per slot."""
        if self.packing is None:
            parts, free = [x], 0 if self.free_axis is None else x.shape[self.free_axis + 1]
        else:
            parts, free = self.packing.unpack(x), self.packing.free(x.shape[1])
        return tuple(slot(parts, free) for slot in self.slots)


class Unpacked(nn.Module):
    """A module of several inputs as one of packed rows."""

    def __init__(self, unpack: Unpack, body: nn.Module) -> None:
        super().__init__()
        self.unpack, self.body = unpack, body

    def forward(self, x: Tensor) -> object:
        return self.body(*self.unpack(x))
