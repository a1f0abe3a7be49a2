"""The Jacobian-based saliency map attack."""

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import Batch, Classifier, InvalidRequest, Job, Plugin

from .attack import AimParams, Attack, AttackResult, Attempt, drive
from .losses import Goal
from .minimal import MinimalAttempt, Unlimited
from .norms import NORMS

_ROUNDING = 1e-6  # of a count that comes from a share


class JSMAParams(AimParams):
    theta: float = Field(
        1.0,
        ge=-1,
        le=1,
        description="What a step adds to a value, as a share of the bounds' width; not 0.",
    )
    gamma: float = Field(
        1.0, gt=0, le=1, description="Share of the values that may change at most."
    )
    pairs: bool = Field(
        True, description="Change two values in each step, as published; otherwise one."
    )


class JSMA(Unlimited, Attack, Plugin[JSMAParams, AttackResult]):
    """Few values, each step those that a saliency map of the Jacobian puts first.

    Towards class `t`, the pair `(p, q)` is taken for which `-alpha * beta` is largest among those
    with `alpha = sum_{p,q} s dZ_t/dx > 0` and `beta = sum_{p,q} s sum_{j != t} dZ_j/dx < 0` (both
    the other way round where `theta` is below zero), with logits `Z`; `theta` is added to both
    values, which leave the search at the edge of the bounds. A value counts by how far it can move,
    `s`: `theta`, or less at the edge, where published code lets nearly white pixels use up steps.
    Away from a label both signs are turned. A row stops at its first success, where no pair is
    left, or after `gamma` of the values, divided by the values of a step, steps. A row that is
    misclassified to begin with is returned unchanged.

    Source: Papernot, McDaniel, Jha, Fredrikson, Celik & Swami 2016, "The Limitations of Deep
    Learning in Adversarial Settings", algorithms 2 and 3; away from a label: Wiyatno & Xu 2018,
    "Maximal Jacobian-based Saliency Map Attack".
    """

    name = "jsma"

    def check(self, model: Classifier, params: JSMAParams) -> None:
        super().check(model, params)
        if params.theta == 0:
            raise InvalidRequest.field("params.theta", "a step of 0 changes nothing")
        if _most_steps(params, math.prod(model.input_shape)) < 1:
            raise InvalidRequest.field(
                "params.gamma", "it allows fewer values than one step changes"
            )

    def run(self, model: Classifier, batch: Batch, params: JSMAParams, job: Job) -> AttackResult:
        goal = params.goal(batch.targets.labels)
        attempt = MinimalAttempt.seek(model, batch, goal, NORMS["l0"], job)
        steps = _most_steps(params, batch.inputs[0].numel()) if len(batch) else 1
        drive(job, steps, _steps(attempt, params, steps, job))
        return attempt.finish(job)


def _most_steps(params: JSMAParams, values: int) -> int:
    changed = 2 if params.pairs and values > 1 else 1
    return int(params.gamma * values + _ROUNDING) // changed


def _steps(attempt: Attempt, params: JSMAParams, steps: int, job: Job) -> Iterator[None]:
    model, rows = attempt.model, attempt.open
    x = attempt.best[rows]
    attempt.follow(rows)
    for _ in range(steps):
        if not len(rows):
            return
        region, goal = attempt.region.take(rows), attempt.goal.take(rows)
        own, others = _jacobian(model, x, goal)
        attempt.queries[rows] += 3
        attempt.saw(rows, own)
        attempt.saw(rows, others)
        turn = (1 if params.targeted else -1) * (1 if params.theta > 0 else -1)
        room = (region.upper - x if params.theta > 0 else x - region.lower).clamp(min=0)
        reached = room.clamp(max=abs(params.theta) * model.scale)
        free = reached > 0
        chosen, found = _choose(
            turn * own * reached, -turn * others * reached, free, pairs=params.pairs
        )
        moved = x + params.theta * model.scale * chosen.to(x.dtype)
        x = torch.where(chosen, moved.clamp(region.lower, region.upper), x)
        with torch.no_grad():
            logits = model(x)
        attempt.queries[rows] += 1
        attempt.offer(rows, x, logits)
        left = found & ~attempt.clear(rows, logits)
        rows, x = rows[left], x[left]
        job.preview(adversarial=attempt.best.clone)
        yield


def _jacobian(model: Classifier, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
    """The gradients of the label's logit and of the sum of all others, each like `x`."""
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        if not logits.requires_grad:
            return torch.zeros_like(x), torch.zeros_like(x)
        own = logits.gather(1, goal.labels.unsqueeze(1)).sum()
        parts = []
        for value, last in ((own, False), (logits.sum() - own, True)):
            (part,) = torch.autograd.grad(
                value, leaf, retain_graph=not last, allow_unused=True, materialize_grads=True
            )
            parts.append(part)
    return parts[0], parts[1]


def _choose(gain: Tensor, loss: Tensor, free: Tensor, *, pairs: bool) -> tuple[Tensor, Tensor]:
    """The values to change, a mask like `gain`, and whether a row has any, `(n,)`.

    Args:
        gain: how much a value raises what is to rise.
        loss: how much it lowers what is to fall.
        free: values that may still change.
        pairs: choose two values for which the product of the sums is largest, otherwise one.
    """
    width = gain[0].numel()
    gain, loss = (torch.where(free, part, -torch.inf).flatten(1) for part in (gain, loss))
    if pairs and width > 1:
        first, second, best = _pair(gain, loss)
    else:
        both = (gain > 0) & (loss > 0)
        best, first = torch.where(both, gain * loss, -torch.inf).max(1)
        second = first
    found = torch.isfinite(best)
    chosen = torch.zeros_like(gain, dtype=torch.bool)
    chosen.scatter_(1, torch.stack([first, second], 1), found.unsqueeze(1).expand(-1, 2))
    return chosen.reshape(free.shape), found


def _pair(gain: Tensor, loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best pair of each row, and its product; minus infinity where there is none.

    Only values that at most one other beats in both gain and loss can be in it, which leaves few of
    even a large image's values to be paired.
    """
    order = gain.argsort(dim=1, descending=True, stable=True)
    sorted_loss = loss.gather(1, order)
    top = sorted_loss.cummax(1).values
    before = torch.cat([torch.full_like(top[:, :1], -torch.inf), top[:, :-1]], 1)
    runner_up = torch.minimum(sorted_loss, before).cummax(1).values
    beaten_twice = torch.cat([torch.full_like(top[:, :1], -torch.inf), runner_up[:, :-1]], 1)
    hopeful = (sorted_loss > beaten_twice) & torch.isfinite(sorted_loss)
    few = max(2, int(hopeful.sum(1).max()))
    place = (~hopeful).to(torch.uint8).argsort(dim=1, stable=True)[:, :few]
    index = order.gather(1, place)
    valid = hopeful.gather(1, place)
    gains = torch.where(valid, gain.gather(1, index), -torch.inf)
    losses = torch.where(valid, loss.gather(1, index), -torch.inf)
    alpha, beta = (part.unsqueeze(2) + part.unsqueeze(1) for part in (gains, losses))
    upper = torch.ones(few, few, dtype=torch.bool, device=gain.device).triu(1)
    score = torch.where((alpha > 0) & (beta > 0) & upper, alpha * beta, -torch.inf)
    best, where = score.flatten(1).max(1)
    first, second = where // few, where % few
    rows = torch.arange(len(gain), device=gain.device)
    return index[rows, first], index[rows, second], best
