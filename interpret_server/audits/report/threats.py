"""Figures of a threat model: one norm, at all of its radii."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..plan import Stage, StageKind
from ..records import Outcome
from ..standing import reach, within
from .evidence import Evidence
from .statistics import clopper_pearson, quantile, rounded, share

FRAGILE = 12  # samples that are shown
_POINTS = 100  # of a curve, between its ends
_REACH = 0.95  # quantile of the known distances that a curve goes to


def threat_figures(evidence: Evidence, norm: str) -> dict[str, Any]:
    """All figures of a norm.

    Robust accuracy at a radius is the share of all samples that are classified correctly and not
    broken there; the curve says the same between the radii, and beyond them as far as the search
    for smallest changes tells.
    """
    radii = evidence.radii(norm)
    return {
        "norm": norm,
        "radii": [_at(evidence, norm, radius) for radius in radii],
        "curve": _curve(evidence, norm, radii),
        "attacks": _attacks(evidence, norm, radii),
        "smallest": _smallest(evidence, norm),
        "confusion": confusion(
            (evidence.samples[row].label, best.decision)
            for row, best in evidence.nearest(norm).items()
            if within(best.distance(norm), radii[-1])
        ),
        "fragile": _fragile(evidence, norm),
    }


def confusion(pairs: Iterable[tuple[int, int]]) -> list[dict[str, int]]:
    """How often a class was taken for which; the most frequent first."""
    counted = sorted(Counter(pairs).items(), key=lambda item: (-item[1], item[0]))
    return [
        {"label": label, "decision": decision, "count": count}
        for (label, decision), count in counted
    ]


def unbounded_figures(evidence: Evidence) -> list[dict[str, Any]]:
    """Attacks without a radius: where a sample stands, its gradients lead nowhere."""
    found = []
    for stage in evidence.stages(StageKind.UNBOUNDED):
        outcomes = evidence.by_stage[stage.key]
        broken = sum(item.confirmed for item in outcomes)
        found.append(
            {
                "stage": stage.key,
                "attack": stage.attack,
                "norm": stage.norm,
                "epsilon": stage.epsilon,
                "attacked": len(outcomes),
                "broken": broken,
                "standing": len(outcomes) - broken,
                "queries": queries_of(outcomes),
            }
        )
    return found


def proportion(count: int, total: int) -> dict[str, Any]:
    """A share with its interval."""
    return {"accuracy": share(count, total), "interval": list(clopper_pearson(count, total))}


def queries_of(outcomes: list[Outcome]) -> dict[str, Any]:
    """Queries of a stage: all of them, and the median over its samples."""
    spent = [outcome.queries for outcome in outcomes]
    return {"total": sum(spent), "median": quantile(spent, 0, 0.5)}


def _at(evidence: Evidence, norm: str, radius: float) -> dict[str, Any]:
    broken = len(evidence.broken(norm, radius))
    standing = len(evidence.correct) - broken
    return {
        "epsilon": radius,
        "broken": broken,
        "standing": standing,
        **proportion(standing, len(evidence.samples)),
    }


def _curve(evidence: Evidence, norm: str, radii: tuple[float, ...]) -> dict[str, list[Any]]:
    distances = sorted(best.distance(norm) for best in evidence.nearest(norm).values())
    top = radii[-1]
    if distances and any(evidence.stages(StageKind.MINIMAL, norm)):
        top = max(top, distances[math.ceil(_REACH * len(distances)) - 1])
    points = sorted({*radii, *(rounded(top * step / _POINTS) for step in range(_POINTS + 1))})
    total, correct = len(evidence.samples), len(evidence.correct)
    standing = [correct - bisect_right(distances, reach(point)) for point in points]
    return {
        "epsilon": points,
        "standing": standing,
        "accuracy": [share(count, total) for count in standing],
        "interval": [list(clopper_pearson(count, total)) for count in standing],
    }


def _attacks(evidence: Evidence, norm: str, radii: tuple[float, ...]) -> list[dict[str, Any]]:
    """What every stage contributed, in order.

    `broken` are the samples with a confirmed example within the stage's radius, for smallest
    changes within the largest one, and `unique` those that no other stage of the norm breaks there.
    """
    stages = [
        stage
        for kind in (StageKind.ATTACK, StageKind.MINIMAL)
        for stage in evidence.stages(kind, norm)
    ]
    breakers = {radius: _breakers(evidence, stages, norm, radius) for radius in radii}
    found = []
    for stage in stages:
        outcomes = evidence.by_stage[stage.key]
        by_row = breakers[stage.epsilon or radii[-1]]
        broken = [item.row for item in outcomes if stage.key in by_row.get(item.row, ())]
        distances = [item.distance(norm) for item in outcomes if item.confirmed]
        found.append(
            {
                "stage": stage.key,
                "kind": stage.kind.value,
                "attack": stage.attack,
                "epsilon": stage.epsilon,
                "attacked": len(outcomes),
                "claimed": sum(item.claimed for item in outcomes),
                "confirmed": len(distances),
                "broken": len(broken),
                "share": share(len(broken), len(outcomes)),
                "unique": sum(len(by_row[row]) == 1 for row in broken),
                "queries": queries_of(outcomes),
                "median_distance": quantile(distances, len(outcomes) - len(distances), 0.5),
            }
        )
    return found


def _breakers(
    evidence: Evidence, stages: Sequence[Stage], norm: str, radius: float
) -> dict[int, set[str]]:
    """The stages that break each row at a radius."""
    found: dict[int, set[str]] = {}
    for stage in stages:
        for item in evidence.by_stage[stage.key]:
            if item.confirmed and within(item.distance(norm), radius):
                found.setdefault(item.row, set()).add(stage.key)
    return found


def _smallest(evidence: Evidence, norm: str) -> dict[str, Any] | None:
    """Quartiles of the smallest known distance over the samples whose smallest change was sought.

    Samples without any example count as larger than all, so a quartile that lies among them is
    null.
    """
    stages = list(evidence.stages(StageKind.MINIMAL, norm))
    if not stages:
        return None
    sought = {
        item.row
        for stage in stages
        for item in evidence.by_stage[stage.key]
        if item.row in evidence.correct
    }
    nearest = evidence.nearest(norm)
    known = [nearest[row].distance(norm) for row in sought if row in nearest]
    none = len(sought) - len(known)
    return {
        "samples": len(sought),
        "found": len(known),
        "none": none,
        "quartiles": [quantile(known, none, q) for q in (0.25, 0.5, 0.75)],
    }


def _fragile(evidence: Evidence, norm: str) -> list[dict[str, Any]]:
    nearest = evidence.nearest(norm)
    ordered = sorted(nearest.items(), key=lambda item: (item[1].distance(norm), item[0]))
    return [
        fragile_sample(evidence, outcome) | {"distance": outcome.distance(norm)}
        for _, outcome in ordered[:FRAGILE]
    ]


def fragile_sample(evidence: Evidence, outcome: Outcome) -> dict[str, Any]:
    """A sample with the example that shows how fragile it is, and where both lie."""
    sample = evidence.samples[outcome.row]
    return {
        "row": sample.row,
        "label": sample.label,
        "confidence": _known(sample.confidence),
        "decision": outcome.decision,
        "decision_confidence": _known(outcome.confidence),
        "margin": _known(outcome.margin),
        "stage": outcome.stage,
        "attack": evidence.plan.stage(outcome.stage).attack,
        "input": evidence.input_place(sample.row)._asdict(),
        "example": evidence.example_places[outcome.stage, outcome.row]._asdict(),
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
