"""The served form against the file's own execution."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..engine.api import Verification
from ..errors import ModelRejected

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_REDUCED = 2e-2  # half precision is served in float32; a quantised value may round the other way
_INF = float("inf")
_SMALLEST = 1e-30  # logarithms of smaller probabilities are left out: they may be denormal


class Difference(NamedTuple):
    """The largest absolute difference, and the largest value of the reference."""

    absolute: float
    scale: float

    @property
    def relative(self) -> float:
        """The difference over the largest value; 0 where both are 0."""
        return self.absolute / self.scale if self.scale else self.absolute

    def join(self, other: "Difference") -> "Difference":
        """The larger of each."""
        return Difference(max(self.absolute, other.absolute), max(self.scale, other.scale))


def difference(ours: Tensor, reference: Tensor, *, floor: float = 0.0) -> Difference:
    """How far two tensors are apart; infinitely where one alone is not finite.

    Args:
        ours: any shape.
        reference: the same shape.
        floor: the smallest scale.
    """
    ours, reference = ours.detach().cpu().double(), reference.detach().cpu().double()
    if ours.shape != reference.shape:
        return Difference(_INF, 1.0)
    same = (ours == reference) | (ours.isnan() & reference.isnan())
    gap = torch.where(same, 0.0, (ours - reference).abs()).nan_to_num(nan=_INF, posinf=_INF)
    finite = reference[reference.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    return Difference(float(gap.max()) if gap.numel() else 0.0, max(largest, floor))


def tolerance(dtype: torch.dtype) -> float:
    """The relative difference that the arithmetic of a data type explains."""
    return _TOLERANCE.get(dtype, _REDUCED)


def agree(
    measured: Difference, dtype: torch.dtype, noise: Callable[[], float] = lambda: 0.0
) -> bool:
    """Whether a difference is within the tolerance, or within 4 times the network's own noise."""
    if measured.relative == _INF:
        return False
    return measured.relative <= tolerance(dtype) or measured.relative <= 4 * noise()


def float32_noise(module: nn.Module, x: Tensor) -> float:
    """The relative difference between a module in float32 and itself in float64.

    0 where the module does not run in float64.
    """
    with torch.no_grad():
        try:
            exact = copy.deepcopy(module).double()(x.double())
            return difference(module(x), exact).relative
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return 0.0


def compare(logits: Tensor, reference: Tensor, source: str) -> Difference:
    """Our logits against the output that the file gives.

    Probabilities are compared by their logarithms, so that a saturated softmax hides nothing.

    Args:
        logits: `(N, K)`.
        reference: the file's output, `(N, K)`, or `(N, 1)` where K is 2 and the file gives one
            number; class indices `(N, 1)` for `argmax` and `classes`.
        source: what the logits were recovered from.
    """
    reference = reference.detach().double()
    logits = logits.detach().double().to(reference.device)
    if source in ("argmax", "classes"):
        return difference(logits.argmax(1), reference.reshape(-1))
    single = reference.shape[1] == 1
    ours = logits[:, 1:] - logits[:, :1] if single else logits
    if source == "sigmoid" or (single and source == "probabilities"):
        return difference(ours.sigmoid(), reference)
    if source == "log_softmax":
        return difference(ours.log_softmax(1), reference, floor=1.0)
    if source in ("softmax", "probabilities"):
        ours = ours.log_softmax(1) if source == "softmax" else ours
        shown = (reference > _SMALLEST) | ~reference.isfinite()
        return difference(ours[shown], reference[shown].log(), floor=1.0)
    return difference(ours, reference)


def verify(
    logits: Callable[[Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
    batches: Sequence[Tensor],
    *,
    source: str,
    executor: str,
    dtype: torch.dtype,
    noise: Callable[[], float],
    where: Callable[[], str | None] = lambda: None,
) -> Verification:
    """Compare a served form with its file on several batches.

    Args:
        logits: the served form.
        reference: the file's own execution, as `compare` takes it.
        batches: inputs; every row counts.
        source: what the logits were recovered from.
        executor: what runs the file, for the report.
        dtype: the file's data type.
        noise: the network's own float32 noise, asked for only where the tolerance is exceeded.
        where: the first layer that differs, asked for only where the two differ.

    Raises:
        ModelRejected: they differ by more than rounding explains.
    """
    worst = Difference(0.0, 0.0)
    with torch.no_grad():
        for batch in batches:
            worst = worst.join(compare(logits(batch), reference(batch), source))
    if not agree(worst, dtype, noise):
        layer = where()
        first = "" if layer is None else f"; the first layer that differs is {layer}"
        raise ModelRejected(
            f"the loaded network differs from the file's own execution ({executor}) by "
            f"{worst.absolute:.3g}, {worst.relative:.2g} of the largest value, so it is not "
            f"served{first}"
        )
    return Verification(
        reference=executor,
        max_difference=worst.absolute,
        relative_difference=worst.relative,
        batch_sizes=tuple(len(batch) for batch in batches),
        inputs=sum(len(batch) for batch in batches),
    )
