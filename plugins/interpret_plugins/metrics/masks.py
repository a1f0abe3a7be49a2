"""Where the object is: the auxiliary tensor `mask`, and an attribution over the same positions."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_plugins.attribution.perturbation import channel_axis
from interpret_server.plugin import AuxTensor, Batch, Classifier, InvalidRequest

from .judged import TENSORS, JudgeParams, Positions, per_value

MASK: Mapping[str, AuxTensor] = MappingProxyType(
    {
        "mask": AuxTensor(
            "1 where the object is, else 0: of the input's shape, or without its axis of channels.",
            like_input=False,
            required=True,
        ),
        **TENSORS,
    }
)


class MaskParams(JudgeParams):
    """What every metric that compares with a mask can be told."""

    sign: Literal["positive", "absolute"] = Field(
        "positive",
        description="Read the positive part of each position's attribution, or its magnitude.",
    )


def inside(model: Classifier, batch: Batch, positions: Positions) -> Tensor:
    """The positions that lie in the mask, `(N, count)` bool.

    Raises:
        InvalidRequest: the mask does not fit the input, is empty, or holds something else than 0
            and 1.
    """
    mask, row = batch.tensors["mask"], tuple(batch.inputs.shape[1:])
    axis = None if model.packing is not None else channel_axis(model, row)
    if axis is not None and mask.dim() == len(row):
        mask = mask.unsqueeze(axis + 1)
    elif mask.dim() == 2 and tuple(mask.shape[1:]) == (positions.count,) != row:
        return _checked(mask)
    try:
        whole = mask.expand(len(batch), *row)
    except RuntimeError:
        found = list(batch.tensors["mask"].shape[1:])
        raise InvalidRequest.field(
            "tensors.mask", f"rows of shape {found} do not fit an input of {list(row)}"
        ) from None
    _checked(whole)
    return positions.sums(whole.to(batch.inputs)) > 0


def evidence(
    model: Classifier, batch: Batch, attributions: Tensor, positions: Positions, params: MaskParams
) -> Tensor:
    """How much speaks for each position, `(N, count)` float64, at least 0.

    Channels are summed, in magnitude where `sign` says so.
    """
    values = per_value(model, batch, attributions, params)
    if params.sign == "absolute":
        return positions.sums(values.abs())
    return positions.sums(values).clamp(min=0)


def _checked(mask: Tensor) -> Tensor:
    if ((mask != 0) & (mask != 1)).any():
        raise InvalidRequest.field("tensors.mask", "a mask holds zeros and ones only")
    found = mask.flatten(1).bool()
    if not found.any(1).all():
        row = int(torch.where(~found.any(1))[0][0])
        raise InvalidRequest.field("tensors.mask", f"the mask of row {row} is empty")
    return found
