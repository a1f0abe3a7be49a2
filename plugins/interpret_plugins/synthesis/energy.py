"""The energy that samplers climb: what a target says of an input, plus a prior's log density."""

from dataclasses import dataclass

import torch
from torch import Tensor

from interpret_server.plugin import Classifier, TargetKind, Targets

from ..priors.prior import PriorSum
from .centred import Centred


@dataclass(frozen=True)
class Evaluation:
    """The energy's two terms at M states, and their gradients by the centred inputs z.

    Args:
        condition: `(M,)`, log p(c|z), or the target's value; 0 without a target.
        condition_score: like z.
        log_prior: `(M,)`; None where a prior has a score alone.
        prior_score: like z.
    """

    condition: Tensor
    condition_score: Tensor
    log_prior: Tensor | None
    prior_score: Tensor

    def where(self, rows: Tensor, other: "Evaluation") -> "Evaluation":
        """These values in the rows where the mask `(M,)` is true, those of the other elsewhere."""

        def pick(ours: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(rows.view(-1, *(1,) * (ours.dim() - 1)), ours, theirs)

        known = self.log_prior is not None and other.log_prior is not None
        return Evaluation(
            pick(self.condition, other.condition),
            pick(self.condition_score, other.condition_score),
            pick(self.log_prior, other.log_prior) if known else None,  # type: ignore[arg-type]
            pick(self.prior_score, other.prior_score),
        )


@dataclass(frozen=True)
class Energy:
    """`weight * condition + log p(z)` of M rows.

    Args:
        model: whose target conditions.
        targets: one for each row; of kind NONE for the prior alone.
        priors: the sum that makes log p.
        inputs: `(M, *shape)`, whose masks, lengths and the like the states carry along.
        seeds: one for each row.
        likelihood: condition on log p(c|x), for classes; else on the target's value.
        weight: of the condition.
        diagonal: differentiate the class's own logit only, with 1 - p(c|x) as its factor.
        max_rows: rows that go through a model at once.
    """

    model: Classifier
    targets: Targets
    priors: PriorSum
    inputs: Tensor
    seeds: tuple[int, ...]
    likelihood: bool
    weight: float
    max_rows: int
    diagonal: bool = False

    def at(self, z: Tensor) -> Evaluation:
        """The terms at centred inputs; to be called within a step of `Job.track`."""
        parts = [
            self._some(z[start : start + self.max_rows], start)
            for start in range(0, len(z), self.max_rows)
        ]
        log_priors = [part.log_prior for part in parts if part.log_prior is not None]
        return Evaluation(
            torch.cat([part.condition for part in parts]),
            torch.cat([part.condition_score for part in parts]),
            torch.cat(log_priors) if len(log_priors) == len(parts) else None,
            torch.cat([part.prior_score for part in parts]),
        )

    def _some(self, z: Tensor, start: int) -> Evaluation:
        space = Centred.of(self.model)
        rows = slice(start, start + len(z))
        prior = self.priors.at(self.model, space.to_input(z), self.seeds[rows])
        condition, gradient = self._condition(z, rows, space)
        return Evaluation(condition, gradient, prior.log_prob, space.scale * prior.score)

    def _condition(self, z: Tensor, rows: slice, space: Centred) -> tuple[Tensor, Tensor]:
        targets = self.targets.take(rows)
        if targets.kind is TargetKind.NONE:
            return z.new_zeros(len(z)), torch.zeros_like(z)
        leaf = z.detach().clone().requires_grad_()
        with torch.enable_grad():
            x = self.model.carry(space.to_input(leaf), self.inputs[rows])
            value, logits = self.model.objective(x, targets)
            risen = value
            if self.likelihood and logits is not None:
                value = targets.select(logits.log_softmax(1))
                risen = (1 - value.detach().exp()) * risen if self.diagonal else value
            if not risen.requires_grad:
                return self.weight * value, torch.zeros_like(z)
            (gradient,) = torch.autograd.grad(
                risen.sum(), leaf, allow_unused=True, materialize_grads=True
            )
        return self.weight * value.detach(), self.weight * gradient


def is_likelihood(targets: Targets) -> bool:
    """Whether the targets are classes, of which log p(c|x) can be taken."""
    return targets.kind is TargetKind.CLASS and targets.layer is None
