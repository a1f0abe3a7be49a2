"""What an attack ascends, and when it has succeeded; always on logits."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from interpret_server.plugin import Classifier

LossName = Literal["cross_entropy", "margin", "dlr"]

_DLR_CLASSES = 3  # that the difference-of-logits ratio takes at least
_TOWARDS_CLASSES = 4  # the same towards a class
_LEAST_SPREAD = 1e-10


class Ascent(NamedTuple):
    """A gradient with the logits of the same forward pass.

    Args:
        gradient: `(N, *input_shape)`, of the loss, up to a positive factor per row.
        logits: `(N, K)`.
    """

    gradient: Tensor
    logits: Tensor


def classes_needed(loss: LossName, *, towards: bool = False) -> int:
    """The fewest classes for which a loss is defined.

    Args:
        loss: by name.
        towards: the loss is to lead to one class.
    """
    if loss != "dlr":
        return 2
    return _TOWARDS_CLASSES if towards else _DLR_CLASSES


@dataclass(frozen=True)
class Goal:
    """Away from a label, or towards one.

    Args:
        labels: `(N,)` int64; the true classes, or the classes to reach.
        targeted: whether the labels are to be reached.
        loss: `cross_entropy`, as the log of the odds against the label, which grows with it;
            `margin` (Carlini & Wagner 2017, section V.A, f6 without its clipping); `dlr`, the
            difference-of-logits ratio (Croce & Hein 2020, "Reliable evaluation of adversarial
            robustness with an ensemble of diverse parameter-free attacks", section 4), which does
            not change when all logits are shifted or scaled.
        towards: `(N,)` int64; classes that the loss leads to, while any other than the label will
            do. Only where the goal is to leave a label.
        confidence: margin that a success must have before the search for better ones ends.
    """

    labels: Tensor
    targeted: bool
    loss: LossName = "cross_entropy"
    towards: Tensor | None = None
    confidence: float = 0.0

    def take(self, rows: Tensor) -> "Goal":
        """The goal of some rows."""
        towards = None if self.towards is None else self.towards[rows]
        return replace(self, labels=self.labels[rows], towards=towards)

    def margin(self, logits: Tensor) -> Tensor:
        """`(N,)`: above zero exactly where the goal is reached; a tie is not enough."""
        own, others = self._parts(logits)
        best = others.amax(1)
        return own - best if self.targeted else best - own

    def values(self, logits: Tensor) -> Tensor:
        """The loss `(N,)` that is ascended; differentiable, and finite for sure classifiers."""
        own, others = self._parts(logits)
        if self.towards is not None:
            away = logits.gather(1, self.towards.unsqueeze(1)).squeeze(1) - own
            return away / _spread(logits, towards=True) if self.loss == "dlr" else away
        best = others.logsumexp(1) if self.loss == "cross_entropy" else others.amax(1)
        away = best - own
        if self.loss == "dlr":
            away = away / _spread(logits, towards=self.targeted)
        return -away if self.targeted else away

    def by_logits(self, logits: Tensor) -> Tensor:
        """The loss differentiated by the logits `(N, K)`.

        Cross-entropy lacks a factor, the probability of all classes but the label. Without it the
        direction stays where a classifier is so sure that the gradient itself rounds to zero.
        """
        labels, (own, others) = self.labels.unsqueeze(1), self._parts(logits.detach())
        if self.towards is not None:
            towards = self.towards.unsqueeze(1)
            best = logits.gather(1, towards).squeeze(1)
            gradient = torch.zeros_like(logits).scatter_(1, towards, 1)
        elif self.loss == "cross_entropy":
            best, gradient = others.amax(1), others.softmax(1)
        else:
            best = others.amax(1)
            largest = (others == best.unsqueeze(1)).to(logits)
            gradient = largest / largest.sum(1, keepdim=True)
        gradient = gradient.scatter_add(1, labels, -torch.ones_like(labels, dtype=logits.dtype))
        if self.loss == "dlr":
            towards_one = self.targeted or self.towards is not None
            gradient = _by_spread(gradient, best - own, logits, towards=towards_one)
        return -gradient if self.targeted else gradient

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

    def _parts(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The label's logit `(N,)`, and all logits `(N, K)` with the label's at minus infinity."""
        labels = self.labels.unsqueeze(1)
        return logits.gather(1, labels).squeeze(1), logits.scatter(1, labels, -torch.inf)


def _spread(logits: Tensor, *, towards: bool) -> Tensor:
    """What the difference of two logits is measured by, `(N,)`: never zero."""
    ordered = logits.topk(_TOWARDS_CLASSES if towards else _DLR_CLASSES, dim=1).values
    low = (ordered[:, 2] + ordered[:, 3]) / 2 if towards else ordered[:, 2]
    spread: Tensor = ordered[:, 0] - low
    return spread.clamp(min=_LEAST_SPREAD)


def _by_spread(gradient: Tensor, away: Tensor, logits: Tensor, *, towards: bool) -> Tensor:
    """The gradient `(N, K)` of differences `(N,)` over the spread, from that of the differences."""
    order = logits.topk(_TOWARDS_CLASSES if towards else _DLR_CLASSES, dim=1).indices
    weights = logits.new_tensor([1.0, 0.0, -0.5, -0.5] if towards else [1.0, 0.0, -1.0])
    slope = torch.zeros_like(logits).scatter_(1, order, weights.expand(len(logits), -1))
    spread = _spread(logits, towards=towards).unsqueeze(1)
    ratio = torch.where(spread > _LEAST_SPREAD, away.unsqueeze(1) / spread, 0)
    return (gradient - ratio * slope) / spread
