"""When a sample is broken under a threat model: one rule for runner, store, report and replay.

A sample is broken at a radius if the original file confirmed an example of it, found by an attack
of that norm (at whatever radius, or a smallest change), whose distance is at most the radius. The
attack without a radius is a check of gradients and no part of a threat model. So one number
decides for every radius: the smallest such distance. Distances are float64; a relative slack of
1e-6 covers the rounding of examples to float32.
"""

from collections.abc import Iterable, Mapping

from .plan import Plan, Stage, StageKind
from .records import Outcome, Sample

SLACK = 1e-6


def within(distance: float, epsilon: float) -> bool:
    """Whether a distance lies within a radius; NaN does not."""
    return distance <= reach(epsilon)


def reach(epsilon: float) -> float:
    """The largest distance that lies within a radius."""
    return epsilon * (1 + SLACK)


def norms_of(plan: Plan) -> Mapping[str, str | None]:
    """The norm of every stage's threat model by its key; None where it is of none."""
    return {
        stage.key: None if stage.kind is StageKind.UNBOUNDED else stage.norm
        for stage in plan.stages
    }


def closest(
    outcomes: Iterable[Outcome], norms: Mapping[str, str | None], norm: str
) -> dict[int, Outcome]:
    """For each row that has any, the confirmed outcome of the smallest distance.

    Args:
        outcomes: in order; of equal distances the first counts.
        norms: `norms_of` the plan.
        norm: of the threat model.
    """
    found: dict[int, Outcome] = {}
    for outcome in outcomes:
        if not outcome.confirmed or norms[outcome.stage] != norm:
            continue
        best = found.get(outcome.row)
        if best is None or outcome.distance(norm) < best.distance(norm):
            found[outcome.row] = outcome
    return found


def broken_at(closest_found: Mapping[int, Outcome], norm: str, epsilon: float) -> set[int]:
    """The rows that are broken at a radius.

    Args:
        closest_found: of the norm, by `closest`.
    """
    return {
        row for row, outcome in closest_found.items() if within(outcome.distance(norm), epsilon)
    }


def due(
    stage: Stage,
    samples: Iterable[Sample],
    outcomes: Iterable[Outcome],
    norms: Mapping[str, str | None],
) -> set[int]:
    """The rows that a stage attacks: classified correctly, and not broken at its radius as yet.

    Args:
        samples: of a batch.
        outcomes: of earlier stages on that batch.
        norms: `norms_of` the plan.
    """
    broken: set[int] = set()
    if stage.norm is not None and stage.epsilon is not None:
        broken = broken_at(closest(outcomes, norms, stage.norm), stage.norm, stage.epsilon)
    return {sample.row for sample in samples if sample.correct} - broken
