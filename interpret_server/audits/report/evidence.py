"""The findings of an audit, arranged for figures."""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from ..plan import Stage, StageKind
from ..records import Findings, Outcome, Sample
from ..standing import closest, norms_of, within


class Place(NamedTuple):
    """Where a row of an array lies in a bundle."""

    file: str
    row: int


def inputs_name(batch: int) -> str:
    """The file with the rows of a batch as plugins see them."""
    return f"inputs/{batch:06}.npy"


def examples_name(batch: int, stage: int) -> str:
    """The file with the confirmed examples of a batch and the stage of that number."""
    return f"examples/{batch:06}-{stage:03}.npy"


class Evidence:
    """The findings by stage, by norm and by row.

    Args:
        findings: whose outcomes are all of samples that it has.
    """

    def __init__(self, findings: Findings) -> None:
        self.spec = findings.audit.spec
        self.plan = findings.audit.plan
        self.labels = findings.audit.origin.labels
        self.samples = {sample.row: sample for sample in findings.samples}
        self.outcomes = findings.outcomes
        self._nearest: dict[str, dict[int, Outcome]] = {}

    @cached_property
    def by_stage(self) -> dict[str, list[Outcome]]:
        """Outcomes of every stage of the plan, in order."""
        found: dict[str, list[Outcome]] = {stage.key: [] for stage in self.plan.stages}
        for outcome in self.outcomes:
            found[outcome.stage].append(outcome)
        return found

    @cached_property
    def correct(self) -> set[int]:
        """The rows that the original file classifies correctly."""
        return {row for row, sample in self.samples.items() if sample.correct}

    @cached_property
    def classes(self) -> dict[int, list[Sample]]:
        """The samples of every class that there are any of, in order of classes."""
        found: dict[int, list[Sample]] = {}
        for sample in self.samples.values():
            found.setdefault(sample.label, []).append(sample)
        return dict(sorted(found.items()))

    @cached_property
    def norms(self) -> tuple[str, ...]:
        """The norms of the threat models, in order."""
        return tuple(threat.norm for threat in self.spec.threats)

    def nearest(self, norm: str) -> dict[int, Outcome]:
        """The closest confirmed example of each row that is correct and has one."""
        if norm not in self._nearest:
            found = closest(self.outcomes, norms_of(self.plan), norm)
            self._nearest[norm] = {row: best for row, best in found.items() if row in self.correct}
        return self._nearest[norm]

    def broken(self, norm: str, epsilon: float) -> set[int]:
        """The rows that are classified correctly, but broken at a radius."""
        return {
            row for row, best in self.nearest(norm).items() if within(best.distance(norm), epsilon)
        }

    def stages(self, kind: StageKind | None = None, norm: str | None = None) -> Iterator[Stage]:
        """The stages of a kind and a norm; None for any."""
        for stage in self.plan.stages:
            if kind in (None, stage.kind) and norm in (None, stage.norm):
                yield stage

    def radii(self, norm: str) -> tuple[float, ...]:
        """The radii of a threat model, ascending."""
        return next(threat.epsilons for threat in self.spec.threats if threat.norm == norm)

    def name(self, label: int) -> str:
        """What a class is called; empty where that is not known."""
        return self.labels[label] if 0 <= label < len(self.labels) else ""

    def input_place(self, row: int) -> Place:
        """Where the values of a sample lie."""
        batch, position = divmod(row, self.plan.batch_size)
        return Place(inputs_name(batch), position)

    @cached_property
    def example_places(self) -> dict[tuple[str, int], Place]:
        """Where the example of a confirmed outcome lies, by its stage and row."""
        numbers = {stage.key: number for number, stage in enumerate(self.plan.stages)}
        found: dict[tuple[str, int], Place] = {}
        counts: dict[str, int] = {}
        for outcome in self.outcomes:
            if outcome.confirmed:
                batch = outcome.row // self.plan.batch_size
                name = examples_name(batch, numbers[outcome.stage])
                found[outcome.stage, outcome.row] = Place(name, counts.get(name, 0))
                counts[name] = counts.get(name, 0) + 1
        return found
