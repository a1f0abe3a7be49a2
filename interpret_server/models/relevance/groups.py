"""Rows through a graph that was exported for one batch size."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..batching import InGroups
from ..classifier import Classifier
from ..targets import Targets

Results = tuple[Tensor | None, ...]


def in_groups(
    model: Classifier, x: Tensor, targets: Targets, run: Callable[[Tensor, Targets, int], Results]
) -> Results:
    """What `run` gives for all rows, with as many at a time as the network's graph takes.

    Args:
        model: whose graph `run` runs.
        x: `(N, *input_shape)`.
        targets: of the N rows.
        run: takes rows, their targets and how many of the rows are asked for: a short last group is
            filled up. It gives tensors with that many rows, or None.
    """
    body = model.module.body
    if not isinstance(body, InGroups):
        return run(x, targets, len(x))
    parts = []
    for start in range(0, len(x), body.size):
        part = slice(start, start + body.size)
        rows = x[part]
        missing = body.size - len(rows)
        filled = torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows
        parts.append(run(filled, targets.take(part), len(rows)))
    return tuple(
        None if any(value is None for value in values) else torch.cat(values)
        for values in zip(*parts, strict=True)
    )
