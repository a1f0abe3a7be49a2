"""Attacks that other plugins run as a part of their own work."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interpret_server.bound import BoundPlugin
from interpret_server.plugin import Batch, Classifier, InvalidRequest


def craft(
    attack: BoundPlugin,
    model: Classifier,
    batch: Batch,
    rows: Tensor,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    warn: bool = True,
) -> Any:
    """What an attack makes of some rows of the job's batch: its result.

    Args:
        attack: to run.
        model: to attack.
        batch: of all rows.
        rows: `(n,)` ascending, those that are attacked.
        tensors: auxiliary tensors of these rows, in place of the batch's.
        warn: its warnings go to the callers.

    Raises:
        InvalidRequest: the attack takes no tensor of a name, or gives no tensor `adversarial`.
    """
    if tensors is None:
        tensors = {name: tensor[rows] for name, tensor in batch.tensors.items()}
    name = attack.plugin.name
    for given in sorted(tensors.keys() - attack.plugin.tensors.keys()):
        raise InvalidRequest.field(f"tensors.{given}", f"{name} takes no such tensor")
    part = replace(
        batch,
        inputs=batch.inputs[rows],
        targets=batch.targets.take(rows),
        seeds=tuple(batch.seeds[row] for row in rows.tolist()),
        tensors=tensors,
    )
    chosen = torch.zeros(len(batch), dtype=torch.bool).index_fill(0, rows.cpu(), True)
    result = attack.run(model, part, warn=chosen if warn else False)
    if not isinstance(getattr(result, "adversarial", None), Tensor):
        raise InvalidRequest.field(f"{attack.field}.plugin", f"{name} gives no `adversarial`")
    return result
