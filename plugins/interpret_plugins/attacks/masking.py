"""Signs that an attack by gradients failed because of the gradients, not the model's robustness.

Rows that an attack did not win are looked at once more, with a few passes each, close to their
inputs. Every warning begins with one of `PHRASES`, which programs may look for.

Source: Athalye, Carlini & Wagner 2018, "Obfuscated Gradients Give a False Sense of Security",
section 2 (shattered, stochastic and vanishing gradients).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interpret_server.models.manifest import Precision
from interpret_server.noise import uniform_rows
from interpret_server.plugin import Capability, Job

from .losses import Goal

if TYPE_CHECKING:
    from .attack import Attempt

FLAT = "the loss has a zero gradient here and does not change nearby"
SHATTERED = "the loss has a zero gradient here and yet changes nearby"
MISLEADING = "the gradient misses a part of what the loss depends on"
SATURATED = "the softmax is saturated here"
RANDOM = "the model answers at random"
PHRASES = (FLAT, SHATTERED, MISLEADING, SATURATED, RANDOM)

_FLAT = f"{FLAT}, so an attack by gradients cannot move; its failure is no evidence of robustness"
_SHATTERED = (
    f"{SHATTERED}, as where values are rounded or a branch is cut off from the gradient: failure "
    "is no evidence of robustness; use an attack by scores, such as square"
)
_MISLEADING = (
    f"{MISLEADING}: random changes move it otherwise than the gradient says, as where a branch is "
    "cut off; failure is no evidence of robustness; use an attack by scores, such as square"
)
_SATURATED = (
    f"{SATURATED}: probabilities round to 0 and 1 in float32, and gradients of cross-entropy to "
    "zero; use the loss margin or dlr, and a file that gives logits"
)
_RANDOM = (
    f"{RANDOM}, so success is what one draw gave; average over draws, as auto_attack does in its "
    "version random"
)

_NEARBY = 3  # random points of the region
_AWAY = 0.05  # how far from the input gradients are judged, as a share of the way to random points
# Points, and the L2 length of the step from each to both sides, as a share of the bounds' width.
# Rows that look misled at the first point are looked at again and closer, at many.
_LOOKS = ((1, 8e-3), (8, 4e-3))
_TOLERANCE = 0.1  # share of its size by which what a gradient says may be off
_CERTAIN = 87.0  # logits between two classes: e^-87 is about the smallest normal float32 number
_UNITS = 32  # of rounding that a logit may be off by
_STREAM = 7_000_000  # of random numbers, which no attack draws from


def warn_of_masking(attempt: "Attempt", success: Tensor, job: Job) -> None:
    """Warn about the rows of an attack that is over.

    Args:
        attempt: its queries are raised by the passes that are spent.
        success: `(N,)` bool.
        job: that hears the warnings.
    """
    model = attempt.judge
    flat, led = attempt.flat & ~success, attempt.led & ~attempt.flat & ~success
    _warn(job, attempt.led & _saturated(attempt.logits), _SATURATED)
    if Capability.DETERMINISTIC not in model.capabilities:
        _warn(job, torch.ones_like(success), _RANDOM)
        _warn(job, flat, _FLAT)
        return
    moved = _where(flat & attempt.led, lambda rows: _changes_nearby(attempt, rows))
    _warn(job, flat & ~moved, _FLAT)
    _warn(job, moved, _SHATTERED)
    if model.precision is not Precision.FLOAT32:
        return  # small changes are lost in the rounding
    for look in range(len(_LOOKS)):
        led = _where(led, lambda rows, look=look: _misled(attempt, rows, look))  # type: ignore[misc]
    _warn(job, led, _MISLEADING)


def _warn(job: Job, rows: Tensor, message: str) -> None:
    if rows.any():
        job.warn(rows, message)


def _where(mask: Tensor, judge: Callable[[Tensor], Tensor]) -> Tensor:
    """The mask of those rows of a mask `(N,)` that are judged so, by their indices `(n,)`."""
    rows = torch.nonzero(mask).squeeze(1)
    found = torch.zeros_like(mask)
    if len(rows):
        found[rows] = judge(rows)
    return found


def _saturated(logits: Tensor) -> Tensor:
    """Where probabilities have no room left to change; also where they are given as logits."""
    best = logits.topk(2, dim=1).values
    sums = (logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-6)
    return (best[:, 0] - best[:, 1] >= _CERTAIN) | (sums & (best[:, 0] == 1))


def _odds(attempt: "Attempt", rows: Tensor) -> Goal:
    """The goal of some rows, with a loss that is smooth."""
    return replace(attempt.goal.take(rows), loss="cross_entropy", towards=None)


def _rounding(logits: Tensor) -> Tensor:
    """How far off a loss may be, `(n,)`."""
    return _UNITS * torch.finfo(logits.dtype).eps * logits.abs().amax(1)


def _changes_nearby(attempt: "Attempt", rows: Tensor) -> Tensor:
    """Of `rows`, those whose loss differs between random points of their region."""
    model, goal, region = attempt.judge, _odds(attempt, rows), attempt.region.take(rows)
    seeds = [attempt.batch.seeds[row] for row in rows.tolist()]
    before = attempt.logits[rows]
    changed = torch.zeros_like(rows, dtype=torch.bool)
    for number in range(_NEARBY):
        share = uniform_rows(seeds, _STREAM + number, region.centre)
        x = region.project(region.lower + share * (region.upper - region.lower))
        with torch.no_grad():
            logits = model(model.carry(x, region.centre))
        moved = (goal.values(logits) - goal.values(before)).abs()
        changed |= moved > _rounding(logits) + _rounding(before)
    attempt.queries[rows] += _NEARBY
    return changed


def _misled(attempt: "Attempt", rows: Tensor, look: int) -> Tensor:
    """Of `rows`, those whose loss mostly changes otherwise than by its gradient.

    By central differences along a random direction, from each of a few random points near the
    input: not at it, since inputs may lie where a network has a kink in every direction, such as
    all black; and not at a single one, which may lie at a kink too.
    """
    model, goal, inputs = attempt.model, _odds(attempt, rows), attempt.batch.inputs[rows]
    seeds = [attempt.batch.seeds[row] for row in rows.tolist()]
    lower, upper = model.bounds
    points, length = _LOOKS[look]
    side = length * model.scale / math.sqrt(inputs[0].numel())
    off = torch.zeros_like(rows)
    for number in range(points):
        stream = _STREAM + 2 * (number + 1) + 100 * look
        away = lower + uniform_rows(seeds, stream, inputs) * (upper - lower)
        x = inputs.lerp(away, _AWAY).clamp(lower + side, upper - side)
        step = torch.where(uniform_rows(seeds, stream + 1, inputs) < 0.5, -side, side)
        x, ahead, behind = (model.carry(part, inputs) for part in (x, x + step, x - step))
        gradient, logits = goal.ascend(model, x)
        with torch.no_grad():
            change = (goal.values(model(ahead)) - goal.values(model(behind))).double()
        parts = (gradient.double() * (ahead.double() - behind.double())).flatten(1)
        told, usual = parts.sum(1), parts.norm(dim=1)  # the latter of `told` over all directions
        size = torch.stack([change.abs(), told.abs(), usual]).amax(0)
        off += (change - told).abs() - _rounding(logits) > _TOLERANCE * size
    attempt.queries[rows] += 4 * points
    return off * 2 > points
