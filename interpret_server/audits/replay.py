"""Replays a report: every claim is checked against the samples, the examples and the model's file.

Nothing is taken from the report that can be found out again. The model runs sandboxed, in a worker
of the replay's own; its answers come from onnxruntime, torch.jit or torch.export, not from the
form that attacks take gradients of.
"""

import math
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..engine.api import ModelInfo, StoredModel, Worker
from ..engine.stored import read_stored
from ..errors import FailedPrecondition, InvalidRequest, NotFound
from ..models.manifest import Manifest
from ..threads import in_thread
from .calls import Answers, answers
from .claims import Complaint, judge_document, judge_outcome, judge_rows, judge_sample
from .files import AuditFiles
from .pages import judge_page
from .plan import Plan, StageKind, Unit
from .records import Findings, Outcome, Rows, Sample, digest_of, digest_of_set
from .report import bundle, document, tables
from .runner import BatchState, UnitRunner
from .standing import due, norms_of

_NAME = "_audit-replay"

T = TypeVar("T", Sample, Outcome)

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Replay:
    """What a replay came to.

    Args:
        samples: whose values, labels and decisions were checked.
        examples: adversarial ones that the report claims.
        confirmed: of those, how many the model's file confirmed again.
        repeated: samples whose attacks were run again.
        complaints: about claims that do not hold; none for a true report.
        notes: about what could not be checked here.
    """

    samples: int
    examples: int
    confirmed: int
    repeated: int
    complaints: tuple[Complaint, ...]
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every claim was found to be true."""
        return not self.complaints


async def replay(
    folder: Path,
    *,
    model: Path | None = None,
    rerun: float = 0.0,
    seed: int = 0,
    report: Report = lambda done, total: None,
) -> Replay:
    """Check a report's bundle with a worker of its own.

    Args:
        folder: of the bundle.
        model: the model's file, in place of the bundle's.
        rerun: share of the batches whose attacks are run again, from 0 to 1; at least one where it
            is above 0.
        seed: which batches those are.
        report: told how many steps are done, of how many.

    Raises:
        InvalidRequest: the folder is no report, or the file is not the model that it names.
        FailedPrecondition: the model cannot be loaded or run here.
    """
    from ..engine.workers.fleet import Fleet

    fleet = Fleet()
    try:
        await fleet.start()
        return await Replayer(folder, fleet, model, report).run(rerun, seed)
    finally:
        await fleet.close(0.0)


class Replayer:
    """Checks a bundle on a worker that exists.

    Args:
        folder: of the bundle.
        worker: loads the model under a hidden name.
        model: the model's file, in place of the bundle's.
        report: told how many steps are done, of how many.

    Raises:
        InvalidRequest: the folder is no report.
    """

    def __init__(
        self,
        folder: Path,
        worker: Worker,
        model: Path | None = None,
        report: Report = lambda done, total: None,
    ) -> None:
        self._told = bundle.read(folder)
        self._files, self._worker, self._model, self._report = (
            AuditFiles(folder),
            worker,
            model,
            report,
        )
        findings = self._told.findings
        self._plan, self._spec = findings.audit.plan, findings.audit.spec
        self._samples = _by_batch(findings.samples, self._plan)
        self._outcomes = _by_batch(findings.outcomes, self._plan)
        self._norms = norms_of(self._plan)
        self._complaints: list[Complaint] = []
        self._notes: list[str] = []
        self._examples = self._confirmed = self._repeated = 0

    async def run(self, rerun: float = 0.0, seed: int = 0) -> Replay:
        """Check everything; see `replay`."""
        again = self._chosen(rerun, seed)
        steps = len(self._samples) + len(again)
        self._check_files()
        async with self._loaded() as info:
            samples: list[Sample] = []
            outcomes: list[Outcome] = []
            for done, batch in enumerate(self._samples):
                self._report(done, steps)
                found = await self._batch(info, batch)
                samples += found[0]
                outcomes += found[1]
            self._check_document(samples, outcomes)
            await self._check_page()
            for done, batch in enumerate(again, len(self._samples)):
                self._report(done, steps)
                await self._again(info, batch)
        self._report(steps, steps)
        return Replay(
            samples=len(samples),
            examples=self._examples,
            confirmed=self._confirmed,
            repeated=self._repeated,
            complaints=tuple(self._complaints),
            notes=tuple(self._notes),
        )

    def _chosen(self, rerun: float, seed: int) -> list[int]:
        if not 0 <= rerun <= 1:
            raise InvalidRequest.field("rerun", f"{rerun:g} is no share; give 0 to 1")
        batches = sorted(self._samples)
        count = min(len(batches), math.ceil(rerun * len(batches)))
        drawn = np.random.default_rng(seed).permutation(len(batches))[:count]
        return [batches[place] for place in sorted(drawn)]

    @asynccontextmanager
    async def _loaded(self) -> AsyncIterator[ModelInfo]:
        origin = self._told.findings.audit.origin
        stored = self._stored()
        path = self._model or stored.path
        info = await self._worker.load(_NAME, path, stored.manifest)
        try:
            if info.sha256 != origin.model_sha256:
                raise InvalidRequest.field(
                    "model",
                    f"{path.name} is another file than the report's: its SHA-256 is "
                    f"{info.sha256[:12]}..., not {origin.model_sha256[:12]}...",
                )
            yield info
        finally:
            await self._worker.unload(_NAME)

    def _stored(self) -> StoredModel:
        """The bundle's model; with a file of the caller's its manifest alone counts."""
        try:
            stored = read_stored(self._files.model)
        except NotFound:
            if self._model is None:
                raise InvalidRequest.field(
                    "model", "the bundle holds no model; name its file"
                ) from None
            origin = self._told.findings.audit.origin
            manifest = Manifest.model_validate_json(origin.manifest)
            return StoredModel(self._model, manifest, origin.model_sha256)
        return stored

    def _check_files(self) -> None:
        found = bundle.digests(self._told.folder)
        told = self._told.document["files"]
        for name in sorted({*found, *told}):
            if name.startswith("model/") and self._model is not None:
                continue
            if name not in found:
                self._complain(None, "", f"{name} is missing")
            elif name not in told:
                self._complain(None, "", f"{name} is not part of the report")
            elif found[name] != told[name]:
                self._complain(None, "", f"{name} is not the file that the report was made of")

    async def _batch(self, info: ModelInfo, batch: int) -> tuple[list[Sample], list[Outcome]]:
        """The samples and outcomes of a batch as they are found now."""
        told = self._samples[batch]
        inputs = self._inputs(batch)
        if inputs is None:
            return list(told), list(self._outcomes.get(batch, ()))
        found = await answers(self._worker, info, inputs)
        samples = []
        for place, sample in enumerate(told):
            seen = replace(
                sample,
                digest=digest_of(inputs[place], sample.label),
                decision=int(found.decisions[place]),
                confidence=float(found.confidences[place]),
            )
            kept, complaints = judge_sample(sample, seen)
            samples.append(kept)
            self._complaints += complaints
        outcomes: list[Outcome] = []
        for number, stage in enumerate(self._plan.stages):
            mine = [item for item in self._outcomes.get(batch, ()) if item.stage == stage.key]
            if (batch == 0 or not stage.first_batch) and stage.kind is not StageKind.CLEAN:
                self._complaints += judge_rows(
                    stage, due(stage, samples, outcomes, self._norms), mine
                )
            outcomes += await self._stage(info, Unit(batch, number), inputs, samples, mine)
        return samples, outcomes

    def _inputs(self, batch: int) -> Rows | None:
        """The samples of a batch; None where they are not there."""
        samples = self._samples[batch]
        try:
            inputs = self._files.inputs(batch)
        except FailedPrecondition:
            inputs = np.empty((0,), np.float32)
        if len(inputs) == len(samples):
            return inputs
        for sample in samples:
            self._complain(sample.row, "clean", "its values are missing")
        return None

    async def _stage(
        self,
        info: ModelInfo,
        unit: Unit,
        inputs: Rows,
        samples: Sequence[Sample],
        told: Sequence[Outcome],
    ) -> list[Outcome]:
        """A stage's outcomes, with what its examples really come to."""
        claims = [item for item in told if item.confirmed]
        if not claims:
            return list(told)
        self._examples += len(claims)
        stage = self._plan.stages[unit.stage]
        try:
            examples = self._files.examples(unit.batch, unit.stage)
        except FailedPrecondition:
            examples = np.empty((0, *inputs.shape[1:]), np.float32)
        if examples.shape != (len(claims), *inputs.shape[1:]):
            for item in claims:
                self._complain(item.row, stage.key, "its example is missing")
            return [replace(item, confirmed=False) for item in told]
        places = [item.row - self._plan.rows(unit.batch).start for item in claims]
        labels = np.array([samples[place].label for place in places], np.int64)
        found = await answers(self._worker, info, examples)
        assert info.bounds is not None
        kept = {}
        for claim, seen, example in zip(
            claims, _seen(claims, examples, inputs[places], labels, found), examples, strict=True
        ):
            kept[claim.row], complaints = judge_outcome(stage, claim, seen, example, info.bounds)
            self._complaints += complaints
            self._confirmed += seen.confirmed
        return [kept[item.row] if item.confirmed else item for item in told]

    def _check_document(self, samples: Sequence[Sample], outcomes: Sequence[Outcome]) -> None:
        told = self._told.findings
        digest = digest_of_set([sample.digest for sample in samples])
        if told.complete and digest != told.audit.origin.data_sha256:
            self._complain(None, "", "the samples are not those of the report's data_sha256")
        found = replace(told, samples=tuple(samples), outcomes=tuple(outcomes))
        for row in _differing_lines(found, self._told.folder):
            self._complain(row, "", f"{tables.SAMPLES} does not say what its outcomes come to")
        rebuilt = document.build(found, self._told.document["files"])
        self._complaints += judge_document(
            document.lasting(self._told.document), document.lasting(rebuilt)
        )

    async def _check_page(self) -> None:
        if self._complaints:
            what = "what it is drawn from does not hold"
            self._notes.append(f"{bundle.HTML} was not compared: {what}")
            return
        complaints, notes = await in_thread(lambda: judge_page(self._told))
        self._complaints += complaints
        self._notes += notes

    async def _again(self, info: ModelInfo, batch: int) -> None:
        """Run a batch's attacks again, each on what the report says that it met."""
        runner = UnitRunner(self._worker, info, self._spec, self._plan)
        samples, known = self._samples[batch], self._outcomes.get(batch, ())
        inputs = self._inputs(batch)
        if inputs is None:
            return
        state = BatchState(
            rows=self._plan.rows(batch),
            labels=np.array([sample.label for sample in samples], np.int64),
            given=(),
            inputs=np.array(inputs),
            samples=samples,
        )
        for unit in self._plan.units():
            stage = self._plan.stages[unit.stage]
            if unit.batch != batch or stage.kind is StageKind.CLEAN:
                continue
            told = [item for item in known if item.stage == stage.key]
            found = await runner.run(unit, state, lambda done, total: None)
            wins = {item.row: item for item in found.outcomes if item.confirmed}
            stood = {item.row for item in told if not item.confirmed}
            for row in sorted(wins.keys() & stood):
                self._complain(row, stage.key, "it stands in the report and falls when run again")
            if {item.row for item in found.outcomes} != {item.row for item in told}:
                self._complain(None, stage.key, f"batch {batch} was attacked on other samples")
            state = replace(state, outcomes=(*state.outcomes, *told))
        self._repeated += len(samples)

    def _complain(self, sample: int | None, stage: str, problem: str) -> None:
        self._complaints.append(Complaint(sample, stage, problem))


