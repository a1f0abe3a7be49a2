"""What became of a hostile file, and whether that is allowed."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .bait import tells
from .kinds import CALM, TRIGGERED, HostileFile, honest

OK, HUNG, DIED = "OK", "HUNG", "DIED"
EPSILON = 0.125
SALIENT = 1  # the class that is explained
_LONGEST = 2000  # characters that an error may have
INPUTS = {"predict": CALM, "triggered": TRIGGERED, "saliency": CALM, "pgd": CALM}


@dataclass
class Step:
    """The end of one call.

    Args:
        code: `OK`, a gRPC status, `HUNG` or `DIED`.
        message: of an error.
        values: of an answer: logits, attributions or adversarial inputs.
        seconds: it took.
    """

    code: str
    message: str = ""
    values: Any = None
    seconds: float = 0.0


@dataclass
class Outcome:
    """The end of a file.

    Args:
        steps: `load`, and where that went well the calls of `INPUTS`, by name.
        steady: whether the server tells the model as deterministic.
        told: everything else that callers are told of the model.
        traces: sentences about what the model changed around itself.
    """

    steps: dict[str, Step] = field(default_factory=dict)
    steady: bool = True
    told: str = ""
    traces: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Outcome":
        """The inverse of `to_json`."""
        steps = {name: Step(**step) for name, step in values["steps"].items()}
        return cls(**values | {"steps": steps})

    def summary(self) -> str:
        """One line."""
        return " ".join(
            f"{name}={step.code}({step.seconds:.1f}s)" for name, step in self.steps.items()
        )

    @property
    def ended(self) -> bool:
        """Whether every call came to an end of its own."""
        return not {HUNG, DIED} & {step.code for step in self.steps.values()}


def faults(file: HostileFile, outcome: Outcome) -> list[str]:
    """One sentence for everything that must not be."""
    found = list(outcome.traces)
    if not outcome.told.isprintable():
        found.append("the model's description has control characters")
    if tells(outcome.told):
        found.append("the model's description tells the secret")
    for name, step in outcome.steps.items():
        if step.code == OK:
            found += _wrong(file, name, step, outcome.steady)
        else:
            found += [f"{name}: {fault}" for fault in untyped(step)]
    return found


def untyped(step: Step) -> list[str]:
    """What is wrong about an error; nothing where it is a sentence of a certain type."""
    if step.code in (HUNG, DIED, "INTERNAL", "UNKNOWN"):
        return [f"{step.code} {step.message[:300]!r}"]
    found = []
    if not step.message or len(step.message) > _LONGEST:
        found.append(f"an error of {len(step.message)} characters")
    if not step.message.isprintable():
        found.append(f"an error with control characters: {step.message[:200]!r}")
    if tells(step.message):
        found.append("an error that tells the secret")
    return found


def _wrong(file: HostileFile, name: str, step: Step, steady: bool) -> list[str]:
    if name not in INPUTS:
        return []
    x, values = INPUTS[name], np.asarray(step.values, np.float32)
    if file.right is None:
        return [f"{name}: a file without a steady answer counts as steady"] if steady else []
    if name == "pgd":
        near = values.shape == x.shape and np.abs(values - x).max() <= EPSILON + 1e-6
        return [] if near else ["pgd: the result is not near the input"]
    if name == "saliency":
        if file.right is not honest:
            return []
        right = np.broadcast_to(np.eye(4, dtype=np.float32)[SALIENT], x.shape)
    else:
        right = file.right(x)
    if values.shape != right.shape or not np.allclose(values, right, 1e-4, 1e-5, equal_nan=True):
        return [f"{name}: {values.ravel()[:8].tolist()} instead of {right.ravel()[:8].tolist()}"]
    return []
