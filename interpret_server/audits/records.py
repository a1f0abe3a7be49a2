"""What an audit finds: samples, outcomes and units, as they are stored, reported and replayed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from .plan import Plan
from .spec import AuditSpec

Rows = NDArray[np.float32]


class State(StrEnum):
    """Of an audit."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLED = "cancelled"  # it may be resumed
    FAILED = "failed"  # it may be resumed, once what it names is mended
    FINISHED = "finished"


@dataclass(frozen=True)
class Sample:
    """A sample, and what the original file answers to it.

    Args:
        row: its number in the data set, from 0.
        label: its true class.
        digest: `digest_of` its values and label.
        decision: the class that the original file answers.
        confidence: the softmax of the original's logits at `decision`; NaN where it gives none.
    """

    row: int
    label: int
    digest: str
    decision: int
    confidence: float

    @property
    def correct(self) -> bool:
        """Whether the original file classifies it correctly."""
        return self.decision == self.label


@dataclass(frozen=True)
class Outcome:
    """What a stage came to on a sample.

    Args:
        row: of the sample.
        stage: key of the stage.
        claimed: the attack said that it succeeded.
        confirmed: the original file, run by itself, answers another class than the label; only
            such an outcome has an example, distances and a decision.
        queries: forward passes that the attack spent; a gradient counts as two.
        digest: `digest_of` the example and the label; empty where there is none.
        decision: the class that the original answers to the example; -1 where there is none.
        confidence: of that decision.
        margin: by how much the original's score of `decision` exceeds that of the label; NaN where
            it gives no scores.
        l0, l1, l2, linf: of the change, in float64; NaN where there is no example.
    """

    row: int
    stage: str
    claimed: bool
    confirmed: bool
    queries: int
    digest: str = ""
    decision: int = -1
    confidence: float = float("nan")
    margin: float = float("nan")
    l0: float = float("nan")
    l1: float = float("nan")
    l2: float = float("nan")
    linf: float = float("nan")

    def distance(self, norm: str) -> float:
        """In a norm of a threat model."""
        return float(getattr(self, norm))


@dataclass(frozen=True)
class Warned:
    """A sentence about some samples."""

    message: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class UnitResult:
    """A unit that is done.

    Args:
        batch: number of the batch.
        stage: key of the stage.
        samples: of a clean stage; else none.
        outcomes: one for each sample that was attacked, in order of rows.
        examples: `(E, *input_shape)`, of the confirmed outcomes in their order; of a clean stage
            the samples' own values; None where there are none.
        warnings: of the attack.
        seconds: that the unit took.
    """

    batch: int
    stage: str
    samples: tuple[Sample, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    examples: Rows | None = None
    warnings: tuple[Warned, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class UnitRecord:
    """A stored unit, without its outcomes and examples."""

    batch: int
    stage: str
    warnings: tuple[Warned, ...]
    seconds: float


@dataclass(frozen=True)
class Origin:
    """Where an audit's figures come from; nothing in it changes from run to run.

    Args:
        model: name; `model_version`, `model_sha256`, `model_format` and the rest say which.
        manifest: the model's, as JSON text.
        input_shape: of one sample.
        bounds: of its values.
        labels: names of the classes, or none.
        data: what the data set is called.
        data_sha256: `digest_of_set` of the digests of the report's samples; empty until the
            audit is finished, as plugins see images and numbers of other types only then.
        versions: of the server, the plugins that ran, and the packages that computed.
        device, precision: where and in which type.
    """

    model: str
    model_version: str
    model_sha256: str
    model_format: str
    manifest: str
    input_shape: tuple[int, ...]
    bounds: tuple[float, float]
    classes: int
    labels: tuple[str, ...]
    data: str
    data_sha256: str
    versions: Mapping[str, str]
    device: str
    precision: str


@dataclass(frozen=True)
class Current:
    """The unit that runs, and how many of its steps are done."""

    batch: int
    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Audit:
    """An audit as it stands.

    Args:
        id: unique.
        state: see `State`.
        error: why it failed, one sentence.
        done, total: units.
        samples, correct, standing: so far: tried, classified correctly, and not yet broken at
            the largest radius of any threat model.
        created, started, finished: seconds since the epoch, or None.
        seconds: of computing so far.
        current: what runs now, where that is known.
    """

    id: str
    spec: AuditSpec
    plan: Plan
    origin: Origin
    state: State
    error: str = ""
    done: int = 0
    total: int = 0
    samples: int = 0
    correct: int = 0
    standing: int = 0
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    seconds: float = 0.0
    current: Current | None = None


@dataclass(frozen=True)
class Findings:
    """Everything that an audit found, for reports.

    Args:
        samples: in order of rows; of finished batches alone.
        outcomes: in order of units and rows.
        units: in order.
        complete: whether every unit is done; False where the budget ended it.
    """

    audit: Audit
    samples: Sequence[Sample] = ()
    outcomes: Sequence[Outcome] = ()
    units: Sequence[UnitRecord] = ()
    complete: bool = True


def digest_of(values: Rows, label: int) -> str:
    """SHA-256 of a sample's shape, float32 values (little-endian, C order) and label."""
    array = np.ascontiguousarray(values, dtype="<f4")
    head = f"{'x'.join(map(str, array.shape))}:{label}:".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


def digest_of_set(digests: Sequence[str]) -> str:
    """SHA-256 of the digests of all samples, in order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
