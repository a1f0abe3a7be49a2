"""Targets that a parameter adds to that of the request, and the values of several at once."""

from collections.abc import Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from interpret_server.plugin import Classifier, InvalidRequest, Params, TargetKind, Targets


class Term(Params):
    """A target that is added to that of the request; the mean of the layer if no unit is named."""

    weight: float = Field(ge=-1e6, le=1e6, description="Below 0, the target is made small.")
    layer: str | None = Field(None, description="Its layer; null: the logits.")
    channel: int | None = Field(
        None, ge=0, description="A channel's mean; of the logits, the logit of a class."
    )
    neuron: tuple[int, ...] | None = Field(None, description="The indices of one value.")
    direction: tuple[float, ...] | None = Field(
        None, description="A vector over the layer's channels; its inner product with their means."
    )

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if sum(unit is not None for unit in (self.channel, self.neuron, self.direction)) > 1:
            raise ValueError("name at most one of channel, neuron and direction")
        return self

    def targets(self, rows: int, like: Tensor) -> Targets:
        """The same target for each of some rows."""
        kind, direction = TargetKind.LAYER, None
        index: tuple[int, ...] = ()
        if self.channel is not None:
            kind, index = TargetKind.CHANNEL, (self.channel,)
        elif self.neuron is not None:
            kind, index = TargetKind.NEURON, self.neuron
        elif self.direction is not None:
            kind, direction = TargetKind.DIRECTION, like.new_tensor(self.direction).expand(rows, -1)
        indices = torch.tensor(index, dtype=torch.int64, device=like.device)
        return Targets(kind, indices.expand(rows, -1), self.layer, direction)


def check_terms(model: Classifier, terms: Sequence[Term]) -> None:
    """Refuse terms that this model does not have.

    Raises:
        InvalidRequest: naming `params.terms`.
    """
    for number, term in enumerate(terms):
        try:
            model.check_targets(term.targets(1, model.centre))
        except InvalidRequest as error:
            told = error.violations[0].description
            raise InvalidRequest.field(f"params.terms.{number}", told) from None


def target_values(
    model: Classifier, x: Tensor, targets: Sequence[Targets], layer: str | None = None
) -> tuple[list[Tensor], Tensor | None]:
    """The values `(N,)` of several targets at `x`, and those of one more layer.

    All layers are read in one pass; the logits take another.
    """
    named = {target.layer for target in targets} | {layer}
    layers = sorted(name for name in named if name is not None)
    found: dict[str | None, Tensor] = dict(
        zip(layers, model.activations(x, layers) if layers else (), strict=True)
    )
    if any(target.layer is None for target in targets):
        found[None] = model(x)
    values = [target.select(found[target.layer]) for target in targets]
    return values, None if layer is None else found[layer]
