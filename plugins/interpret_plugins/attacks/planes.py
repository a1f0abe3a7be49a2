"""The boundary between two classes as a hyperplane, where a classifier is taken to be linear."""

from typing import NamedTuple

import torch
from torch import Tensor

from interpret_server.plugin import Classifier

from .losses import Goal
from .norms import Norm, per_row


class Plane(NamedTuple):
    """Per row, the boundary that looks nearest.

    Args:
        normal: `(n, *input_shape)`, the gradient of `value`.
        value: `(n,)`, a difference of logits that is zero on the boundary, above zero beyond it.
        logits: `(n, K)`.
    """

    normal: Tensor
    value: Tensor
    logits: Tensor


def nearest_plane(
    model: Classifier, x: Tensor, goal: Goal, others: Tensor, norm: Norm, scale: Tensor
) -> Plane:
    """The nearest of the boundaries to some classes, one forward and as many backward passes.

    Args:
        model: to linearise.
        x: `(n, *input_shape)`.
        goal: to leave a label, for one of `others`; or to reach it, where they play no part.
        others: `(n, k)`, classes.
        norm: that distances are measured in.
        scale: `(n, *input_shape)`, units of Linf.
    """
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        if goal.targeted:
            values = [goal.margin(logits)]
        else:
            own = logits.gather(1, goal.labels.unsqueeze(1))
            values = list((logits.gather(1, others) - own).unbind(1))
        normals = [_slope(value, leaf, last=value is values[-1]) for value in values]
    if len(values) == 1:
        return Plane(normals[0], values[0].detach(), logits.detach())
    value, normal = torch.stack(values, 1).detach(), torch.stack(normals, 1)
    steepness = torch.stack([dual_size(norm, part, scale) for part in normals], 1)
    distance = torch.where(steepness > 0, value.abs() / steepness, torch.inf)
    nearest = distance.argmin(1)
    rows = torch.arange(len(x), device=x.device)
    return Plane(normal[rows, nearest], value[rows, nearest], logits.detach())


def dual_size(norm: Norm, gradient: Tensor, scale: Tensor) -> Tensor:
    """The largest change of a linear function along `gradient` per unit of the norm, `(n,)`."""
    if norm.name == "linf":
        return (gradient.abs() * scale).flatten(1).sum(1)
    if norm.name == "l2":
        return norm.size(gradient)
    return gradient.flatten(1).abs().amax(1)


def candidates(logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """The classes but the label, `(N, min(count, K - 1))`, the likeliest first."""
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    order: Tensor = others.argsort(dim=1, descending=True, stable=True)
    return order[:, : min(count, order.shape[1] - 1)]


def size_in(norm: Norm, delta: Tensor, scale: Tensor) -> Tensor:
    """The norm `(n,)` of changes, in units of `scale` for Linf."""
    if norm.name == "linf":
        return norm.size(delta / torch.where(scale > 0, scale, 1))
    return norm.size(delta)


def _slope(value: Tensor, leaf: Tensor, *, last: bool) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(
        value.sum(), leaf, retain_graph=not last, allow_unused=True, materialize_grads=True
    )
    return gradient


def between(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """`(n, *input_shape)`: `start` for a share `(n,)` of 0, `end` for 1."""
    return torch.lerp(start, end, per_row(share, start))
