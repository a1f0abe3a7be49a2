"""What to explain or to reach: a class, or any unit of any layer; one per row."""

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from ..errors import InvalidRequest


class TargetKind(StrEnum):
    """How a target turns the values of a layer into one number per row."""

    NONE = "none"  # the plugin uses no target
    CLASS = "class"  # the logit of a class
    NEURON = "neuron"  # one element of the layer
    CHANNEL = "channel"  # the mean over all positions of one channel (the axis after the batch)
    LAYER = "layer"  # the mean over the whole layer
    DIRECTION = "direction"  # the inner product with a vector over channels, or with a whole layer


@dataclass(frozen=True)
class Targets:
    """The targets of N rows, all of one kind and in one layer.

    Args:
        kind: how the layer's values become one number.
        index: `(N, k)` int64; k is 1 for a class or channel, the layer's rank for a neuron, else 0.
        layer: a layer's name; None means the logits.
        direction: `(N, C)` or `(N, *layer_shape)`, for `TargetKind.DIRECTION` only.
    """

    kind: TargetKind
    index: Tensor
    layer: str | None = None
    direction: Tensor | None = None

    @classmethod
    def classes(cls, classes: Tensor) -> "Targets":
        """One class per row, `(N,)` int64."""
        return cls(TargetKind.CLASS, classes.reshape(-1, 1).to(torch.int64))

    @classmethod
    def none(cls, rows: int) -> "Targets":
        """Targets of a plugin that uses none."""
        return cls(TargetKind.NONE, torch.zeros(rows, 0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> Tensor:
        """The classes, `(N,)` int64; only for `TargetKind.CLASS`."""
        if self.kind is not TargetKind.CLASS:
            raise InvalidRequest.field("target", f"a class is needed here, not a {self.kind}")
        return self.index[:, 0]

    def select(self, values: Tensor) -> Tensor:
        """The targets' values `(N,)` out of a layer's values (or the logits) `(N, ...)`."""
        match self.kind:
            case TargetKind.CLASS:
                return values.gather(1, self.index).squeeze(1)
            case TargetKind.NEURON:
                rows = torch.arange(len(values), device=values.device)
                return values[(rows, *self.index.unbind(1))]
            case TargetKind.CHANNEL:
                rows = torch.arange(len(values), device=values.device)
                return (
                    values[rows, self.index[:, 0]].flatten(1).mean(1)
                    if values.dim() > 2
                    else (values[rows, self.index[:, 0]])
                )
            case TargetKind.LAYER:
                return values.flatten(1).mean(1)
            case TargetKind.DIRECTION if self.direction is not None:
                if self.direction.shape == values.shape:
                    return (values * self.direction).flatten(1).sum(1)
                pooled = values.flatten(2).mean(2) if values.dim() > 2 else values
                return (pooled * self.direction).sum(1)
            case _:
                raise InvalidRequest.field("target", "this plugin needs a target")

    def validate(self, shape: tuple[int, ...], what: str) -> None:
        """Check the indices against a row shape.

        Raises:
            InvalidRequest: naming `target`, with the range that is allowed.
        """
        limits = shape if self.kind is TargetKind.NEURON else shape[:1]
        if self.kind in (TargetKind.CLASS, TargetKind.CHANNEL, TargetKind.NEURON):
            if self.index.shape[1] != len(limits):
                raise InvalidRequest.field(
                    "target",
                    f"{what} has shape {list(shape)}: a {self.kind} takes {len(limits)} indices, "
                    f"not {self.index.shape[1]}",
                )
            for axis, limit in enumerate(limits):
                column = self.index[:, axis].tolist()
                if column and not 0 <= min(column) <= max(column) < limit:
                    bad = next(index for index in column if not 0 <= index < limit)
                    raise InvalidRequest.field(
                        "target",
                        f"{self.kind} {bad} is out of range; {what} has 0 to {limit - 1}"
                        + (f" on axis {axis}" if len(limits) > 1 else ""),
                    )
        if self.kind is TargetKind.DIRECTION:
            rows = None if self.direction is None else tuple(self.direction.shape[1:])
            if rows not in (shape, shape[:1]):
                raise InvalidRequest.field(
                    "target",
                    f"the direction has shape {list(rows or ())}; {what} takes {list(shape)} "
                    f"or {list(shape[:1])} ({math.prod(shape)} values in all)",
                )

    def take(self, rows: slice | Tensor) -> "Targets":
        """The targets of some rows."""
        direction = None if self.direction is None else self.direction[rows]
        return Targets(self.kind, self.index[rows], self.layer, direction)

    def to(self, device: torch.device) -> "Targets":
        """The same targets on a device."""
        direction = None if self.direction is None else self.direction.to(device)
        return Targets(self.kind, self.index.to(device), self.layer, direction)
