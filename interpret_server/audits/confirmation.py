"""The successes that attacks claim, judged by the original file on exactly what was returned."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .calls import Answers
from .margins import beyond
from .plan import Stage, StageKind
from .records import Outcome, Rows, digest_of
from .standing import within

Asking = Callable[[Rows], Awaitable[Answers]]


@dataclass(frozen=True)
class Claim:
    """A claimed success.

    Args:
        example: `(*input_shape)`, what the attack returned; of a smallest change perhaps a point
            just beyond it.
        label: the true class.
        inside: the example lies in the ball and the bounds; the file is asked about no other.
        leaves: the original file answers another class.
        decision, confidence, margin: of the original file; see `Outcome`.
        distances: from the sample, by norm.
    """

    example: Rows
    label: int
    inside: bool = False
    leaves: bool = False
    decision: int = -1
    confidence: float = math.nan
    margin: float = math.nan
    distances: Mapping[str, float] = field(default_factory=dict)

    @property
    def confirmed(self) -> bool:
        """Whether it counts."""
        return self.inside and self.leaves

    def outcome(self, row: int, stage: str, queries: int) -> Outcome:
        """What is recorded."""
        if not self.confirmed:
            return Outcome(row, stage, claimed=True, confirmed=False, queries=queries)
        return Outcome(
            row=row,
            stage=stage,
            claimed=True,
            confirmed=True,
            queries=queries,
            digest=digest_of(self.example, self.label),
            decision=self.decision,
            confidence=self.confidence,
            margin=self.margin,
            **self.distances,
        )


async def confirm(
    ask: Asking,
    stage: Stage,
    bounds: tuple[float, float],
    inputs: Rows,
    points: Rows,
    labels: NDArray[np.int64],
) -> list[Claim]:
    """Ask the original file about claimed successes.

    Args:
        ask: the original file.
        stage: whose attack claims them.
        bounds: of the model's input.
        inputs: `(N, *input_shape)`, the samples.
        points: of the same shape, what the attack returned.
        labels: `(N,)`.
    """
    if not len(points):
        return []
    claims = [Claim(point, label) for point, label in zip(points, labels.tolist(), strict=True)]
    places = np.flatnonzero(_bounded(points, bounds))
    inputs, points, labels = inputs[places], points[places], labels[places]
    if stage.kind is StageKind.MINIMAL:
        points = await beyond(ask, inputs, points, labels, bounds)
    distances = await asyncio.to_thread(distances_of, inputs, points)
    held = [number for number, found in enumerate(distances) if _in_ball(found, stage)]
    if not held:
        return claims
    points, labels = points[held], labels[held]
    found = await ask(points)
    leaves, margins = found.leave(labels), found.margins(labels)
    for number, place in enumerate(held):
        claims[places[place]] = Claim(
            example=points[number],
            label=int(labels[number]),
            inside=True,
            leaves=bool(leaves[number]),
            decision=int(found.decisions[number]),
            confidence=float(found.confidences[number]),
            margin=float(margins[number]),
            distances=distances[place],
        )
    return claims


def distances_of(inputs: Rows, points: Rows) -> list[dict[str, float]]:
    """Of each row from its sample, by norm, in float64."""
    found = []
    for sample, point in zip(inputs, points, strict=True):
        delta = np.abs(point.astype(np.float64) - sample.astype(np.float64)).reshape(-1)
        found.append(
            {
                "l0": float(np.count_nonzero(delta)),
                "l1": float(delta.sum()),
                "l2": float(np.sqrt(np.square(delta).sum())),
                "linf": float(delta.max(initial=0.0)),
            }
        )
    return found


def _bounded(points: Rows, bounds: tuple[float, float]) -> NDArray[np.bool_]:
    flat = points.reshape(len(points), -1)
    inside = (flat >= np.float32(bounds[0])) & (flat <= np.float32(bounds[1]))
    return np.asarray(inside.all(1))


def _in_ball(distances: dict[str, float], stage: Stage) -> bool:
    if stage.norm is None or stage.epsilon is None:
        return True
    return within(distances[stage.norm], stage.epsilon)
