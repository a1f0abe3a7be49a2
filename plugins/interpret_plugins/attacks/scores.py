"""What attacks share that see the scores of classes alone, and are given so many queries."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from interpret_server.plugin import Capability

from .attack import RadiusParams
from .losses import Goal

ScoreLoss = Literal["cross_entropy", "margin"]

# Predictions of the input, of its nearest point in a box, and of what is returned.
OVERHEAD = 3


class BudgetParams(RadiusParams):
    """Parameters of attacks with a budget of queries."""

    queries: int = Field(
        5000,
        ge=OVERHEAD + 1,
        le=1_000_000,
        description="Most forward passes of a row, all restarts and the predictions of the input "
        "and of the result included.",
    )
    loss: ScoreLoss | None = Field(
        None,
        description="What is ascended, on logits: cross-entropy, or the margin between the label's "
        "logit and the largest other one. Null: the margin, and cross-entropy where targeted.",
    )

    def goal(self, labels: Tensor) -> Goal:
        return Goal(labels, self.targeted, self.loss or score_loss(targeted=self.targeted))

    @property
    def budget(self) -> int:
        """Queries that are left for the search itself."""
        return self.queries - OVERHEAD


def score_loss(*, targeted: bool) -> ScoreLoss:
    """The loss that searches by scores ascend unless told otherwise."""
    return "cross_entropy" if targeted else "margin"


class ByScores:
    """What attacks that take no gradients declare, before `Attack`."""

    requires: ClassVar[frozenset[Capability]] = frozenset({Capability.SCORES, Capability.BOUNDS})
