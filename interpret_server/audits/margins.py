"""Examples on a boundary, moved as little as needed for the original file to confirm them.

An attack for the smallest change ends on the boundary of the served form, where the file itself,
run by another runtime, may still answer the label. Such a point is moved on along the line from its
input.

The rule: of the point itself and those at 1 + 1e-5, 1e-4, 1e-3 and 1e-2 times its change (within
the bounds), the nearest is kept whose margin is *clear*: the original's score of its decision
exceeds that of the label by more than 1e-5 of the largest score, which is more than runtimes and
batch sizes of float32 networks differ by. Where none is clear, the nearest that the original
confirms at all; files that name the winner alone show no margin, and there that is the rule.
"""

from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from .calls import Answers
from .records import Rows

FACTORS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)
_CLEAR = 1e-5  # of the largest score

Asking = Callable[[Rows], Awaitable[Answers]]


async def beyond(
    ask: Asking, inputs: Rows, points: Rows, labels: NDArray[np.int64], bounds: tuple[float, float]
) -> Rows:
    """The points that are kept, `(N, *input_shape)`; where none is confirmed, those given.

    Args:
        ask: the original file.
        inputs: `(N, *input_shape)`.
        points: of the same shape, as an attack returned them.
        labels: `(N,)`.
        bounds: of the model's input.
    """
    kept, found = points.copy(), np.zeros(len(points), bool)
    left = np.arange(len(points))
    for factor in FACTORS:
        if not len(left):
            break
        tried = _further(inputs[left], points[left], factor, bounds)
        answers = await ask(tried)
        confirmed, clear = answers.leave(labels[left]), is_clear(answers, labels[left])
        fresh = confirmed & (clear | ~found[left])
        kept[left[fresh]] = tried[fresh]
        found[left] |= confirmed
        left = left[~clear]
    return kept


def is_clear(answers: Answers, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a file answers another class than the label by more than runtimes differ by."""
    left = answers.leave(labels)
    if answers.scores is not None:
        left &= answers.margins(labels) > _CLEAR * np.abs(answers.scores).max(1)
    return left


def _further(inputs: Rows, points: Rows, factor: float, bounds: tuple[float, float]) -> Rows:
    if not factor:
        return points
    start = inputs.astype(np.float64)
    moved = start + (1 + factor) * (points.astype(np.float64) - start)
    lower, upper = np.float32(bounds[0]), np.float32(bounds[1])
    return np.clip(moved.astype(np.float32), lower, upper)
