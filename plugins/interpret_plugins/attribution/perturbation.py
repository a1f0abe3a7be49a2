"""Scores of inputs of which something is hidden: what occlusion, ablation and RISE share."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    Batch,
    Capability,
    Classifier,
    InvalidRequest,
    Job,
    Params,
    TargetKind,
    Targets,
)

MAX_VARIANTS = 100_000  # of one row, where each has a score of its own

_CHANNEL_AXIS = {"CHW": 0, "CL": 0, "HWC": -1}
_UNCHANGED = (
    "nothing that was hidden changes the target's score, which says nothing about what matters"
)


class PerturbationParams(Params):
    """What every method that hides parts of the input can be told."""

    fill: Literal["mean", "zero", "lower", "upper"] | float = Field(
        "mean",
        description="What hidden values become: the manifest's mean (mid-range where it has none), "
        "zero, a bound of the input, or a number, in the model's bounds.",
    )
    score: Literal["logit", "probability"] = Field(
        "logit",
        description="What is measured for a class: its logit, or its softmax probability. Other "
        "targets are measured by their own value.",
    )


class Pass(NamedTuple):
    """Some variants that went through the model together.

    Args:
        rows: `(P,)`, whose variant it is; ascending.
        numbers: `(P,)`, which of the row's variants.
        kept: `(P, *row)`, the share of each value that was kept; or bool.
        scores: `(P,)` float64.
    """

    rows: Tensor
    numbers: Tensor
    kept: Tensor
    scores: Tensor


class Hiding:
    """A batch whose rows are scored with parts of them hidden.

    Args:
        model: that scores.
        batch: what is explained.
        params: how hidden values are filled, and what is measured.

    Attributes:
        before: `(N,)` float64, the scores of the whole rows; there once a variant was scored.
        logits: `(N, K)` of the whole rows, or None where the target lies in a layer.
    """

    before: Tensor
    logits: Tensor | None

    def __init__(self, model: Classifier, batch: Batch, params: PerturbationParams) -> None:
        kind = batch.targets.kind
        if params.score == "probability" and kind is not TargetKind.CLASS:
            raise InvalidRequest.field(
                "params.score", f"only a class has a probability; a {kind} is measured by its value"
            )
        self._model, self._batch, self._score = model, batch, params.score
        self._fill = fill_value(model, params.fill)

    def passes(
        self, job: Job, counts: Sequence[int], kept: Callable[[Tensor, Tensor], Tensor]
    ) -> Iterator[Pass]:
        """Score every variant of every row; each pass through the model is a reported step.

        Args:
            job: reports, and says how many rows go through the model at once.
            counts: variants of each row.
            kept: from rows and numbers `(P,)` to shares `(P, *row)`, in [0, 1] or bool.
        """
        x, size = self._batch.inputs, job.max_rows
        each = torch.tensor(counts, device=x.device)
        ends = each.cumsum(0)
        total = sum(counts)
        for step in job.track(1 + -(-total // size)):
            if not step:
                self.before, self.logits = self._scores(x, self._batch.targets)
                continue
            place = torch.arange((step - 1) * size, min(step * size, total), device=x.device)
            row = torch.searchsorted(ends, place, right=True)
            number = place - (ends - each)[row]
            share, hidden = kept(row, number), x.index_select(0, row)
            if share.dtype is torch.bool:
                torch.where(share, hidden, self._fill, out=hidden)
            else:
                torch.lerp(self._fill, hidden, share.to(x.dtype), out=hidden)
            scores, _ = self._scores(hidden, self._batch.targets.take(row))
            yield Pass(row, number, share, scores)

    def drops(
        self,
        job: Job,
        counts: Sequence[int],
        kept: Callable[[Tensor, Tensor], Tensor],
        shown: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """How far each row's score falls at each variant, `(N, max(counts))` float64; else zero.

        Args:
            job: reports, and says how many rows go through the model at once.
            counts: variants of each row.
            kept: from rows and numbers `(P,)` to shares `(P, *row)` in [0, 1].
            shown: from the falls so far to the attributions that are previewed.
        """
        shape = (len(self._batch), max(counts))
        drops = torch.zeros(shape, dtype=torch.float64, device=self._model.device)
        for rows, numbers, _, scores in self.passes(job, counts, kept):
            drops[rows, numbers] = self.before[rows] - scores
            if shown is not None:
                job.preview(attributions=partial(shown, drops))
        warn_unchanged(job, ~drops.any(1))
        return drops

    @torch.no_grad()
    def _scores(self, x: Tensor, targets: Targets) -> tuple[Tensor, Tensor | None]:
        values, logits = self._model.objective(x, targets)
        if self._score == "probability" and logits is not None:
            values = targets.select(logits.double().softmax(1))
        return values.double(), logits


def warn_unchanged(job: Job, unchanged: Tensor) -> None:
    """Warn about the rows `(N,)` bool whose score no variant changes."""
    if unchanged.any():
        job.warn(unchanged, _UNCHANGED)


def fill_value(model: Classifier, fill: str | float) -> Tensor:
    """What hidden values become; broadcasts to a row.

    Raises:
        InvalidRequest: a bound is asked for, and the manifest states none.
    """
    if fill == "mean":
        return model.centre
    if fill in ("lower", "upper"):
        if Capability.BOUNDS not in model.capabilities:
            raise InvalidRequest.field("params.fill", model.lacking[Capability.BOUNDS])
        fill = getattr(model.bounds, str(fill))
    value = 0.0 if fill == "zero" else float(fill)
    return torch.tensor(value, dtype=model.dtype, device=model.device)


def changeable(model: Classifier, row: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The shapes of what may be hidden of an input row: the row itself, or each packed input."""
    if model.packing is None:
        return (row,)
    free = model.packing.free(row[0])
    return tuple(part.shape(free) for part in model.packing.parts if not part.fixed)


