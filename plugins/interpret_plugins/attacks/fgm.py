"""The fast gradient method: one step in L2 or L1."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import AuxTensor, Batch, Classifier, Job, Plugin

from .attack import RADII, Attack, AttackParams, AttackResult
from .fgsm import one_step, straight
from .region import Region


class FGMParams(AttackParams):
    norm: Literal["l2", "l1"] = Field(
        "l2",
        description="`l2` steps by the gradient's unit vector, `l1` moves the values with the "
        "largest gradients as far as they can go.",
    )


class FGM(Attack, Plugin[FGMParams, AttackResult]):
    """One step of the loss's gradient in L2 or L1, as long as the ball allows.

    `l2`: `x + epsilon * grad loss / ||grad loss||_2`, clipped to the bounds. `l1`: the values with
    the largest gradients go to their bounds one after the other until `epsilon` is used up, the
    best step for a linear loss. A row that is misclassified to begin with is returned unchanged, as
    a success that `initially_correct` excludes.

    Source: Miyato, Dai & Goodfellow 2016, "Adversarial Training Methods for Semi-Supervised Text
    Classification", equation 5; Goodfellow, Shlens & Szegedy 2014, "Explaining and Harnessing
    Adversarial Examples", for the principle.
    """

    name = "fgm"
    tensors: ClassVar[Mapping[str, AuxTensor]] = RADII  # a box has its own norm

    def run(self, model: Classifier, batch: Batch, params: FGMParams, job: Job) -> AttackResult:
        move = _steepest_first if params.norm == "l1" else straight
        return one_step(model, batch, params, job, move)


def _steepest_first(region: Region, x: Tensor, gradient: Tensor) -> Tensor:
    room = torch.where(gradient > 0, region.upper - x, x - region.lower)
    order = gradient.abs().flatten(1).argsort(dim=1, descending=True, stable=True)
    sorted_room = room.flatten(1).gather(1, order)
    left = region.radius.to(x).unsqueeze(1) - (sorted_room.cumsum(1) - sorted_room)
    moved = torch.minimum(left.clamp(min=0), sorted_room)
    back = torch.zeros_like(moved).scatter(1, order, moved).reshape(x.shape)
    return x + gradient.sign() * back
