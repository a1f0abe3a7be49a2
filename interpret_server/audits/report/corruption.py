"""Figures of everyday faults of images."""

from typing import Any

from ..plan import StageKind
from ..records import Outcome
from .evidence import Evidence
from .statistics import rounded
from .threats import FRAGILE, fragile_sample, proportion, queries_of


def corruption_figures(evidence: Evidence) -> dict[str, Any] | None:
    """Accuracy under every corruption and severity, and means; None where none was tried.

    A sample stands if it is classified correctly both as it is and corrupted; shares are of all
    samples. Means are over cells, each counting the same.
    """
    stages = list(evidence.stages(StageKind.CORRUPTION))
    if not stages:
        return None
    cells = []
    for stage in stages:
        outcomes = evidence.by_stage[stage.key]
        broken = sum(item.confirmed for item in outcomes)
        standing = len(evidence.correct) - broken
        cells.append(
            {
                "stage": stage.key,
                "corruption": stage.attack,
                "severity": stage.severity,
                "attacked": len(outcomes),
                "broken": broken,
                "standing": standing,
                **proportion(standing, len(evidence.samples)),
                "queries": queries_of(outcomes),
            }
        )
    names = list(dict.fromkeys(cell["corruption"] for cell in cells))
    severities = sorted({cell["severity"] for cell in cells})
    return {
        "cells": cells,
        "corruptions": names,
        "severities": severities,
        "mean": _mean(cells),
        "by_corruption": [
            {"corruption": name, "mean": _mean([c for c in cells if c["corruption"] == name])}
            for name in names
        ],
        "by_severity": [
            {"severity": level, "mean": _mean([c for c in cells if c["severity"] == level])}
            for level in severities
        ],
        "fragile": _fragile(evidence),
    }


def _mean(cells: list[dict[str, Any]]) -> float | None:
    known = [cell["accuracy"] for cell in cells if cell["accuracy"] is not None]
    return rounded(sum(known) / len(known)) if known else None


def _fragile(evidence: Evidence) -> list[dict[str, Any]]:
    """The samples that most corruptions break, each with that of the lowest severity."""
    severity = {stage.key: stage.severity or 0 for stage in evidence.plan.stages}
    broken: dict[int, list[Outcome]] = {}
    for stage in evidence.stages(StageKind.CORRUPTION):
        for item in evidence.by_stage[stage.key]:
            if item.confirmed and item.row in evidence.correct:
                broken.setdefault(item.row, []).append(item)
    ordered = sorted(broken.items(), key=lambda item: (-len(item[1]), item[0]))
    found = []
    for _, outcomes in ordered[:FRAGILE]:
        mildest = min(outcomes, key=lambda item: severity[item.stage])
        found.append(
            fragile_sample(evidence, mildest)
            | {"severity": severity[mildest.stage], "broken": len(outcomes)}
        )
    return found
