"""Reduced precision that a manifest asks for, and what it costs."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from ..errors import InvalidRequest
from .classifier import Capability, Classifier
from .manifest import Precision
from .products import PRODUCTS
from .sources import brief
from .targets import Targets
from .verification import Difference, difference

_AT_ONCE = 4  # rows of a gradient: it keeps every intermediate value
_FIELD = "manifest.precision"


@dataclass(frozen=True)
class Cost:
    """What a reduced precision changes, against the same network in float32.

    Args:
        rows: that were tried.
        logits: the largest difference, over the largest float32 logit.
        winners: rows whose predicted class changes.
        gradients: of every row whose predicted class has a gradient that is not zero: the norm (L2)
            of the difference over that of the float32 gradient.
        cosine: the smallest one between a row's gradients; 1 where there are none.
    """

    rows: int
    logits: float
    winners: int
    gradients: tuple[float, ...] = ()
    cosine: float = 1.0

    def told(self, precision: Precision) -> str:
        """A sentence for the model's owner."""
        share = f"{self.winners} of {self.rows}"
        text = (
            f"Matrix products and convolutions compute in {precision.value}; on the verification's "
            f"inputs that changes logits by up to {self.logits:.2g} of the largest, and the "
            f"predicted class of {share} rows"
        )
        if not self.gradients:
            return f"{text}."
        middle, most = median(self.gradients), max(self.gradients)
        return (
            f"{text}, and the input gradient of the predicted class by {middle:.2g} of its norm in "
            f"the median row and {most:.2g} at most (cosine at least {self.cosine:.4f})."
        )


def check_precision(
    precision: Precision, device: torch.device, form: str, dtypes: Collection[torch.dtype]
) -> None:
    """Refuse a reduced precision where it cannot be used.

    Args:
        precision: the manifest's word.
        device: that the model is to run on.
        form: as `ModelInfo` has it.
        dtypes: that the file and the served form compute in.

    Raises:
        InvalidRequest: naming `manifest.precision`.
    """
    if precision is Precision.FLOAT32:
        return
    if form == "runtime":
        why = "the model runs in onnxruntime, which computes as the file says"
    elif {*dtypes} != {torch.float32}:
        why = "the file computes in another type than float32"
    elif precision is Precision.TF32 and device.type != "cuda":
        why = f"the model runs on {device.type}, and TF32 is an arithmetic of CUDA devices"
    else:
        return
    raise _refusal(precision, why)


def reduce_precision(
    classifier: Classifier, precision: Precision, batches: Sequence[Tensor]
) -> list[str]:
    """Let a verified classifier compute in a reduced precision; what to tell users.

    Args:
        classifier: in float32, on its device.
        precision: the manifest's word.
        batches: inputs `(N, *input_shape)` to measure the cost on.

    Raises:
        InvalidRequest: naming `manifest.precision`: the network does not run in it, or no longer
            gives finite logits and gradients.
    """
    if precision is Precision.FLOAT32:
        return []
    repeats = Capability.DETERMINISTIC in classifier.capabilities
    expected = list(_answers(classifier, batches, None))
    winners = [answer.logits.argmax(1) for answer in expected]
    classifier.precision = precision
    try:
        found = list(_answers(classifier, batches, winners))
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise _refusal(precision, f"the network does not run in it ({brief(error)})") from error
    for ours, exact in zip(found, expected, strict=True):
        if _is_lost(ours.logits, exact.logits) or _is_lost(ours.gradients, exact.gradients):
            raise _refusal(precision, "some logits or gradients are then NaN or infinite")
    if not repeats:
        return [
            f"Matrix products and convolutions compute in {precision.value}; what that costs was "
            f"not measured, since the model's answers vary."
        ]
    return [_cost(found, expected).told(precision)]


@dataclass(frozen=True)
class _Answer:
    """On the CPU: logits `(N, K)`, and gradients `(N, size)` where there are any."""

    logits: Tensor
    gradients: Tensor | None


def _answers(
    classifier: Classifier, batches: Sequence[Tensor], winners: Sequence[Tensor] | None
) -> Iterator[_Answer]:
    """What plugins see of a classifier; the gradient is of `winners`, by default its own."""
    for position, batch in enumerate(batches):
        x = batch.to(classifier.device)
        with PRODUCTS.held(classifier.device, classifier.precision):
            with torch.no_grad():
                logits = classifier(x).cpu()
            gradients = None
            if Capability.GRADIENT in classifier.capabilities:
                wanted = logits.argmax(1) if winners is None else winners[position]
                parts = zip(torch.split(x, _AT_ONCE), torch.split(wanted, _AT_ONCE), strict=True)
                gradients = torch.cat([_gradient(classifier, *part) for part in parts])
        yield _Answer(logits, gradients)


def _gradient(classifier: Classifier, x: Tensor, winners: Tensor) -> Tensor:
    targets = Targets.classes(winners).to(classifier.device)
    return classifier.gradient(x, targets).inputs.flatten(1).cpu()


def _is_lost(ours: Tensor | None, exact: Tensor | None) -> bool:
    """Whether values that were finite no longer are."""
    if ours is None or exact is None:
        return False
    return bool((exact.isfinite() & ~ours.isfinite()).any())


def _cost(found: Sequence[_Answer], expected: Sequence[_Answer]) -> Cost:
    logits, rows, winners, cosine = Difference(0.0, 0.0), 0, 0, 1.0
    gradients: list[float] = []
    for ours, exact in zip(found, expected, strict=True):
        logits = logits.join(difference(ours.logits, exact.logits))
        rows += len(exact.logits)
        winners += int((ours.logits.argmax(1) != exact.logits.argmax(1)).sum())
        if ours.gradients is None or exact.gradients is None:
            continue
        a, b = ours.gradients.double(), exact.gradients.double()
        norms = b.norm(dim=1)
        told = (norms > 0) & norms.isfinite()
        a, b = a[told], b[told]
        gradients += ((a - b).norm(dim=1) / norms[told]).tolist()
        cosines = torch.nn.functional.cosine_similarity(a, b)
        cosine = min([cosine, *cosines.tolist()])
    return Cost(rows, logits.relative, winners, tuple(gradients), cosine)


def _refusal(precision: Precision, why: str) -> InvalidRequest:
    return InvalidRequest.field(
        _FIELD, f"{precision.value} cannot be used: {why}; leave the setting out"
    )
