"""The served form against the file's own execution."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..engine.api import Verification
from ..errors import ModelRejected

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_REDUCED = 2e-2  # half precision is served in float32; a quantised value may round the other way
_INF = float("inf")
_LEAST = 1e-3  # the scale of a row or class is at least this share of the batch's
_LINE = 10  # times the tolerance, in a row or class: executors round sums in their own order
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
    if not ours.numel():
        return Difference(0.0, floor)
    return Difference(float(_gap(ours, reference).max()), max(float(_size(reference).max()), floor))


def _gap(ours: Tensor, reference: Tensor) -> Tensor:
    """The difference of every value; infinite where one alone is not finite."""
    same = (ours == reference) | (ours.isnan() & reference.isnan())
    return torch.where(same, 0.0, (ours - reference).abs()).nan_to_num(nan=_INF, posinf=_INF)


def _size(values: Tensor) -> Tensor:
    """The magnitude of every value; 0 where it is not finite."""
    return torch.where(values.isfinite(), values.abs(), 0.0)


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

    0 where the module does not run in float64. Values that only one of the two can hold are left
    out: an overflow is no noise.
    """
    pair = _in_both_precisions(module, x)
    return 0.0 if pair is None else difference(*pair).relative


def float32_line_noise(module: nn.Module, x: Tensor, source: str) -> float:
    """As `float32_noise`, with every row and class by its own scale.

    Args:
        module: to logits `(N, K)`.
        x: its inputs.
        source: what the logits were recovered from; those that `compare` leaves out are left out.
    """
    pair = _in_both_precisions(module, x)
    if pair is None:
        return 0.0
    single, exact = pair
    least = math.log(_SMALLEST) if source == "probabilities" else -_INF
    shown = exact > least
    return worst_line(torch.where(shown, single, 0.0), torch.where(shown, exact, 0.0))


def _in_both_precisions(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | None:
    with torch.no_grad():
        try:
            exact = copy.deepcopy(module).double()(x.double())
            single = module(x).double()
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return None
    held = single.isfinite() & exact.isfinite()
    return torch.where(held, single, 0.0), torch.where(held, exact, 0.0)


def worst_line(ours: Tensor, reference: Tensor, floor: float = 0.0) -> float:
    """The largest difference of a row or column over the largest value of that row or column.

    Each counts as no smaller than a thousandth of the largest one, whose rounding it may share.

    Args:
        ours: `(N, K)`.
        reference: the same shape.
        floor: the smallest scale.
    """
    whole = difference(ours, reference, floor=floor)
    if ours.shape != reference.shape:
        return _INF
    if not whole.scale or whole.absolute == _INF:
        return whole.relative
    least = max(floor, _LEAST * whole.scale)
    ours, reference = ours.detach().cpu().double(), reference.detach().cpu().double()
    gap, size = _gap(ours, reference), _size(reference)
    scales = (size.amax(axis, keepdim=True).clamp(min=least) for axis in (0, 1))
    return max(float((gap / scale).max()) for scale in scales)


def compare(logits: Tensor, reference: Tensor, source: str) -> Difference:
    """Our logits against the output that the file gives.

    Probabilities are compared by their logarithms, so that a saturated softmax hides nothing.

    Args:
        logits: `(N, K)`.
        reference: the file's output, `(N, K)`, or `(N, 1)` where K is 2 and the file gives one
            number; class indices `(N, 1)` for `argmax` and `classes`.
        source: what the logits were recovered from.
    """
    ours, reference, floor = _comparable(logits, reference, source)
    return difference(ours, reference, floor=floor)


def _comparable(logits: Tensor, reference: Tensor, source: str) -> tuple[Tensor, Tensor, float]:
    """Both sides as `compare` takes them, and the smallest scale."""
    reference = reference.detach().double()
    logits = logits.detach().double().to(reference.device)
    if source in ("argmax", "classes"):
        return logits.argmax(1), reference.reshape(-1), 0.0
    if source == "values":
        return logits, reference, 0.0
    single = reference.shape[1] == 1
    ours = logits[:, 1:] - logits[:, :1] if single else logits
    if source == "sigmoid" or (single and source == "probabilities"):
        return ours.sigmoid(), reference, 0.0
    if source == "log_softmax":
        return ours.log_softmax(1), reference, 1.0
    if source in ("softmax", "probabilities"):
        ours = ours.log_softmax(1) if source == "softmax" else ours
        shown = (reference > _SMALLEST) | ~reference.isfinite()
        return torch.where(shown, ours, 0.0), torch.where(shown, reference.log(), 0.0), 1.0
    return ours, reference, 0.0


def _within(relative: float, limit: float, noise: Callable[[Tensor], float], batch: Tensor) -> bool:
    return relative < _INF and (relative <= limit or relative <= 4 * noise(batch))


def verify(
    logits: Callable[[Tensor], Tensor],
    reference: Callable[[Tensor], Tensor],
    batches: Sequence[Tensor],
    *,
    source: str,
    executor: str,
    dtype: torch.dtype,
    noise: Callable[[Tensor], float],
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
        noise: the network's own float32 noise on a batch, asked for only where the tolerance is
            exceeded.
        where: the first layer that differs, asked for only where the two differ.

    Raises:
        ModelRejected: they differ by more than rounding explains.
    """
    worst, of_line, agreed = Difference(0.0, 0.0), 0.0, True
    for batch in batches:
        with torch.no_grad():
            ours, theirs, floor = _comparable(logits(batch), reference(batch), source)
        measured = difference(ours, theirs, floor=floor)
        by_line = dtype in _TOLERANCE and ours.dim() == 2  # else the arithmetic is too coarse
        line = worst_line(ours, theirs, floor) if by_line else 0.0
        agreed &= _within(measured.relative, tolerance(dtype), noise, batch)
        agreed &= _within(line, _LINE * tolerance(dtype), noise, batch)
        worst, of_line = worst.join(measured), max(of_line, line)
    if not agreed:
        layer = where()
        told = f" ({of_line:.2g} of that in its row or class)" if of_line > worst.relative else ""
        first = "" if layer is None else f"; the first layer that differs is {layer}"
        raise ModelRejected(
            f"the loaded network differs from the file's own execution ({executor}) by "
            f"{worst.absolute:.3g}, {worst.relative:.2g} of the largest value{told}, so it is not "
            f"served{first}"
        )
    return Verification(
        reference=executor,
        max_difference=worst.absolute,
        relative_difference=worst.relative,
        batch_sizes=tuple(len(batch) for batch in batches),
        inputs=sum(len(batch) for batch in batches),
    )
