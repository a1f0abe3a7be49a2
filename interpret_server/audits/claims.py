"""What a report says beside what is found: differences that are more than rounding."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .plan import Stage, StageKind
from .records import Outcome, Rows, Sample
from .standing import within

_DISTANCE = 1e-9  # relative; both sides are float64 of the same values
_SCORE = 1e-3  # of confidences and margins: runtimes and batch sizes round differently
_MOST = 20  # differences of two documents that are told


@dataclass(frozen=True)
class Complaint:
    """A claim that does not hold.

    Args:
        sample: number of the sample, or None where it is about the whole.
        stage: key of the stage, or empty.
        problem: what is wrong.
    """

    sample: int | None
    stage: str
    problem: str

    def __str__(self) -> str:
        place = "" if self.sample is None else f"sample {self.sample}"
        place = ", ".join(filter(None, (place, self.stage)))
        return f"{place}: {self.problem}" if place else self.problem


def judge_sample(told: Sample, found: Sample) -> tuple[Sample, list[Complaint]]:
    """What counts of a sample, and what is wrong with what is told of it.

    Args:
        told: by the report.
        found: its digest, decision and confidence now.
    """
    problems = []
    if told.digest != found.digest:
        problems.append("its values or its label are not those that were audited")
    if told.decision != found.decision:
        problems.append(
            f"the report has the file answer class {told.decision}, and it answers {found.decision}"
        )
    elif not _near(told.confidence, found.confidence, _SCORE):
        problems.append(
            f"the report has a confidence of {told.confidence:.6g}, and it is "
            f"{found.confidence:.6g}"
        )
    complaints = [Complaint(told.row, "clean", problem) for problem in problems]
    return (found if complaints else told), complaints


def judge_outcome(
    stage: Stage, told: Outcome, found: Outcome, example: Rows, bounds: tuple[float, float]
) -> tuple[Outcome, list[Complaint]]:
    """What counts of a confirmed outcome, and what is wrong with what is told of it.

    Args:
        stage: that it is of.
        told: by the report.
        found: what its example comes to now; `confirmed` where the file leaves the label.
        example: one row.
        bounds: of the model's input.
    """
    problems = []
    if told.digest != found.digest:
        problems.append("its example is not the one that was found")
    if not found.confirmed:
        problems.append("the model's file classifies its example correctly")
    elif told.decision != found.decision:
        problems.append(
            f"the report has the file answer class {told.decision} to its example, and it answers "
            f"{found.decision}"
        )
    if not (example.min() >= bounds[0] and example.max() <= bounds[1]):
        problems.append("its example lies outside the bounds of the input")
    problems += [
        f"the report has a {norm} distance of {told.distance(norm):.9g}, and it is "
        f"{found.distance(norm):.9g}"
        for norm in ("l0", "l1", "l2", "linf")
        if not _near(told.distance(norm), found.distance(norm), _DISTANCE)
    ]
    if _outside(stage, found):
        problems.append("its example lies outside the ball of the threat model")
    for name in ("confidence", "margin"):
        one, other = getattr(told, name), getattr(found, name)
        if found.confirmed and not _near(one, other, _SCORE):
            problems.append(f"the report has a {name} of {one:.6g}, and it is {other:.6g}")
    complaints = [Complaint(told.row, stage.key, problem) for problem in problems]
    return (found if complaints else told), complaints


def judge_rows(stage: Stage, expected: set[int], told: Sequence[Outcome]) -> Iterator[Complaint]:
    """What is wrong with the samples that a stage says it attacked.

    Args:
        expected: those that were correct and stood when it began.
    """
    rows = [item.row for item in told]
    for row in sorted(expected - set(rows)):
        yield Complaint(row, stage.key, "it should have been attacked, and the report is silent")
    for row in sorted(set(rows) - expected):
        yield Complaint(row, stage.key, "it had nothing to be attacked for")
    if len(set(rows)) != len(rows):
        twice = next(row for row in rows if rows.count(row) > 1)
        yield Complaint(twice, stage.key, "it is told of twice")


def judge_document(told: Any, found: Any) -> list[Complaint]:
    """The figures of a report that do not follow from its samples and outcomes."""
    differences = list(_differences(told, found, ""))
    complaints = [
        Complaint(None, "", f"{path} of the report is {_brief(one)}, and comes to {_brief(other)}")
        for path, one, other in differences[:_MOST]
    ]
    if len(differences) > _MOST:
        more = len(differences) - _MOST
        complaints.append(Complaint(None, "", f"{more} more figures of the report differ"))
    return complaints


def _outside(stage: Stage, found: Outcome) -> bool:
    if stage.kind is not StageKind.ATTACK or stage.norm is None or stage.epsilon is None:
        return False
    return not within(found.distance(stage.norm), stage.epsilon)


def _near(one: float, other: float, share: float) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return bool(np.isclose(one, other, rtol=share, atol=share))


def _differences(told: Any, found: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(told, Mapping) and isinstance(found, Mapping):
        for key in sorted({*told, *found}):
            yield from _differences(told.get(key), found.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(told, list) and isinstance(found, list) and len(told) == len(found):
        for number, (one, other) in enumerate(zip(told, found, strict=True)):
            yield from _differences(one, other, f"{path}[{number}]")
    elif told != found:
        yield path, told, found


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