def _seen(
    claims: Sequence[Outcome],
    examples: Rows,
    inputs: Rows,
    labels: NDArray[np.int64],
    found: Answers,
) -> Iterator[Outcome]:
    """The outcomes that the examples really are."""
    margins = found.margins(labels)
    left = (found.decisions != labels) & ~(margins <= 0)  # without scores the margin is NaN
    change = (examples.astype(np.float64) - inputs.astype(np.float64)).reshape(len(claims), -1)
    for place, claim in enumerate(claims):
        delta = change[place]
        yield replace(
            claim,
            confirmed=bool(left[place]),
            digest=digest_of(examples[place], int(labels[place])),
            decision=int(found.decisions[place]),
            confidence=float(found.confidences[place]),
            margin=float(margins[place]),
            l0=float(np.count_nonzero(delta)),
            l1=float(np.abs(delta).sum()),
            l2=float(np.sqrt(np.square(delta).sum())),
            linf=float(np.abs(delta).max(initial=0.0)),
        )


def _differing_lines(found: Findings, folder: Path) -> Iterator[int]:
    """The samples whose line in a bundle's table is not what findings give."""
    with TemporaryDirectory() as made:
        tables.write_samples(found, path := Path(made) / tables.SAMPLES)
        with path.open("rb") as ours, (folder / tables.SAMPLES).open("rb") as theirs:
            for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
                if one != other:
                    yield found.samples[max(0, number - 1)].row


def _by_batch(items: Sequence[T], plan: Plan) -> dict[int, list[T]]:
    found: dict[int, list[T]] = {}
    for item in items:
        found.setdefault(item.row // plan.batch_size, []).append(item)
    return found
