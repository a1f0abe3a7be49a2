"""Localisation: how much of an attribution lies on the object."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from interpret_server.plugin import (
    AuxTensor,
    Batch,
    Classifier,
    Job,
    Kind,
    Plugin,
    metric,
    output,
)

from .judged import USES, Positions, descending_ranks, judged
from .masks import MASK, MaskParams, evidence, inside


class LocalisationParams(MaskParams):
    pass


@dataclass(frozen=True)
class LocalisationResult:
    energy: Tensor = metric(
        "Share of the attribution that lies on the object; 0 if there is none.", better="high"
    )
    rank_accuracy: Tensor = metric(
        "Share of the K largest positions on an object of K positions.", better="high"
    )
    iou: Tensor = metric(
        "Intersection over union of the object and the K largest positions.", better="high"
    )
    chance: Tensor = metric("The object's share of all positions: what a random map scores.")
    attributions: Tensor = output("What was judged, as its method gave it.")


class Localisation(Plugin[LocalisationParams, LocalisationResult]):
    """How much of an attribution, and of its largest positions, lies on the object of `mask`.

    With evidence E of each position (its attribution summed over channels, positive part or
    magnitude) and K positions on the object: `energy` is the sum of E on the object over the sum
    of E; `rank_accuracy` is the object's share of the K positions of largest E, and `iou` is
    `hits / (2 K - hits)` for the same hits. Positions without evidence never hit.

    Source: Wang et al. 2020, "Score-CAM" (energy-based pointing game); Arras, Osman & Samek 2022,
    "CLEVR-XAI" (relevance mass accuracy, the same number, and relevance rank accuracy).
    """

    name = "localisation"
    kind = Kind.METRIC
    uses: ClassVar[Mapping[str, Kind]] = USES
    tensors: ClassVar[Mapping[str, AuxTensor]] = MASK

    def run(
        self, model: Classifier, batch: Batch, params: LocalisationParams, job: Job
    ) -> LocalisationResult:
        positions = Positions.of(model, tuple(batch.inputs.shape[1:]))
        mask = inside(model, batch, positions)
        for _ in job.track(1):
            attributions = judged(model, batch, params, job)
        found = evidence(model, batch, attributions, positions, params)
        total = found.sum(1)
        empty = total == 0
        if empty.any():
            job.warn(empty, "no position has any attribution of the sign that is read")
        energy = (found * mask).sum(1) / torch.where(empty, 1, total)
        ranks = descending_ranks(found)
        size = mask.sum(1, keepdim=True)
        hits = ((ranks < size) & mask & (found > 0)).sum(1)
        size = size[:, 0]
        dtype = batch.inputs.dtype
        return LocalisationResult(
            energy=energy.to(dtype),
            rank_accuracy=(hits / size).to(dtype),
            iou=(hits / (2 * size - hits)).to(dtype),
            chance=mask.double().mean(1).to(dtype),
            attributions=attributions,
        )
