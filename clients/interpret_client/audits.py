"""What is known of an audit: plain values, no protobuf."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FINAL = ("cancelled", "failed", "finished")
FORMS = ("html", "json", "csv", "parquet", "bundle")


@dataclass(frozen=True)
class AuditPlan:
    """What an audit tries: every stage on every batch of samples.

    Args:
        samples: how many.
        batch_size: samples of a batch, but for the last one.
        stages: in turn, such as `clean` and `linf:0.3:square`.
        notes: what of the suite was left out, and why.
    """

    samples: int
    batch_size: int
    stages: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class AuditOrigin:
    """Which model and which data an audit's figures are about.

    Args:
        model: name of the model, whose file `model_sha256` identifies.
        manifest: the model's.
        input_shape: of one sample.
        bounds: of its values.
        labels: names of the classes, where the model has them.
        data: what the data set is called.
        data_sha256: over the digests of the report's samples; empty until the audit is finished.
        versions: of the server, the plugins that ran, and the packages that computed.
        device, precision: where and in which type.
    """

    model: str
    model_version: str
    model_sha256: str
    model_format: str
    manifest: Mapping[str, Any]
    input_shape: tuple[int, ...]
    bounds: tuple[float, float] | None
    classes: int
    labels: tuple[str, ...]
    data: str
    data_sha256: str
    versions: Mapping[str, str]
    device: str
    precision: str


@dataclass(frozen=True)
class AuditStep:
    """The stage that runs on a batch, and how many of the steps of its attack are done."""

    batch: int
    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Audit:
    """An audit as it stands.

    Args:
        id: unique on its server.
        state: `queued`, `running`, `cancelled`, `failed` or `finished`.
        error: why it failed, one sentence.
        spec: what was asked for, with every default filled in.
        plan: what is tried.
        origin: what the figures are about.
        done, total: stages on batches.
        samples, correct, standing: so far: tried, classified correctly, and not yet broken at the
            largest radius of any threat model.
        created, started, finished: seconds since the epoch, or None.
        seconds: of computing so far.
        current: what runs now, or None.
    """

    id: str
    state: str
    error: str
    spec: Mapping[str, Any]
    plan: AuditPlan
    origin: AuditOrigin
    done: int
    total: int
    samples: int
    correct: int
    standing: int
    created: float
    started: float | None
    finished: float | None
    seconds: float
    current: AuditStep | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more happens unless it is resumed."""
        return self.state in FINAL

    @property
    def clean_accuracy(self) -> float | None:
        """Share of the samples so far that are classified correctly; None before the first."""
        return self.correct / self.samples if self.samples else None

    @property
    def robust_accuracy(self) -> float | None:
        """Share of the samples so far that stand at the largest radius; None before the first."""
        return self.standing / self.samples if self.samples else None