def joined(
    model: Classifier, row: tuple[int, ...], values: Sequence[Tensor], fixed: float
) -> Tensor:
    """Values `(N, *shape)`, one for each of `changeable`, as `(N, *row)`.

    Args:
        model: whose rows these are.
        row: shape of an input row.
        values: of what may be hidden.
        fixed: the value of what a row only carries along.
    """
    if model.packing is None:
        return values[0]
    given, free = iter(values), model.packing.free(row[0])
    parts = [
        values[0].new_full((len(values[0]), *part.shape(free)), fixed)
        if part.fixed
        else next(given)
        for part in model.packing.parts
    ]
    return model.packing.pack(parts, values[0].dtype)


def channel_axis(model: Classifier, shape: tuple[int, ...]) -> int | None:
    """The axis of channels, or of an embedding's values, in one of `changeable`; None if none."""
    if model.packing is None and model.input_layout in _CHANNEL_AXIS:
        return _CHANNEL_AXIS[model.input_layout] % len(shape)
    return len(shape) - 1 if model.encoded and len(shape) == 2 else None


def sizes_per_axis(
    name: str, given: int | Sequence[int], shape: tuple[int, ...], channel: int | None
) -> tuple[int, ...]:
    """A size for every axis of `shape`; an axis of channels that none is given for has it whole.

    Raises:
        InvalidRequest: naming `params.<name>`.
    """
    axes = [axis for axis in range(len(shape)) if axis != channel]
    sizes = [given] * len(axes) if isinstance(given, int) else list(given)
    if len(sizes) == len(shape):
        return tuple(sizes)
    if len(sizes) != len(axes):
        counts = " or ".join(str(count) for count in sorted({len(axes), len(shape)}))
        raise InvalidRequest.field(
            f"params.{name}", f"{len(sizes)} sizes, where an input of {list(shape)} takes {counts}"
        )
    found = dict(zip(axes, sizes, strict=True))
    return tuple(found.get(axis, size) for axis, size in enumerate(shape))
