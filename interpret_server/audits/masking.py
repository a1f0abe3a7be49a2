"""Signs that attacks failed because of masked gradients, and not because the model is robust.

The signs are those of Athalye, Carlini & Wagner 2018, "Obfuscated Gradients Give a False Sense of
Security", section 3.1, of Carlini et al. 2019, "On Evaluating Adversarial Robustness", and the
flags of AutoAttack.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from . import phrases
from .plan import StageKind
from .records import Findings
from .report.evidence import Evidence
from .standing import within

_MOST = 0.002  # of all samples that may fall to answers alone, as in AutoAttack's flag
_FEW, _SHARE, _FACTOR = 10, 0.1, 1.9  # see `_larger_radius`
_SEEN = (  # code, how warnings of it begin, and what was seen
    ("zero_gradient", phrases.ZERO_GRADIENT, "The loss has no gradient"),
    (
        "misleading_gradient",
        phrases.MISLEADING,
        "The gradient misses a part of what the loss depends on",
    ),
    ("saturated_softmax", phrases.SATURATED, "The softmax is saturated"),
)


@dataclass(frozen=True)
class Finding:
    """A sign, told once in a report.

    Args:
        code: stable, such as `zero_gradient`.
        sentence: what was seen, and what follows.
        rows: of the samples where it was seen, ascending.
        figures: numbers and names of the sentence.
    """

    code: str
    sentence: str
    rows: tuple[int, ...]
    figures: Mapping[str, Any]


def find(findings: Findings) -> tuple[Finding, ...]:
    """Every sign in the findings of an audit, in a fixed order; none for an ordinary model."""
    evidence = Evidence(findings)
    return (
        *_random(findings),
        *_told(findings, evidence),
        *_black_box(evidence),
        *_unbounded(evidence),
        *_larger_radius(evidence),
        *_unconfirmed(evidence),
    )


def _random(findings: Findings) -> Iterator[Finding]:
    rows = _warned(findings, phrases.RANDOM)
    if rows:
        yield Finding(
            "random_answers",
            f"The model answers at random: it was seen on {_samples(len(rows))}. A success was "
            "confirmed by one answer, and an attack that failed met another one; judge it by "
            "expected answers.",
            rows,
            {"samples": len(rows)},
        )


def _told(findings: Findings, evidence: Evidence) -> Iterator[Finding]:
    """What attacks by gradients say themselves of the gradients that they met."""
    attacked = _attacked(evidence)
    for code, beginning, seen in _SEEN:
        rows = tuple(row for row in _warned(findings, beginning) if row in attacked)
        if rows:
            share = len(rows) / len(attacked)
            yield Finding(
                code,
                f"{seen} at {len(rows)} of the {_samples(len(attacked))} that attacks by gradients "
                f"tried ({100 * share:.3g}%): their failure there is no evidence of robustness.",
                rows,
                {"samples": len(rows), "attacked": len(attacked), "share": share},
            )


def _black_box(evidence: Evidence) -> Iterator[Finding]:
    """Samples that fell to answers alone, at a radius where every gradient attack had failed."""
    for norm in evidence.norms:
        by_gradient = _nearest_by_gradient(evidence, norm)
        for radius in evidence.radii(norm):
            stages = [
                stage
                for stage in evidence.stages(StageKind.ATTACK, norm)
                if stage.epsilon == radius
            ]
            failed, won = set[int](), dict[int, str]()
            for stage in stages:
                for outcome in evidence.by_stage[stage.key]:
                    if stage.gradients:
                        failed.add(outcome.row)
                    elif outcome.confirmed and outcome.row in failed:
                        won[outcome.row] = stage.attack
            rows = tuple(
                sorted(
                    row
                    for row in won
                    if row not in by_gradient or not within(by_gradient[row], radius)
                )
            )
            if len(rows) > _MOST * len(evidence.samples):
                attacks = sorted({won[row] for row in rows})
                yield Finding(
                    "black_box_beats_white_box",
                    f"At {radius:g} in {norm}, {_samples(len(rows))} fell to "
                    f"{' and '.join(attacks)}, which saw answers alone, after every attack by "
                    "gradients had failed: gradients may mislead here, or those attacks were weak.",
                    rows,
                    {
                        "norm": norm,
                        "epsilon": radius,
                        "samples": len(rows),
                        "attacked": len(failed),
                        "attacks": attacks,
                    },
                )


def _nearest_by_gradient(evidence: Evidence, norm: str) -> dict[int, float]:
    """The smallest distance of each row that attacks by gradients came to."""
    found: dict[int, float] = {}
    for stage in evidence.stages(norm=norm):
        if stage.gradients:
            for outcome in evidence.by_stage[stage.key]:
                if outcome.confirmed:
                    distance = outcome.distance(norm)
                    found[outcome.row] = min(distance, found.get(outcome.row, distance))
    return found


def _unbounded(evidence: Evidence) -> Iterator[Finding]:
    for stage in evidence.stages(StageKind.UNBOUNDED):
        rows = tuple(item.row for item in evidence.by_stage[stage.key] if not item.confirmed)
        if rows:
            correct = len(evidence.correct & set(evidence.plan.rows(0)))
            yield Finding(
                "unbounded_attack_fails",
                f"With every change allowed, {_samples(len(rows))} of {correct} still stand: an "
                "attack with gradients that lead anywhere reaches all of them.",
                rows,
                {"samples": len(rows), "correct": correct},
            )


def _larger_radius(evidence: Evidence) -> Iterator[Finding]:
    """Radii about twice as large or more, at which none of the samples left fell any more.

    Where few are left, or few fell before, that says nothing.
    """
    for norm in evidence.norms:
        radii = evidence.radii(norm)
        for smaller, larger in pairwise(radii):
            before, after = evidence.broken(norm, smaller), evidence.broken(norm, larger)
            left = evidence.correct - before
            enough = len(left) >= _FEW and len(before) >= _SHARE * len(evidence.correct)
            if enough and len(before) == len(after) and larger >= _FACTOR * smaller:
                yield Finding(
                    "larger_radius_not_easier",
                    f"Of {_samples(len(left))} that stand at {smaller:g} in {norm}, none fell at "
                    f"{larger:g}: more room should help an attack that finds its way.",
                    tuple(sorted(left)),
                    {"norm": norm, "smaller": smaller, "larger": larger, "samples": len(left)},
                )


def _unconfirmed(evidence: Evidence) -> Iterator[Finding]:
    claimed = [item for item in evidence.outcomes if item.claimed]
    unconfirmed = [item for item in claimed if not item.confirmed]
    if unconfirmed:
        rows = tuple(sorted({item.row for item in unconfirmed}))
        yield Finding(
            "unconfirmed_successes",
            f"{len(unconfirmed)} of {len(claimed)} successes that attacks claimed were not "
            "confirmed by the file itself, and are not counted.",
            rows,
            {"claimed": len(claimed), "unconfirmed": len(unconfirmed), "samples": len(rows)},
        )


def _attacked(evidence: Evidence) -> set[int]:
    """The rows that attacks by gradients tried."""
    return {
        item.row
        for stage in evidence.plan.stages
        if stage.gradients
        for item in evidence.by_stage[stage.key]
    }


def _warned(findings: Findings, beginning: str) -> tuple[int, ...]:
    """The rows of warnings that begin so."""
    rows = {
        row
        for unit in findings.units
        for warned in unit.warnings
        if warned.message.startswith(beginning)
        for row in warned.rows
    }
    return tuple(sorted(rows))


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count:,} samples"
