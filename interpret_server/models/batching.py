"""Any number of rows through a network that was exported for one batch size."""

import torch
from torch import Tensor, nn


class InGroups(nn.Module):
    """Runs `body` on `size` rows at a time; a short last group is filled up by repetition.

    Args:
        body: from `(size, ...)` to a tensor, or a tuple of tensors, of `size` rows.
        size: the batch size that `body` takes.
    """

    def __init__(self, body: nn.Module, size: int) -> None:
        super().__init__()
        self.body, self.size = body, size

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`(N, ...)` to what `body` gives, with N rows."""
        single = True
        groups: list[tuple[Tensor, ...]] = []
        for rows in torch.split(x, self.size) if len(x) else (x,):
            outputs = self.body(self._filled(rows))
            single = isinstance(outputs, Tensor)
            values = (outputs,) if single else tuple(outputs)
            groups.append(tuple(self._rows(value)[: len(rows)] for value in values))
        joined = tuple(torch.cat(values) for values in zip(*groups, strict=True))
        return joined[0] if single else joined

    def _filled(self, rows: Tensor) -> Tensor:
        missing = self.size - len(rows)
        if not missing:
            return rows
        last = rows[-1:] if len(rows) else rows.new_zeros(1, *rows.shape[1:])
        return torch.cat([rows, last.expand(missing, *rows.shape[1:])])

    def _rows(self, value: Tensor) -> Tensor:
        """A file for one row may have dropped its batch axis."""
        whole = value.dim() and len(value) == self.size
        return value if whole or self.size > 1 else value[None]
