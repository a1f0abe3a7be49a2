"""What an attack ascends, and when it has succeeded; always on logits."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from interpret_server.plugin import Classifier

LossName = Literal["cross_entropy", "margin"]


class Ascent(NamedTuple):
    """A gradient with the logits of the same forward pass.

    Args:
        gradient: `(N, *input_shape)`, of the loss, up to a positive factor per row.
        logits: `(N, K)`.
    """

    gradient: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Goal:
    """Away from a label, or towards one.

    Args:
        labels: `(N,)` int64; the true classes, or the classes to reach.
        targeted: whether the labels are to be reached.
        loss: `cross_entropy`, or `margin` (Carlini & Wagner 2017, section IV.A, f6 without its
            clipping).
    """

    labels: Tensor
    targeted: bool
    loss: LossName = "cross_entropy"

    def take(self, rows: Tensor) -> "Goal":
        """The goal of some rows."""
        return Goal(self.labels[rows], self.targeted, self.loss)

    def margin(self, logits: Tensor) -> Tensor:
        """`(N,)`: above zero exactly where the goal is reached; a tie is not enough."""
        labels = self.labels.unsqueeze(1)
        own = logits.gather(1, labels).squeeze(1)
        others = logits.scatter(1, labels, -torch.inf).amax(1)
        return own - others if self.targeted else others - own

    def by_logits(self, logits: Tensor) -> Tensor:
        """The loss differentiated by the logits `(N, K)`, up to a positive factor per row.

        Leaving out the factor (for cross-entropy, the probability of all other classes) keeps the
        direction where the classifier is so sure that the gradient itself rounds to zero.
        """
        labels = self.labels.unsqueeze(1)
        others = logits.detach().scatter(1, labels, -torch.inf)
        if self.loss == "margin":
            pull = torch.zeros_like(others).scatter(1, others.argmax(1, keepdim=True), 1)
        else:
            pull = others.softmax(1)
        away = pull.scatter(1, labels, -1)
        return -away if self.targeted else away

    def ascend(self, model: Classifier, x: Tensor) -> Ascent:
        """The direction in which each row's loss grows."""
        leaf = x.detach().clone().requires_grad_()
        with torch.enable_grad():
            logits = model(leaf)
            if not logits.requires_grad:
                return Ascent(torch.zeros_like(x), logits)
            (gradient,) = torch.autograd.grad(
                logits, leaf, self.by_logits(logits), allow_unused=True, materialize_grads=True
            )
        return Ascent(gradient, logits.detach())
