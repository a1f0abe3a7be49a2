"""The inputs, and the parts of them, that excite a unit most."""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import (
    Batch,
    Classifier,
    Job,
    Kind,
    Params,
    Plugin,
    Rows,
    TargetKind,
    Targets,
    group_output,
    metric,
)

from .parts import parts
from .receptive import ReceptiveFields, crops


class TopActivatingParams(Params):
    k: int = Field(9, ge=1, le=1000, description="How many inputs are found for each unit.")


@dataclass(frozen=True)
class TopActivatingResult:
    activation: Tensor = metric("The unit's largest value in the row.")
    rank: Tensor = metric("The row's place among those with the same target, 0 for the strongest.")
    indices: Tensor = group_output(
        "The M strongest rows, `(M,)` int64: `k`, or fewer where there are fewer, of every unit, "
        "strongest first; units in the order in which rows name them."
    )
    values: Tensor = group_output("The unit's value there, `(M,)`.")
    positions: Tensor = group_output(
        "Where in the layer, `(M, rank)` int64: the index of a neuron; of a class its number."
    )
    boxes: Tensor = group_output(
        "The receptive field there: first place, and the one after the last, along every axis of "
        "the input but the channels', `(M, axes, 2)` int64."
    )
    crops: Tensor = group_output(
        "What the unit saw there, `(M, ...)`, all of the largest field's size; zeros beyond the "
        "edge of an input."
    )


class TopActivating(Plugin[TopActivatingParams, TopActivatingResult]):
    """The inputs of a data set, and the parts of them, that excite a unit most.

    The data set is the request's inputs. A channel's value in an input is the largest over all
    positions, and the crop is what its neuron at that position sees: its receptive field, exactly,
    whatever the weights. Neurons and classes are taken as they are; a class sees the whole input.
    One target for all rows asks about one unit. Where rows name different ones, each unit is
    searched for among its own rows; without a target, each class among those predicted to be it.

    Source: Girshick, Donahue, Darrell & Malik 2014, "Rich Feature Hierarchies for Accurate Object
    Detection and Semantic Segmentation", section 3.1.
    """

    name = "top_activating"
    kind = Kind.INTERNALS
    rows = Rows.COLLECTION
    target_kinds = frozenset({TargetKind.CLASS, TargetKind.CHANNEL, TargetKind.NEURON})

    def run(
        self, model: Classifier, batch: Batch, params: TopActivatingParams, job: Job
    ) -> TopActivatingResult:
        inputs, targets = batch.inputs, batch.targets
        fields = ReceptiveFields(model, targets.layer, tuple(inputs.shape[1:]))
        reading = parts(len(batch), job.max_rows)
        looking = parts(fields.passes, job.max_rows)
        found: list[tuple[Tensor, Tensor]] = []
        seen: list[Tensor] = []
        for step in job.track(len(reading) + len(looking)):
            if step < len(reading):
                part = reading[step]
                rows = slice(part.start, part.stop)
                found.append(_strongest(model, inputs[rows], targets.take(rows)))
            if step == len(reading) - 1:
                values, positions = map(torch.cat, zip(*found, strict=True))
                rank, chosen = _ranked(values, targets, params.k)
            if step >= len(reading):
                part = looking[step - len(reading)]
                seen.append(fields.seen(inputs[chosen[0]], positions[chosen], part))
        boxes = fields.boxes(seen, len(chosen))
        return TopActivatingResult(
            values,
            rank,
            chosen,
            values[chosen],
            positions[chosen],
            boxes,
            crops(inputs[chosen], boxes, fields.axes),
        )


@torch.no_grad()
def _strongest(model: Classifier, x: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Every row's value of its unit `(N,)`, and where it is `(N, rank)`."""
    if targets.layer is None:
        values = model(x)
    else:
        (values,) = model.activations(x, [targets.layer])
    if targets.kind is not TargetKind.CHANNEL or values.dim() == 2:
        return targets.select(values), targets.index
    rows = torch.arange(len(values), device=values.device)
    channel = targets.index[:, 0]
    maps = values[rows, channel]
    largest, place = maps.flatten(1).max(1)
    index = torch.unravel_index(place, maps.shape[1:])
    return largest, torch.stack([channel, *index], 1)


def _ranked(values: Tensor, targets: Targets, k: int) -> tuple[Tensor, Tensor]:
    """Every row's rank among those of its unit `(N,)`, and the k strongest rows of each unit."""
    rank = torch.zeros(len(values), dtype=torch.int64, device=values.device)
    members: dict[tuple[int, ...], list[int]] = {}
    for row, unit in enumerate(targets.index.tolist()):
        members.setdefault(tuple(unit), []).append(row)
    chosen = []
    for rows in members.values():
        own = torch.tensor(rows, device=values.device)
        order = own[values[own].argsort(descending=True, stable=True)]
        rank[order] = torch.arange(len(order), device=values.device)
        chosen.append(order[:k])
    return rank, torch.cat(chosen)
