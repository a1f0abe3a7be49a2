"""What the metrics of attributions have in common: whom they judge, and how a model scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from interpret_plugins.attribution.perturbation import changeable, channel_axis, joined
from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Classifier,
    InvalidRequest,
    Job,
    Kind,
    Method,
    Params,
    TargetKind,
    Targets,
)

GIVEN = "attributions"
USES: Mapping[str, Kind] = MappingProxyType({"method": Kind.ATTRIBUTION})
TENSORS: Mapping[str, AuxTensor] = MappingProxyType(
    {
        GIVEN: AuxTensor(
            "Attributions to judge in place of those that `method` would give, of the input's "
            "shape or without its axis of channels.",
            like_input=False,
        )
    }
)
_CONSTANT = "the attribution is the same everywhere, so that it puts nothing before anything else"


class JudgeParams(Params):
    """What every metric of attributions can be told."""

    method: Method = Field(
        Method(plugin="saliency"),
        description="The attribution that is judged: its name, or its name and parameters.",
    )


class ScoringParams(JudgeParams):
    """What every metric that changes inputs and scores them can be told."""

    score: Literal["probability", "logit"] = Field(
        "probability",
        description="What is measured for a class: its softmax probability, or its logit. Other "
        "targets are measured by their own value.",
    )


def judged(model: Classifier, batch: Batch, params: JudgeParams, job: Job) -> Tensor:
    """The attributions that are judged, `(N, ...)`: those of the request, else the method's.

    Raises:
        InvalidRequest: the method gives none.
    """
    if GIVEN in batch.tensors:
        return batch.tensors[GIVEN]
    return explain(job, params.method, model, batch, warn=True)


def explain(
    job: Job, method: Method, model: Classifier, batch: Batch, *, warn: bool = False
) -> Tensor:
    """What a method attributes, `(N, ...)`.

    Raises:
        InvalidRequest: it gives no attributions.
    """
    result = job.plugin(method).run(model, batch, warn=warn)
    found = result if isinstance(result, Mapping) else vars(result)
    if not isinstance(found.get(GIVEN), Tensor):
        raise InvalidRequest.field(
            f"{method.field}.plugin", f"{method.plugin} gives no tensor `attributions`"
        )
    attributions: Tensor = found[GIVEN].detach()
    return attributions


def per_value(model: Classifier, batch: Batch, attributions: Tensor, params: JudgeParams) -> Tensor:
    """Attributions `(N, *row)`; those without channels are shared evenly among the channels.

    Raises:
        InvalidRequest: they do not fit the inputs.
    """
    row = tuple(batch.inputs.shape[1:])
    found = tuple(attributions.shape[1:])
    if found == row:
        return attributions
    axis = None if model.packing is not None else channel_axis(model, row)
    if axis is not None and found == _without(row, axis):
        return (attributions / row[axis]).unsqueeze(axis + 1).expand(len(batch), *row)
    field = f"tensors.{GIVEN}" if GIVEN in batch.tensors else f"{params.method.field}.plugin"
    raise InvalidRequest.field(
        field, f"attributions of shape {list(found)} do not fit an input of {list(row)}"
    )


@dataclass(frozen=True)
class Positions:
    """Where an input can be changed: places, with all their channels; tokens; or single values.

    Args:
        number: `row` int64, the position of each value; -1 for what is only carried along.
        count: how many there are.
    """

    number: Tensor
    count: int

    @classmethod
    def of(cls, model: Classifier, row: tuple[int, ...]) -> "Positions":
        """The positions of an input row."""
        parts, first = [], 0
        for shape in changeable(model, row):
            axis = channel_axis(model, shape)
            places = shape if axis is None else _without(shape, axis)
            last = first + math.prod(places)
            number = torch.arange(first, last, dtype=torch.float64).reshape(places)
            if axis is not None:
                number = number.unsqueeze(axis).expand(shape)
            parts.append(number.unsqueeze(0))
            first = last
        number = joined(model, row, parts, -1)[0]
        return cls(number.to(model.device, torch.int64), first)

    def sums(self, values: Tensor) -> Tensor:
        """The sum of `values` `(N, *row)` over each position, `(N, count)` float64."""
        index = self.number.flatten()
        index = torch.where(index < 0, self.count, index).expand(len(values), -1)
        sums = values.new_zeros(len(values), self.count + 1, dtype=torch.float64)
        return sums.scatter_add_(1, index, values.flatten(1).double())[:, :-1]

    def ranks(self, values: Tensor, job: Job) -> Tensor:
        """The places of positions in descending order of `values` `(N, *row)`, `(N, count)`.

        Equal ones stay in the order of the input. Rows of one value are warned about.
        """
        sums = self.sums(values)
        constant = (sums == sums[:, :1]).all(1)
        if constant.any() and self.count > 1:
            job.warn(constant, _CONSTANT)
        return descending_ranks(sums)

    def where(self, chosen: Tensor) -> Tensor:
        """A choice of positions `(P, count)` bool as one of values, `(P, *row)`."""
        index = self.number.flatten()
        found = chosen[:, index.clamp(min=0)] & (index >= 0)
        return found.reshape(len(chosen), *self.number.shape)


def descending_ranks(values: Tensor) -> Tensor:
    """The place of each of `values` `(N, M)` in its row's descending order, from 0, int64.

    Equal ones stay in order.
    """
    order = torch.sort(values, dim=1, descending=True, stable=True).indices
    return order.argsort(dim=1)


class Pass(NamedTuple):
    """Some variants of the rows that go through the model together.

    Args:
        rows: `(P,)`, whose variant it is; ascending.
        numbers: `(P,)`, which of the row's variants.
    """

    rows: Tensor
    numbers: Tensor


def passes(job: Job, batch: Batch, variants: int) -> list[Pass]:
    """Every variant of every row, in passes of at most `job.max_rows`."""
    place = torch.arange(len(batch) * variants, device=batch.inputs.device)
    parts = torch.split(place, max(1, job.max_rows))
    return [Pass(part // variants, part % variants) for part in parts]


def scores(model: Classifier, x: Tensor, targets: Targets, score: str) -> Tensor:
    """The targets' values or probabilities at `x`, `(N,)` float64."""
    return scores_and_logits(model, x, targets, score)[0]


@torch.no_grad()
def scores_and_logits(
    model: Classifier, x: Tensor, targets: Targets, score: str
) -> tuple[Tensor, Tensor | None]:
    """The same, and the logits `(N, K)` where the target is of them."""
    values, logits = model.objective(x, targets)
    if score == "probability" and logits is not None and targets.kind is TargetKind.CLASS:
        values = targets.select(logits.double().softmax(1))
    return values.double(), logits


def subset(batch: Batch, rows: Tensor, inputs: Tensor) -> Batch:
    """Variants `inputs` `(P, *row)` of some rows `(P,)`, with all else of those rows."""
    return Batch(
        inputs,
        batch.targets.take(rows),
        tuple(batch.seeds[row] for row in rows.tolist()),
        {name: tensor[rows] for name, tensor in batch.tensors.items()},
        batch.has_inputs,
    )


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    return tuple(size for place, size in enumerate(shape) if place != axis)
