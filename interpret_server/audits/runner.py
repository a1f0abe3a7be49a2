"""Runs the units of an audit: one stage on one batch, the same bits whenever it is run."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..data.arrays import as_array
from ..engine.api import Array, ModelInfo, Worker
from ..errors import InvalidRequest
from . import phrases
from .calls import Answers, Report, answers, attack
from .confirmation import confirm
from .files import Given
from .plan import Plan, Stage, StageKind, Unit
from .records import Outcome, Rows, Sample, UnitResult, Warned, digest_of
from .spec import MAX_SEED, AuditSpec
from .standing import due, norms_of

_ANOTHER = 1 << 40  # seed
_ROUNDING = 1e-4  # of the largest score; a file that answers by chance differs by more


@dataclass(frozen=True)
class BatchState:
    """A batch as its finished units have left it.

    Args:
        rows: the numbers of its N samples.
        labels: `(N,)`, their classes.
        given: the rows as they were sent.
        inputs: `(N, *input_shape)`, as plugins see them; None before the clean stage.
        samples: N of them; none before the clean stage.
        outcomes: of all finished units, in order.
    """

    rows: range
    labels: NDArray[np.int64]
    given: Given
    inputs: Rows | None = None
    samples: Sequence[Sample] = ()
    outcomes: Sequence[Outcome] = ()


class UnitRunner:
    """Runs units on a worker; knows nothing of storage.

    A unit's result depends on its batch, the plan and the seed alone: its calls share no batch with
    others, sample i draws from seed + i, and which rows are attacked follows from the outcomes of
    earlier units. Running it again gives the same result, but for `seconds`.

    Args:
        worker: that has the model.
        model: as it is loaded there.
        spec: of the audit.
        plan: of the audit.
    """

    def __init__(self, worker: Worker, model: ModelInfo, spec: AuditSpec, plan: Plan) -> None:
        assert model.bounds is not None
        self._worker, self._model, self._spec, self._plan = worker, model, spec, plan
        self._bounds = model.bounds
        self._norms = norms_of(plan)
        self._named = {item.label: f"attacks[{place}]" for place, item in enumerate(spec.attacks)}

    async def run(self, unit: Unit, batch: BatchState, progress: Report) -> UnitResult:
        """Do a stage on a batch; cancelling this ends its call at once.

        Args:
            unit: which.
            batch: as earlier units have left it.
            progress: told how many steps of the attack are done, of how many.

        Raises:
            InterpretError: of the worker.
        """
        began, stage = time.perf_counter(), self._plan.stages[unit.stage]
        if stage.kind is StageKind.CLEAN:
            done = await self._clean(unit.batch, stage, batch)
        else:
            done = await self._attack(unit.batch, stage, batch, progress)
        return replace(done, seconds=time.perf_counter() - began)

    async def _clean(self, number: int, stage: Stage, batch: BatchState) -> UnitResult:
        """The file's answers to the samples, as the float32 values that are kept."""
        found = await self._ask(batch.given)
        inputs = found.inputs
        if not _same(batch.given, inputs):
            found = await self._ask(inputs)
        warned = {phrases.DISAGREES: found.served != found.decisions}
        if number == 0:
            at_random = "deterministic" not in self._model.capabilities
            differ = _differ(found, await self._ask(inputs, seed=_ANOTHER))
            warned[phrases.ANSWERS_AT_RANDOM] = differ | at_random
        return UnitResult(
            batch=number,
            stage=stage.key,
            samples=await asyncio.to_thread(_samples, batch, inputs, found),
            examples=inputs,
            warnings=_warnings(warned, batch.rows),
        )

    async def _attack(
        self, number: int, stage: Stage, batch: BatchState, progress: Report
    ) -> UnitResult:
        assert batch.inputs is not None
        places = self._places(stage, batch)
        if not places:
            return UnitResult(batch=number, stage=stage.key)
        rows = [batch.rows[place] for place in places]
        inputs, labels = np.asarray(batch.inputs[places]), batch.labels[places]
        seeds = [(self._spec.seed + row) % (MAX_SEED + 1) for row in rows]
        try:
            found = await attack(
                self._worker, self._model, stage, inputs, labels.tolist(), seeds, progress
            )
        except InvalidRequest as error:  # of parameters that do not suit each other, or the model
            raise error.within(self._named.get(stage.attack, "suite")) from None
        claims = np.flatnonzero(found.success)
        judged = await confirm(
            self._ask,
            stage,
            self._bounds,
            inputs[claims],
            found.adversarial[claims],
            labels[claims],
        )
        outcomes = [
            Outcome(row, stage.key, claimed=False, confirmed=False, queries=spent)
            for row, spent in zip(rows, found.queries.tolist(), strict=True)
        ]
        for place, claim in zip(claims.tolist(), judged, strict=True):
            outcomes[place] = claim.outcome(rows[place], stage.key, outcomes[place].queries)
        warned = {message: _mask(about, len(rows)) for message, about in found.warnings}
        unconfirmed = [claim.inside and not claim.leaves for claim in judged]
        outside = [not claim.inside for claim in judged]
        warned[phrases.UNCONFIRMED] = _mask(claims[unconfirmed], len(rows))
        warned[phrases.OUTSIDE] = _mask(claims[outside], len(rows))
        examples = [claim.example for claim in judged if claim.confirmed]
        return UnitResult(
            batch=number,
            stage=stage.key,
            outcomes=tuple(outcomes),
            examples=np.stack(examples) if examples else None,
            warnings=_warnings(warned, rows),
        )

    def _places(self, stage: Stage, batch: BatchState) -> list[int]:
        """The samples that a stage has work on: classified correctly, and not broken as yet."""
        rows = due(stage, batch.samples, batch.outcomes, self._norms)
        return [place for place, sample in enumerate(batch.samples) if sample.row in rows]

    async def _ask(self, rows: Given | Rows, seed: int = 0) -> Answers:
        return await answers(self._worker, self._model, rows, seed)


def _samples(batch: BatchState, inputs: Rows, found: Answers) -> tuple[Sample, ...]:
    return tuple(
        Sample(
            row=row,
            label=int(batch.labels[place]),
            digest=digest_of(inputs[place], int(batch.labels[place])),
            decision=int(found.decisions[place]),
            confidence=float(found.confidences[place]),
        )
        for place, row in enumerate(batch.rows)
    )


def _same(given: Given, inputs: Rows) -> bool:
    """Whether rows were sent as the values that are kept."""
    return (
        isinstance(given, Array)
        and given.dtype == "float32"
        and bytes(given.data) == bytes(as_array(inputs).data)
    )


def _differ(one: Answers, other: Answers) -> NDArray[np.bool_]:
    """Where two answers to the same rows differ by more than rounding."""
    differ: NDArray[np.bool_] = one.decisions != other.decisions
    if one.scores is not None and other.scores is not None:
        moved = np.abs(one.scores - other.scores).max(1)
        differ |= moved > _ROUNDING * np.abs(one.scores).max(1)
    return differ


def _mask(places: NDArray[np.int64] | Sequence[int], count: int) -> NDArray[np.bool_]:
    mask = np.zeros(count, bool)
    mask[list(places)] = True
    return mask


def _warnings(warned: Mapping[str, NDArray[np.bool_]], rows: Sequence[int]) -> tuple[Warned, ...]:
    """Sentences about the samples where a mask is true."""
    return tuple(
        Warned(message, tuple(rows[place] for place in np.flatnonzero(mask).tolist()))
        for message, mask in warned.items()
        if mask.any()
    )
