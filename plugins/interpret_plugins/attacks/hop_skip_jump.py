"""HopSkipJump: the gradient at the boundary, estimated from decisions."""

import math
from collections.abc import Generator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from interpret_server.plugin import Plugin

from .attack import AttackResult
from .decisions import ByDecisions, DecisionParams, Row, Search, bisect, starting_point
from .norms import Linf

_FINEST = 2.0**-20  # share of a distance that a bisection in float32 can tell
_SMALLEST = 2.0**-18  # mean change of a value by a probe, as a share of the bounds' width
_HALVINGS = 30


class HopSkipJumpParams(DecisionParams):
    norm: Literal["linf", "l2"] = Field("l2", description="Norm of the change.")
    steps: int = Field(64, ge=1, le=10_000, description="Steps at most.")
    probes: int = Field(
        100,
        ge=2,
        le=10_000,
        description="Queries for the direction of the first step; step t takes sqrt(t) times as "
        "many.",
    )
    most_probes: int = Field(
        10_000, ge=2, le=100_000, description="Queries for the direction of a step at most."
    )


class HopSkipJump(ByDecisions, Plugin[HopSkipJumpParams, AttackResult]):
    """Steps along the boundary's normal, which is estimated from decisions alone.

    From a point `x_t` on the boundary, found by bisection towards the input, `B_t = probes sqrt(t)`
    points `x_t + d u_b` are asked about; with answers `phi_b` of 1 and -1 and their mean `m` the
    normal is the direction of `sum_b (phi_b - m) u_b` (in `linf` its signs). The step along it is
    `distance / sqrt(t)`, halved until it ends in a success, and the next point on the boundary lies
    between there and the input. Directions `u_b` are of unit L2 length, and `d = distance / D` for
    inputs of D values (the first time a tenth of the bounds' width), but never so small that
    float32 rounds it away. The nearest success is returned.

    Source: Chen, Jordan & Wainwright 2020, "HopSkipJumpAttack: A Query-Efficient Decision-Based
    Attack", algorithms 1 and 2; the estimate: section III-C, with its baseline.
    """

    name = "hop_skip_jump"

    def search(self, row: Row, params: HopSkipJumpParams) -> Search:
        start = yield from starting_point(row, params.tries)
        if start is None:
            return
        values = row.x.numel()
        power = 2.0 if isinstance(row.norm, Linf) else 1.5
        resolution = min(max(values**-power, _FINEST), 0.01)
        reserve = math.ceil(-math.log2(resolution)) + 5  # for the step and the bisection after it
        point = yield from bisect(row, start, resolution)
        for step in range(1, params.steps + 1):
            distance = float(row.distance(point))
            radius = 0.1 * row.width if step == 1 else distance / values
            radius = max(radius, math.sqrt(values) * _SMALLEST * row.width)
            count = min(int(params.probes * math.sqrt(step)), params.most_probes)
            count = min(count, row.left - reserve)
            if count < 1:
                return
            normal = yield from _normal(row, point, count, radius)
            further = yield from _step(row, point, normal, distance / math.sqrt(step))
            if further is not None:
                point = yield from bisect(row, further, resolution)


def _normal(
    row: Row, point: Tensor, count: int, radius: float
) -> Generator[Tensor, list[bool], Tensor]:
    """The direction in which successes lie, of unit norm; from so many probes at a distance."""
    everywhere = torch.zeros_like(point, dtype=torch.float64)
    winning, wins, asked = everywhere.clone(), 0, 0
    while asked < count:
        size = min(row.most, count - asked)
        noise = row.uniform(size) * 2 - 1 if isinstance(row.norm, Linf) else row.normal(size)
        lengths = torch.linalg.vector_norm(noise.flatten(1), dim=1)
        noise = noise / lengths.reshape(-1, *[1] * (noise.dim() - 1))
        tried = row.clip(point + radius * noise)
        answers = yield tried
        moved = (tried.double() - point.double()) / radius
        won = torch.tensor(answers, device=moved.device)
        everywhere += moved.sum(0, keepdim=True)
        winning += moved[won].sum(0, keepdim=True)
        wins, asked = wins + sum(answers), asked + size
    mean = 2 * wins / asked - 1
    weighted = 2 * winning - (1 + mean) * everywhere
    normal = (everywhere * mean if abs(mean) == 1 else weighted).to(point)
    return row.norm.direction(normal)


def _step(
    row: Row, point: Tensor, direction: Tensor, size: float
) -> Generator[Tensor, list[bool], Tensor | None]:
    """The first success of ever shorter steps."""
    for _ in range(_HALVINGS):
        tried = row.clip(point + size * direction)
        (won,) = yield tried
        if won:
            return tried
        size /= 2
    return None
